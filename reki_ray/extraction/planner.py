"""The plan: every prompt of a run, rendered once by Ray tasks and saved on disk.

It can be read before any call, extraction needs no rows of subjects any more, and a rerun of the
same configuration over the same data reuses it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass

import pyarrow.compute as pc
import ray

from reki_ray import schema
from reki_ray.config import OpenAiEngine, RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import bounded
from reki_ray.core.workspace import Workspace
from reki_ray.data.interaction_counts import Activity, count_visible, counts_of
from reki_ray.extraction import knowledge_import
from reki_ray.extraction.answer_cache import PromptKeys
from reki_ray.extraction.model_identity import request_identity
from reki_ray.extraction.plan_table import KEPT, PLAN, PlannedRow, plan_table, read_kept
from reki_ray.extraction.shards import KINDS, Shard, cut_into_shards, load
from reki_ray.extraction.subjects import Subjects
from reki_ray.prompts.renderer import Prompt, Renderer, build_renderer
from reki_ray.schema import PROMPT_HASH, SIDE_OF, SUBJECT_ID, SUBJECT_KIND, SubjectKind

_DOCUMENT = "extract/plan.json"
_ROW_GROUP_ROWS = 1024
"""A work unit reads only the row groups that it touches."""

_FORMAT = 2
"""Raised when a change of code changes the plan for the same configuration and data."""


@dataclass(frozen=True)
class Prompting:
    """All that a task needs to render prompts and to address them.

    Attributes:
        location: The workspace, as other processes open it.
    """

    location: str
    config: RekiConfig
    renderer: Renderer
    prompt_keys: PromptKeys

    @property
    def min_interactions(self) -> int:
        """Interactions before the cut below which an id has no prompt of its own."""
        extract = self.config.extract
        return extract.min_interactions if extract.mode == "blend" else 0


def prompting(config: RekiConfig, workspace: Workspace) -> Prompting:
    """Derive from a configuration how its prompts are rendered and addressed.

    Raises:
        ConfigError: The scenario is unknown, or lacks a factor.
    """
    renderer = build_renderer(config.prompts, config.extract)
    keys = PromptKeys(renderer.template, config.extract)
    return Prompting(workspace.location, config, renderer, keys)


def make_plan(workspace: Workspace, wording: Prompting, reporter: Reporter) -> str:
    """Render all prompts into `PLAN`, unless it exists; returns the hash of what determines it.

    Raises:
        DataError: A table of ingest or, for collective knowledge, of cluster is missing or damaged.
    """
    shards = cut_into_shards(workspace, wording.config.extract.mode)
    identity = _identity(workspace, wording)
    if workspace.exists(_DOCUMENT) and workspace.read_json(_DOCUMENT)["identity"] == identity:
        return identity
    workspace.remove(_DOCUMENT)  # it must not describe tables that are being replaced
    rows = 0
    spec = ray.put(wording)
    activity = count_visible.remote(workspace.location) if wording.min_interactions else None
    with (
        workspace.replacing("extract", [PLAN]) as scratch,
        reporter.task("extract: planning", total=len(shards), unit="shards") as task,
    ):
        calls = (
            (_plan_shard, (spec, activity, shard, scratch.location, f"part-{number:06d}"))
            for number, shard in enumerate(shards)
        )
        for count in bounded(calls):
            rows += count
            task.advance(prompts=count)
    workspace.write_json(_DOCUMENT, {"identity": identity, "rows": rows})
    return identity


@ray.remote
def _plan_shard(
    wording: Prompting, activity: Activity | None, shard: Shard, target: str, part: str
) -> int:
    """Render the prompts of a shard into one file; returns their number."""
    workspace = Workspace(wording.location)
    shard_rows = load(workspace, shard)
    subjects = Subjects(shard_rows, wording.renderer, wording.config.prompts)
    moved_share = wording.config.cluster.drift.moved_share
    imported = _imported(workspace, shard.kind)
    earlier = read_kept(workspace, shard.kind, shard_rows.ids)
    inactive = _inactive(activity, shard.kind, shard_rows.ids, wording.min_interactions)
    rows: list[PlannedRow] = []
    for prompt in subjects:
        key = prompt.subject_id
        if key in imported:
            rows.append(PlannedRow(key, imported[key], None, []))
        elif key in earlier and not _has_drifted(earlier[key], prompt, moved_share):
            rows.append(earlier[key])
        elif key not in inactive:
            address = wording.prompt_keys.of(prompt.subject_kind, prompt.body)
            rows.append(PlannedRow(key, address, prompt.body, subjects.shown(key)))
    # Side by side if they begin alike: the engine computes their common prefix once.
    rows.sort(key=lambda row: row.body or "")
    table = plan_table(shard.kind, rows)
    Workspace(target).write_table(PLAN, table, part=part, row_group_rows=_ROW_GROUP_ROWS)
    return len(rows)


def _has_drifted(earlier: PlannedRow, prompt: Prompt, share: float) -> bool:
    """Whether a single id's prompt has many new lines; clusters drift by their members."""
    if prompt.subject_kind not in {"user", "item"} or earlier.body is None:
        return False
    lines = Counter(prompt.body.splitlines())
    new = (lines - Counter(earlier.body.splitlines())).total()
    return new > 0 and new >= share * lines.total()


def _inactive(
    activity: Activity | None, kind: SubjectKind, ids: list[str], least: int
) -> frozenset[str]:
    """Single ids with too few interactions for a prompt of their own."""
    if activity is None or kind not in {"user", "item"}:
        return frozenset()
    counts = counts_of(activity, SIDE_OF[kind], ids)
    return frozenset(key for key, count in zip(ids, counts, strict=True) if count < least)


def _imported(workspace: Workspace, kind: SubjectKind) -> dict[str, str]:
    """Subject id -> address of its imported knowledge."""
    columns = [SUBJECT_KIND, SUBJECT_ID, PROMPT_HASH]
    rows = knowledge_import.read_imported(workspace, columns=columns)
    rows = rows.filter(pc.equal(rows[SUBJECT_KIND], kind))
    return dict(zip(rows[SUBJECT_ID].to_pylist(), rows[PROMPT_HASH].to_pylist(), strict=True))


def _identity(workspace: Workspace, wording: Prompting) -> str:
    config, extract = wording.config, wording.config.extract
    tables = [schema.ITEMS, schema.USERS, schema.INTERACTIONS, schema.CUTS]
    if extract.mode != "individual":
        tables += schema.CLUSTERS.values()
    engine = extract.engine
    identity = {
        "format": _FORMAT,
        "tables": {table.path: workspace.identify(table) for table in tables},
        "imported": knowledge_import.identify(config),
        "kept": workspace.identify(KEPT),
        "min_interactions": wording.min_interactions,
        "moved_share": config.cluster.drift.moved_share,
        "mode": extract.mode,
        "prompts": config.prompts.model_dump(mode="json"),
        "model": engine.model,
        "revision": engine.revision,
        "sampling": extract.sampling.model_dump(mode="json"),
        "request": request_identity(extract),
        "withheld": engine.withhold if isinstance(engine, OpenAiEngine) else (),
        # The user's own scenario may change under an unchanged path.
        "frames": [wording.renderer.template.identity(kind) for kind in KINDS],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
