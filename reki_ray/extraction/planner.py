"""The plan: every prompt of a run, rendered once by Ray tasks and kept on disk.

What will be asked can be read before it is asked, asking needs no subject's rows any more, and
a rerun of the same configuration over the same data finds its plan and starts at once.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass

import pyarrow.compute as pc
import ray

from reki_ray import schema
from reki_ray.config import OpenAiEngine, PromptsConfig, RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import bounded
from reki_ray.core.workspace import Workspace
from reki_ray.data.interaction_counts import Activity, count_visible, counts_of
from reki_ray.extraction import knowledge_import
from reki_ray.extraction.answer_cache import PromptKeys
from reki_ray.extraction.model_identity import request_identity
from reki_ray.extraction.plan_table import KEPT, PLAN, PlannedRow, kept, plan_table
from reki_ray.extraction.shards import Mode, Shard, cut_into_shards, load
from reki_ray.extraction.subjects import Subjects
from reki_ray.prompts.renderer import Prompt, Renderer, load_scenario
from reki_ray.schema import PROMPT_HASH, SIDE_OF, SUBJECT_ID, SUBJECT_KIND, SubjectKind

_DOCUMENT = "extract/plan.json"
_ROW_GROUP_ROWS = 1024
"""A work unit reads the row groups that it touches and no more."""

_FORMAT = 2
"""Raised when a change of code changes the plan for the same configuration and data."""


@dataclass(frozen=True)
class Prompting:
    """All that a task needs to render prompts and to address them.

    Attributes:
        location: The workspace, as any process opens it.
        mode: Individual or collective.
        limits: Scenario, factors and limits.
        renderer: Writes the prompts.
        prompt_keys: Addresses of the prompts.
        min_interactions: An id with fewer before the cut is not asked about alone.
        moved_share: Share of the lines of a single id's prompt that are new when it is asked
            about again.
    """

    location: str
    mode: Mode
    limits: PromptsConfig
    renderer: Renderer
    prompt_keys: PromptKeys
    min_interactions: int
    moved_share: float


@dataclass(frozen=True)
class Plan:
    """A plan that stands on disk.

    Attributes:
        identity: Hash of what determines it.
        rows: Subjects.
    """

    identity: str
    rows: int


def prompting(config: RekiConfig, workspace: Workspace) -> Prompting:
    """How a configuration words and addresses its prompts.

    Raises:
        ConfigError: The scenario is unknown, or lacks a factor.
    """
    engine, sampling = config.extract.engine, config.extract.sampling
    withheld: frozenset[str] = frozenset()
    if isinstance(engine, OpenAiEngine):
        withheld = frozenset(engine.withhold)
    renderer = Renderer(load_scenario(config.prompts.scenario), config.prompts, withheld)
    prompt_keys = PromptKeys(
        renderer.template, engine.model, engine.revision, sampling, request_identity(config.extract)
    )
    return Prompting(
        workspace.location,
        config.extract.mode,
        config.prompts,
        renderer,
        prompt_keys,
        config.extract.min_interactions if config.extract.mode == "blend" else 0,
        config.cluster.drift.moved_share,
    )


def make_plan(
    config: RekiConfig, workspace: Workspace, wording: Prompting, reporter: Reporter
) -> Plan:
    """Render all prompts, unless the same plan stands already.

    Args:
        config: The run.
        workspace: Holds ingest and, for collective knowledge, cluster; gets `PLAN`.
        wording: How prompts are rendered.
        reporter: Shows progress.

    Raises:
        DataError: A table is missing or damaged.
    """
    parts = cut_into_shards(workspace, wording.mode)
    identity = _identity(config, workspace, wording)
    if workspace.exists(_DOCUMENT):
        document = workspace.read_json(_DOCUMENT)
        if document["identity"] == identity:
            return Plan(identity, document["rows"])
    workspace.remove(_DOCUMENT)  # it must not stand for tables that are being replaced
    rows = 0
    spec = ray.put(wording)
    activity = count_visible.remote(workspace.location) if wording.min_interactions else None
    with (
        workspace.replacing("extract", [PLAN]) as scratch,
        reporter.task("extract: planning", total=len(parts), unit="shards") as task,
    ):
        calls = (
            (_plan_shard, (spec, activity, part, scratch.location, f"part-{number:06d}"))
            for number, part in enumerate(parts)
        )
        for count in bounded(calls):
            rows += count
            task.advance(prompts=count)
    workspace.write_json(_DOCUMENT, {"identity": identity, "rows": rows})
    return Plan(identity, rows)


@ray.remote
def _plan_shard(
    wording: Prompting, activity: Activity | None, shard: Shard, target: str, part: str
) -> int:
    """Render the prompts of a shard into one file; returns their number."""
    workspace = Workspace(wording.location)
    shown = load(workspace, shard)
    subjects = Subjects(shown, wording.renderer, wording.limits)
    known = _imported(workspace, shard.kind)
    standing = kept(workspace, shard.kind, shown.ids)
    quiet = _quiet(activity, shard.kind, shown.ids, wording.min_interactions)
    rows: list[PlannedRow] = []
    for prompt in subjects:
        key = prompt.subject_id
        if key in known:
            rows.append(PlannedRow(key, known[key], None, []))
        elif key in standing and not _has_drifted(standing[key], prompt, wording.moved_share):
            rows.append(standing[key])
        elif key not in quiet:
            address = wording.prompt_keys.of(prompt.subject_kind, prompt.body)
            rows.append(PlannedRow(key, address, prompt.body, subjects.shown(key)))
    # Prompts that begin alike stand together: the engine computes their common prefix once.
    rows.sort(key=lambda row: row.body or "")
    table = plan_table(shard.kind, rows)
    Workspace(target).write_table(PLAN, table, part=part, row_group_rows=_ROW_GROUP_ROWS)
    return len(rows)


def _has_drifted(standing: PlannedRow, prompt: Prompt, share: float) -> bool:
    """Whether a single id's prompt would show much that is new; clusters drift by their members."""
    if prompt.subject_kind not in {"user", "item"} or standing.body is None:
        return False
    lines = Counter(prompt.body.splitlines())
    new = (lines - Counter(standing.body.splitlines())).total()
    return new > 0 and new >= share * lines.total()


def _quiet(
    activity: Activity | None, kind: SubjectKind, ids: list[str], least: int
) -> frozenset[str]:
    """Single ids with too few interactions to be asked about alone."""
    if activity is None or kind not in {"user", "item"}:
        return frozenset()
    counts = counts_of(activity, SIDE_OF[kind], ids)
    return frozenset(key for key, count in zip(ids, counts, strict=True) if count < least)


def _imported(workspace: Workspace, kind: SubjectKind) -> dict[str, str]:
    """Address of the imported knowledge of each subject that has some."""
    rows = knowledge_import.read_imported(
        workspace, columns=[SUBJECT_KIND, SUBJECT_ID, PROMPT_HASH]
    )
    rows = rows.filter(pc.equal(rows[SUBJECT_KIND], kind))
    return dict(zip(rows[SUBJECT_ID].to_pylist(), rows[PROMPT_HASH].to_pylist(), strict=True))


def _identity(config: RekiConfig, workspace: Workspace, wording: Prompting) -> str:
    tables = [schema.ITEMS, schema.USERS, schema.INTERACTIONS, schema.CUTS]
    if wording.mode != "individual":
        tables += schema.CLUSTERS.values()
    engine = config.extract.engine
    identity = {
        "format": _FORMAT,
        "tables": {table.path: workspace.identify(table) for table in tables},
        "imported": knowledge_import.identify(config),
        "kept": workspace.identify(KEPT),
        "min_interactions": wording.min_interactions,
        "moved_share": wording.moved_share,
        "mode": wording.mode,
        "prompts": config.prompts.model_dump(mode="json"),
        "model": engine.model,
        "revision": engine.revision,
        "sampling": config.extract.sampling.model_dump(mode="json"),
        "request": request_identity(config.extract),
        "withheld": engine.withhold if isinstance(engine, OpenAiEngine) else (),
        # A scenario of the user's own may change behind an unchanged path.
        "frames": [
            wording.renderer.template.identity(kind)
            for kind in ("item", "user", "item_cluster", "user_cluster")
        ],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
