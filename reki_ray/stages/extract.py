"""Stage extract: answer every prompt without a cached answer, and keep all answers.

Plan -> pending prompts -> answers, unit by unit into the answer cache -> knowledge tables. An
interrupted run resumes with the pending prompts; cached prompts are never sent again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import ray
from pydantic import ValidationError

from reki_ray import schema
from reki_ray.config import (
    ExtractConfig,
    PromptsConfig,
    RayConfig,
    RekiConfig,
    describe_problems,
)
from reki_ray.core.downloads import cache_folder
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import bounded, ray_session
from reki_ray.core.stage import StageResult
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError, EngineError
from reki_ray.extraction import work_units
from reki_ray.extraction.answer_cache import PromptKeys
from reki_ray.extraction.cost_estimate import estimate
from reki_ray.extraction.engines import Engine, build_engine
from reki_ray.extraction.knowledge_tables import SettledPlan, compact, settle
from reki_ray.extraction.metrics import exported
from reki_ray.extraction.plan_table import PLAN, PlannedRow, plan_table
from reki_ray.extraction.planner import make_plan, prompting
from reki_ray.extraction.run_stats import RunStats
from reki_ray.extraction.work_units import PendingUnits
from reki_ray.prompts.answer_stats import describe
from reki_ray.prompts.renderer import Prompt, Renderer, build_renderer
from reki_ray.stages.extract_runner import STATISTICS, ExtractRunner

ESTIMATE = "extract/estimate.json"
"""Estimate before the last run that had pending prompts; the fields of `Estimate`."""

HISTORY: Final = "history"


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Answer all prompts of the configuration.

    Raises:
        EngineError: The engine is unavailable, or too many prompts have no answer.
        DataError: A table is missing or damaged.
    """
    wording = prompting(config, workspace)
    engine = build_engine(config.extract, wording.renderer.template)
    with ray_session(config.ray):
        plan = make_plan(workspace, wording, reporter)
        settled, pending = _answer_plan(
            workspace,
            plan,
            config.extract,
            engine,
            reporter,
            announce=lambda pending: _announce(config, workspace, pending, reporter),
        )
    statistics = workspace.read_json(STATISTICS) if workspace.exists(STATISTICS) else {}
    if statistics.get("model") != engine.model:
        statistics = {}
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
            "prompts_asked": pending.rows,
            "prompt_tokens": settled.prompt_tokens,
            "generated_tokens": settled.generated_tokens,
            "cache_hits": pending.hits,
            "dead": settled.dead,
            "answers": settled.stats.model_dump(),
            **{n: statistics.get(n, 0) for n in ("tokens_per_second", "cached_tokens", "cost")},
        },
    )


def extract_knowledge(
    table: pa.Table,
    *,
    kind: Literal["item", "user"] = "item",
    scenario: str = "movies",
    engine: ExtractConfig | Mapping[str, Any] | None = None,
    prompts: PromptsConfig | Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    ray_config: RayConfig | None = None,
) -> pa.Table:
    """Ask an LLM for knowledge about the items or users of a table.

    Answers are cached in a folder: prompts that are already answered are not sent again, and an
    interrupted call resumes. A running Ray is used if there is one.

    Args:
        table: Rows with a unique `id`. Items have a `title` and, optionally, `attributes` and
            `text`; users have `attributes`, `history` (titles, oldest first), or both.
            Attributes are a struct or map of a value or a list of values.
        kind: What the rows are.
        scenario: Name of a bundled scenario, or path of a YAML file.
        engine: Section `extract` of a configuration, or its section `engine` alone, which has a
            `kind`; None takes the default engine, a small model on the CPU.
        prompts: Section `prompts` of a configuration; `scenario` takes precedence.
        folder: Folder of the answer cache; None takes one in the user's cache.
        ray_config: Cluster to start or join.

    Returns:
        Columns `id`, `factor` (`*` for a whole answer), `text`, `model`, `generated_tokens` and
        `finish_reason`; a row without an answer is left out.

    Raises:
        ConfigError: A setting is invalid, a column is missing, or the folder is in use.
        EngineError: The engine is unavailable, or more than `max_dead_share` rows have no answer.

    Example:
        >>> films = pa.table({"id": ["1"], "title": ["Heat (1995)"]})
        >>> extract_knowledge(films, engine={"kind": "scripted"})["id"].to_pylist()
        ['1']
    """
    if not isinstance(engine, ExtractConfig):
        section = dict(engine or {})
        engine = _validated(ExtractConfig, {"engine": section} if "kind" in section else section)
    if not isinstance(prompts, PromptsConfig):
        prompts = _validated(PromptsConfig, prompts or {})
    renderer = build_renderer(prompts.model_copy(update={"scenario": scenario}), engine)
    template = renderer.template
    keys = PromptKeys(template, engine)
    rendered = _render_rows(table, kind, renderer)
    rows = [PlannedRow(p.subject_id, keys.of(kind, p.body), p.body, []) for p in rendered]
    rows.sort(key=lambda row: row.body or "")  # the engine caches common prefixes
    digest = hashlib.sha256("".join(f"{row[0]}\0{row[1]}\0" for row in rows).encode())
    workspace = Workspace(cache_folder() / "extract" if folder is None else folder)
    reporter = Reporter(workspace)
    with workspace.lock(), ray_session(ray_config or RayConfig()):
        with workspace.replacing("extract", [PLAN]) as scratch:
            planned = plan_table(kind, rows)
            scratch.write_table(PLAN, planned, part="part-000000", row_group_rows=1024)
        batch_engine = build_engine(engine, template)
        _answer_plan(workspace, digest.hexdigest(), engine, batch_engine, reporter)
        knowledge = workspace.read_table(schema.KNOWLEDGE)
    columns = [
        schema.SUBJECT_ID,
        schema.FACTOR,
        schema.TEXT,
        schema.MODEL,
        schema.GENERATED_TOKENS,
        schema.FINISH_REASON,
    ]
    return knowledge.select(columns).rename_columns([schema.ID, *columns[1:]])


_Section = TypeVar("_Section", ExtractConfig, PromptsConfig)


def _validated(section: type[_Section], settings: Mapping[str, Any]) -> _Section:
    try:
        return section.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(
            describe_problems(error, section, "its settings"),
            where=f"extract_knowledge, {section.__name__}",
            todo="Correct the settings; docs/reference/config.md describes them.",
        ) from error


def _render_rows(
    table: pa.Table, kind: Literal["item", "user"], renderer: Renderer
) -> list[Prompt]:
    needed = {schema.ID, schema.TITLE} if kind == "item" else {schema.ID}
    missing = sorted(needed - set(table.column_names))
    if missing or pc.count_distinct(table[schema.ID], mode="all").as_py() < table.num_rows:
        raise ConfigError(
            f"columns are missing: {', '.join(missing)}" if missing else "ids are not unique",
            where=f"extract_knowledge(kind={kind!r})",
            todo=f"Give a table with the columns {', '.join(sorted(needed))}, one row per id.",
        )
    prompts = []
    for row in table.to_pylist():
        attributes = {
            name: [str(value) for value in (values if isinstance(values, list) else [values])]
            for name, values in dict(row.get(schema.ATTRIBUTES) or {}).items()
            if values is not None
        }
        key = str(row[schema.ID])
        if kind == "item":
            prompts.append(
                renderer.item(key, row[schema.TITLE] or "", attributes, row.get(schema.TEXT))
            )
        else:
            history = [(title, None) for title in row.get(HISTORY) or ()]
            prompts.append(renderer.user(key, attributes, history))
    return prompts


def _answer_plan(
    workspace: Workspace,
    plan: str,
    config: ExtractConfig,
    engine: Engine,
    reporter: Reporter,
    announce: Callable[[PendingUnits], object] = lambda _: None,
) -> tuple[SettledPlan, PendingUnits]:
    """Answer the pending prompts of a plan, and write the knowledge tables.

    Raises:
        EngineError: The engine is unavailable, or too many prompts have no answer.
    """
    attempt_id = work_units.begin(workspace, plan)
    stats = RunStats(config)
    runner = ExtractRunner(workspace, config, engine, attempt_id, stats, reporter)
    pending = runner.pending()
    if pending.rows:
        engine.require_room()
        announce(pending)
        with exported(stats, config.metrics_port):
            runner.run(pending)
    settled = settle(workspace, reporter)
    reporter.say(f"extract: {describe(settled.stats)}")
    work_units.finish(workspace, plan, attempt_id)
    compact(workspace)
    if settled.dead > config.max_dead_share * settled.subjects:
        raise EngineError(
            f"{settled.dead} of {settled.subjects} prompts have no answer "
            f"(last reason: {settled.reason})",
            where="extract.max_dead_share",
            todo="Read extract/dead, correct the cause and run again: only these are retried.",
        )
    return settled, pending


def _announce(
    config: RekiConfig, workspace: Workspace, pending: PendingUnits, reporter: Reporter
) -> None:
    """Show the estimate before the first call; a task keeps its rows out of the driver's memory."""
    try:
        (lines,) = bounded([(_estimate_lines, (config, workspace.location))])
    except EngineError as error:  # a missing tokenizer must not stop the run
        lines = [f"no estimate: {error.what}"]
    for line in lines:
        reporter.say(f"extract: plan, {line}")
    reporter.say(
        f"extract: {pending.rows:,} of {pending.prompts:,} prompts pending, the rest cached"
    )


@ray.remote
def _estimate_lines(config: RekiConfig, location: str) -> list[str]:
    result = estimate(config, Workspace(location))
    Workspace(location).write_json(ESTIMATE, result.model_dump(mode="json"))
    return result.summary()
