"""Stage extract: ask the LLM what is still unanswered, and keep every answer.

Plan -> what is pending -> ask, unit by unit into the ledger -> settle. A run that was cut off
resumes with what is missing; finished answers are never asked again.
"""

from __future__ import annotations

import time
from typing import Any

import ray

from reki_ray.config import ExtractConfig, RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import bounded, ray_session
from reki_ray.core.stage import StageResult
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError
from reki_ray.extraction import engine_speed, work_units
from reki_ray.extraction.cost_estimate import estimate
from reki_ray.extraction.engines import Engine, build_engine
from reki_ray.extraction.engines.capacity import require
from reki_ray.extraction.knowledge_tables import Summary, compact, settle
from reki_ray.extraction.metrics import exported
from reki_ray.extraction.planner import make_plan, prompting
from reki_ray.extraction.run_stats import RunStats, Snapshot
from reki_ray.prompts.answer_stats import describe
from reki_ray.stages.extract_runner import ExtractRunner

ESTIMATE = "extract/estimate.json"
"""What was foretold before the last asking; the fields of `Estimate`."""
STATISTICS = "extract/statistics.json"
"""What the last asking measured, for runs that find every answer already there."""


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Answer all prompts of the configuration.

    Args:
        config: The run.
        workspace: Holds ingest and, for collective knowledge, cluster; the ledger goes here.
        reporter: Shows progress, tokens per second and cost.

    Returns:
        Subjects in, answered subjects out, dead ones, and the tokens of this plan's answers.

    Raises:
        EngineError: The engine is unavailable, or too many prompts stay without an answer.
        DataError: A table is missing or damaged.
    """
    wording = prompting(config, workspace)
    engine = build_engine(config.extract, wording.renderer.template)
    with ray_session(config.ray):
        plan = make_plan(config, workspace, wording, reporter)
        identity = work_units.begin(workspace, plan)
        figures = RunStats(config.extract)
        asking = ExtractRunner(workspace, config.extract, engine, identity, figures, reporter)
        left = asking.pending()
        if left.rows:
            require(engine.demand)
            _foretell(config, workspace, left, reporter)
            with exported(figures, config.extract.metrics_port):
                _ask(asking, left, figures, engine, config.extract, workspace)
        settled = settle(workspace, reporter)
        reporter.say(f"extract: {describe(settled.stats)}")
        work_units.finish(workspace, plan, identity)
        compact(workspace)
    _require_answers(settled, config)
    return StageResult(
        rows_in=settled.subjects,
        rows_out=settled.answered,
        dead=settled.dead,
        prompt_tokens=settled.prompt_tokens,
        generated_tokens=settled.generated_tokens,
        details={
            "engine": engine.name,
            "model": engine.model,
            "mode": config.extract.mode,
            "prompts": settled.prompts,
            "prompts_asked": left.rows,
            "prompt_tokens": settled.prompt_tokens,
            "generated_tokens": settled.generated_tokens,
            "cache_hits": left.hits,
            "dead": settled.dead,
            "answers": settled.stats.model_dump(),
            **_measured(workspace, engine),
        },
    )


def _foretell(
    config: RekiConfig, workspace: Workspace, left: work_units.PendingUnits, reporter: Reporter
) -> None:
    """Say what asking will take, individual beside collective, before the first call.

    In a task: a tokenizer and sampled rows are no business of the driver's memory.
    """
    try:
        (lines,) = bounded([(_estimated, (config, workspace.location))])
    except EngineError as error:  # no tokenizer is no reason not to ask
        lines = [f"no estimate: {error.what}"]
    for line in lines:
        reporter.say(f"extract: plan, {line}")
    reporter.say(f"extract: {left.rows:,} of {left.prompts:,} prompts pending, the rest cached")


@ray.remote
def _estimated(config: RekiConfig, location: str) -> list[str]:
    found = estimate(config, Workspace(location))
    Workspace(location).write_json(ESTIMATE, found.model_dump(mode="json"))
    return found.summary()


def _ask(
    asking: ExtractRunner,
    left: work_units.PendingUnits,
    figures: RunStats,
    engine: Engine,
    config: ExtractConfig,
    workspace: Workspace,
) -> None:
    started = time.monotonic()
    figures.start(total=left.rows, hits=left.hits)
    try:
        asking.run(left)
    finally:
        measured = figures.snapshot()
        asked = Snapshot(**{**measured, "seconds": asking.seconds})
        if speed := engine_speed.observed_speed(config, asked):
            engine_speed.remember(config, speed)
        measured["model"] = engine.model
        measured["tokens_per_second"] = round(measured["generated_tokens"] / asking.seconds, 2)
        # What passed before the first call: the engine loads its model.
        measured["start_seconds"] = round(time.monotonic() - started - asking.seconds, 2)
        workspace.write_json(STATISTICS, measured)


def _measured(workspace: Workspace, engine: Engine) -> dict[str, Any]:
    """Figures of the last asking; zeros where this model was never asked here."""
    figures: dict[str, Any] = {}
    if workspace.exists(STATISTICS):
        figures = workspace.read_json(STATISTICS)
    same = figures.get("model") == engine.model
    names = ("tokens_per_second", "cached_tokens", "cost")
    return {name: figures.get(name, 0) if same else 0 for name in names}


def _require_answers(settled: Summary, config: RekiConfig) -> None:
    if settled.dead > config.extract.max_dead_share * settled.subjects:
        raise EngineError(
            f"{settled.dead} of {settled.subjects} prompts have no answer "
            f"(last reason: {settled.reason})",
            where="extract.max_dead_share",
            todo="Read extract/dead, correct the cause and run again: only these are asked.",
        )
