"""reki-ray: LLM knowledge for recommendation models, extracted offline on Ray.

Names are imported on first use: `import reki_ray` loads neither torch nor Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from reki_ray.config import RekiConfig, load_config
    from reki_ray.core.workspace import StageEntry, Workspace
    from reki_ray.encoding.texts import encode_texts
    from reki_ray.models.hein import HEIN
    from reki_ray.stages.extract import extract_knowledge
    from reki_ray.store.versions import VersionStore

__version__ = "0.1.0"

__all__ = [
    "HEIN",
    "VersionStore",
    "Workspace",
    "encode_texts",
    "extract_knowledge",
    "load_config",
    "run",
]

_MODULES: Final = {
    "HEIN": "reki_ray.models.hein",
    "VersionStore": "reki_ray.store.versions",
    "Workspace": "reki_ray.core.workspace",
    "encode_texts": "reki_ray.encoding.texts",
    "extract_knowledge": "reki_ray.stages.extract",
    "load_config": "reki_ray.config",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from reki_ray.core.imports import load

    if name == "extract_knowledge":
        from reki_ray.core.ray_cluster import set_environment

        set_environment()  # before Ray is imported
    globals()[name] = value = load(f"{_MODULES[name]}:{name}")
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def run(
    config: RekiConfig | Path | str,
    until: str | None = None,
    *,
    force: Iterable[str] = (),
    quiet: bool = False,
) -> dict[str, StageEntry]:
    """Run the stages of a configuration, and skip those that are done and unchanged.

    Args:
        config: Configuration, or path of its YAML file.
        until: Last stage to run; None runs all.
        force: Stages that run even if unchanged; later ones then run as well.
        quiet: Show no progress.

    Returns:
        Per stage, its entry in the workspace's manifest: rows in and out, seconds, tokens, and
        whether it was skipped.

    Raises:
        ConfigError: The configuration or a stage's name is invalid, or another run holds the
            workspace.

    Example:
        >>> entries = run("configs/movielens-100k.yaml", until="cluster")
        >>> entries["ingest"].rows_out
        100000
    """
    from reki_ray.config import RekiConfig, load_config
    from reki_ray.core.progress import Reporter
    from reki_ray.core.ray_cluster import set_environment
    from reki_ray.core.workspace import Workspace
    from reki_ray.stages import pipeline

    set_environment()  # before a stage imports Ray
    if not isinstance(config, RekiConfig):
        config = load_config(config)
    reporter = Reporter(Workspace(config.root), quiet=quiet)
    stages = pipeline.select(until=until)
    return pipeline.run_stages(config, stages, reporter, force=frozenset(force))
