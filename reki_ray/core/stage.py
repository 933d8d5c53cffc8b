"""Stages of the pipeline and their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace

CODE_VERSIONS: Mapping[str, int] = MappingProxyType(
    {
        "ingest": 3,
        "cluster": 5,
        "extract": 3,
        "encode": 3,
        "train": 3,
        "publish": 1,
        "evaluate": 4,
        "serve": 1,
        "report": 1,
    }
)
"""Version of each stage's code, in the order of the stages. Raise it if the output changes for the
same input: finished workspaces then run the stage again."""

STAGE_NAMES: tuple[str, ...] = tuple(CODE_VERSIONS)


@dataclass(frozen=True)
class StageResult:
    """Result of a stage, for the manifest."""

    rows_in: int
    rows_out: int
    dead: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    """JSON-ready figures for the report."""


RunStage = Callable[[RekiConfig, Workspace, Reporter], StageResult]


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Args:
        run: Import path of a `RunStage`, loaded when the stage runs.
        sections: Sections of the configuration that change its output.
        after: Stages whose output it reads.
        inputs: Import path of a function `RekiConfig -> JSON-ready` that identifies files outside
            the workspace; empty without such files.
        check: Import path of a function `RekiConfig -> None` that refuses impossible settings
            before the first stage runs; empty without one.
        distributed: Whether it works on all nodes of a cluster, which must see the workspace.
    """

    name: str
    run: str
    sections: tuple[str, ...]
    after: tuple[str, ...] = ()
    inputs: str = ""
    always: bool = False
    check: str = ""
    distributed: bool = False
