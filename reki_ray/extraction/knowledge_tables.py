"""Writes the knowledge tables that later stages read, from plan and answer cache.

Every planned subject ends exactly once per factor in `KNOWLEDGE` or once in `DEAD_LETTERS`;
subjects with equal prompts share an answer, and each gets its own rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from reki_ray import schema
from reki_ray.core.content_store import ContentIndex
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import bounded
from reki_ray.core.workspace import Workspace
from reki_ray.extraction import knowledge_import
from reki_ray.extraction.answer_cache import AnswerCache, digests_of
from reki_ray.extraction.plan_table import PLAN
from reki_ray.prompts.answer_stats import AnswerStats, stats_of_answers, stats_of_dead_letters

_LOST = "the engine gave neither an answer nor a reason"


@dataclass(frozen=True)
class SettledPlan:
    """Counts of a plan's subjects.

    Attributes:
        subjects: Planned subjects, and those with imported knowledge only.
        dead: Subjects without, each with a reason.
        prompt_tokens: Tokens of the answered prompts, each counted once.
        reason: Reason of the last dead subject; empty if there is none.
    """

    subjects: int
    answered: int
    dead: int
    prompts: int
    prompt_tokens: int
    generated_tokens: int
    reason: str
    stats: AnswerStats


def settle(workspace: Workspace, reporter: Reporter) -> SettledPlan:
    """Write `KNOWLEDGE` and `DEAD_LETTERS` of the current plan.

    Raises:
        DataError: Plan or answer cache is damaged.
    """
    location = workspace.location
    parts = workspace.parts(PLAN)
    index = _read_index.remote(location)
    (totals,) = bounded([(_totals, (location, index))])
    stats = AnswerStats()
    reason = ""
    with (
        workspace.replacing("extract", [schema.KNOWLEDGE, schema.DEAD_LETTERS]) as scratch,
        reporter.task("extract: settling", total=len(parts), unit="shards") as task,
    ):
        calls = ((_settle_part, (location, scratch.location, part, index)) for part in parts)
        for part_stats, last in bounded(calls):
            stats, reason = stats + part_stats, last or reason
            task.advance()
        (known,) = bounded([(_settle_imported, (location, scratch.location))])
    dead = sum(stats.quarantined.values())
    return SettledPlan(
        subjects=stats.answered + dead + known,
        answered=stats.answered + known,
        dead=dead,
        reason=reason,
        stats=stats,
        **totals,
    )


def compact(workspace: Workspace) -> None:
    """Merge small files of the answer cache, in a task to spare the driver's memory."""
    list(bounded([(_compact, (workspace.location,))]))


@ray.remote
def _compact(location: str) -> int:
    return AnswerCache(Workspace(location)).compact()


@ray.remote
def _read_index(location: str) -> ContentIndex:
    return AnswerCache(Workspace(location)).index()


@ray.remote
def _totals(location: str, index: ContentIndex) -> dict[str, int]:
    """Totals over the distinct prompts of the plan."""
    workspace = Workspace(location)
    digests = [
        digests_of(_plan(workspace, part, [schema.PROMPT_HASH])[schema.PROMPT_HASH])
        for part in workspace.parts(PLAN)
    ]
    distinct = np.unique(np.concatenate(digests))
    entries = index.find(distinct)
    entries = entries[entries >= 0]
    return {
        "prompts": len(distinct),
        **{
            name: int(index.columns[name][entries].sum(dtype=np.int64))
            for name in (schema.PROMPT_TOKENS, schema.GENERATED_TOKENS)
        },
    }


@ray.remote
def _settle_part(
    location: str, target: str, part: str, index: ContentIndex
) -> tuple[AnswerStats, str]:
    """Knowledge and dead letters of one file of the plan; returns counts and a reason."""
    workspace, scratch = Workspace(location), Workspace(target)
    cache = AnswerCache(workspace)
    rows = _plan(workspace, part, None)
    rows = rows.filter(pc.is_valid(rows[schema.BODY]))
    entries = index.find(digests_of(rows[schema.PROMPT_HASH]))
    name = PurePath(part).stem
    alive = pa.array(entries >= 0)
    stats = AnswerStats()
    if pc.any(alive).as_py():
        knowledge, stats = _knowledge(cache, rows.filter(alive), index, entries[entries >= 0])
        scratch.write_table(schema.KNOWLEDGE, knowledge, part=name)
    dead = rows.filter(pc.invert(alive))
    reason = ""
    if dead.num_rows:
        letters = _letters(cache.failures(), dead)
        scratch.write_table(schema.DEAD_LETTERS, letters, part=name)
        stats += stats_of_dead_letters(letters)
        reason = letters[schema.REASON][-1].as_py()
    return stats, reason


def _plan(workspace: Workspace, part: str, columns: list[str] | None) -> pa.Table:
    return pq.read_table(part, columns=columns, filesystem=workspace.arrow_filesystem)


def _knowledge(
    cache: AnswerCache, rows: pa.Table, index: ContentIndex, entries: np.ndarray
) -> tuple[pa.Table, AnswerStats]:
    """Rows of `KNOWLEDGE`, one per subject and factor, and statistics of the answers.

    Args:
        rows: N rows of `PLAN`.
        entries: (N,) entry of each row in the index.
    """
    files = index.file[entries]
    pieces, stats = [], AnswerStats()
    for file in np.unique(files):  # answers of a shard are mostly in a few files
        here = np.flatnonzero(files == file)
        answers = cache.read(index.files[file]).take(pa.array(index.row[entries[here]]))
        subjects = rows.select([schema.SUBJECT_KIND, schema.SUBJECT_ID]).take(pa.array(here))
        pieces.append(_by_factor(subjects, answers))
        stats += stats_of_answers(answers)
    return pa.concat_tables(pieces), stats


def _by_factor(subjects: pa.Table, answers: pa.Table) -> pa.Table:
    texts = answers[schema.TEXTS].combine_chunks()
    # Arrow's list_parent_indices does not accept maps.
    ends = texts.offsets.to_numpy()
    row = pa.array(np.repeat(np.arange(len(texts)), np.diff(ends)))
    begin, length = int(ends[0]), int(ends[-1] - ends[0])
    columns: dict[str, Any] = {name: subjects[name].take(row) for name in subjects.column_names}
    columns |= {
        schema.FACTOR: texts.keys.slice(begin, length),
        schema.TEXT: texts.items.slice(begin, length),
    }
    for name in schema.KNOWLEDGE_SCHEMA.names:
        if name not in columns:
            columns[name] = answers[name].take(row)
    return pa.table({name: columns[name] for name in schema.KNOWLEDGE_SCHEMA.names})


def _letters(failures: pa.Table, dead: pa.Table) -> pa.Table:
    failures = failures.take(np.arange(failures.num_rows)[::-1])  # the latest counts
    row = pc.index_in(dead[schema.PROMPT_HASH], value_set=failures[schema.PROMPT_HASH])
    failures = failures.take(row)
    columns = {
        name: dead[name] for name in (schema.SUBJECT_KIND, schema.SUBJECT_ID, schema.PROMPT_HASH)
    } | {
        schema.REASON: pc.fill_null(failures[schema.REASON], _LOST),
        schema.PROMPT: pc.if_else(pc.is_null(row), dead[schema.BODY], failures[schema.PROMPT]),
        schema.CREATED_AT: pc.fill_null(failures[schema.CREATED_AT], 0),
    }
    return pa.table({name: columns[name] for name in schema.DEAD_LETTERS_SCHEMA.names})


@ray.remote
def _settle_imported(location: str, target: str) -> int:
    """Write imported knowledge; returns the number of subjects."""
    rows = knowledge_import.read_imported(Workspace(location))
    if not rows.num_rows:
        return 0
    Workspace(target).write_table(schema.KNOWLEDGE, rows, part="imported")
    return int(rows.group_by([schema.SUBJECT_KIND, schema.SUBJECT_ID]).aggregate([]).num_rows)
