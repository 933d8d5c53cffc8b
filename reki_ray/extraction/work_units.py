"""Pending prompts: those of the plan without an answer, each once, cut into work units."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from reki_ray.core.workspace import Workspace, reading
from reki_ray.extraction.answer_cache import AnswerCache, digests_of
from reki_ray.extraction.plan_table import PLAN
from reki_ray.schema import BODY, PROMPT_HASH, QUESTION_SCHEMA, Table

_ROW: Final = "row"

PENDING: Final = Table("extract/pending", pa.schema([pa.field(_ROW, pa.int32(), nullable=False)]))
"""Pending rows of the plan's files; each search for them writes files of its own."""

_DOCUMENT = "extract/asking.json"


@dataclass(frozen=True)
class WorkUnit:
    """Prompts that are asked, answered and saved together.

    Attributes:
        part: Name of the plan's file.
        start: First row of the unit among that file's pending rows.
        search: Ends the names of the files with the pending rows.
    """

    part: str
    start: int
    stop: int
    search: str = ""


@dataclass(frozen=True)
class PendingUnits:
    """Pending prompts of one attempt.

    Attributes:
        parts: Pending prompts by file of the plan.
        hits: Planned subjects whose prompt has an answer.
        prompts: Distinct prompts of the plan.
        search: Ends the names of the files with the pending rows.
    """

    parts: dict[str, int]
    hits: int
    prompts: int
    search: str = ""

    @property
    def rows(self) -> int:
        """Number of pending prompts."""
        return sum(self.parts.values())

    def units(self, rows: int, *, skip: int = 0, most: int | None = None) -> list[WorkUnit]:
        """Cut the pending prompts into work units, in the order of the plan.

        Args:
            rows: Largest number of prompts per unit.
            skip: Number of leading prompts to leave out.
            most: Largest number of prompts in all; None takes every one.
        """
        end = self.rows if most is None else skip + most
        units, offset = [], 0
        for part, count in self.parts.items():
            first, last = max(skip - offset, 0), min(end - offset, count)
            units += [
                WorkUnit(part, at, min(at + rows, last), self.search)
                for at in range(first, last, rows)
            ]
            offset += count
        return units


def begin(workspace: Workspace, plan: str) -> str:
    """Return the id of the plan's current attempt, or begin one.

    An attempt that was interrupted is resumed, so that its failures stay failures; after a
    finished one, the next retries what failed.
    """
    if workspace.exists(_DOCUMENT):
        document = workspace.read_json(_DOCUMENT)
        if document["plan"] == plan and not document["finished"]:
            return str(document["asking"])
    attempt_id = uuid.uuid4().hex
    workspace.write_json(_DOCUMENT, {"plan": plan, "asking": attempt_id, "finished": False})
    return attempt_id


def finish(workspace: Workspace, plan: str, attempt_id: str) -> None:
    """Finish an attempt that has no pending prompts left."""
    workspace.remove(PENDING.path)
    workspace.write_json(_DOCUMENT, {"plan": plan, "asking": attempt_id, "finished": True})


@ray.remote
def find_pending(location: str, attempt_id: str) -> PendingUnits:
    """Write `PENDING`: the prompts of a plan without an answer or a failure in this attempt.

    A task, as it takes some hundred bytes of memory per planned prompt.
    """
    workspace = Workspace(location)
    cache = AnswerCache(workspace)
    parts = workspace.parts(PLAN)
    columns = [PROMPT_HASH, BODY]
    tables = [
        pq.read_table(p, columns=columns, filesystem=workspace.arrow_filesystem) for p in parts
    ]
    digests = np.concatenate([digests_of(table[PROMPT_HASH]) for table in tables])
    # Imported knowledge has no body and needs no answer.
    imported = np.concatenate([pc.is_null(table[BODY]).to_numpy() for table in tables])
    file = np.repeat(np.arange(len(parts)), [table.num_rows for table in tables])
    row = np.concatenate([np.arange(table.num_rows) for table in tables])
    answered = (cache.index().find(digests) >= 0) | imported
    failed = np.isin(digests, digests_of(cache.failures(attempt_id)[PROMPT_HASH]))
    _, first = np.unique(digests, return_index=True)
    distinct = np.zeros(len(digests), dtype=bool)
    distinct[first] = True
    pending = distinct & ~answered & ~failed
    counts = {}
    # Never replaced: this task on a host that was cut off for a while may still run after another
    # host has repeated it, and would remove the files that the engines read.
    search = f".{uuid.uuid4().hex}"
    workspace.forget("extract")
    for number, part in enumerate(parts):
        rows = row[pending & (file == number)].astype(np.int32)
        if len(rows):
            name = PurePath(part).stem
            workspace.write_table(PENDING, pa.table({_ROW: rows}), part=f"{name}{search}")
            counts[name] = len(rows)
    return PendingUnits(counts, hits=int(answered.sum()), prompts=len(first), search=search)


def read_unit(workspace: Workspace, unit: WorkUnit) -> pa.Table:
    """Read the questions of a work unit, rows of `QUESTION_SCHEMA`."""
    plan = workspace.path(PLAN.path, f"{unit.part}.parquet")
    with reading(PLAN, plan), workspace.filesystem.open(plan, "rb") as opened:
        pending = pq.read_table(
            workspace.path(PENDING.path, f"{unit.part}{unit.search}.parquet"),
            filesystem=workspace.arrow_filesystem,
        )
        rows = pending[_ROW].to_numpy()[unit.start : unit.stop]
        source = pq.ParquetFile(opened)
        groups, start = [QUESTION_SCHEMA.empty_table()], 0
        for number in range(source.num_row_groups):
            stop = start + source.metadata.row_group(number).num_rows
            here = rows[(start <= rows) & (rows < stop)] - start
            if len(here):
                group = source.read_row_group(number, columns=QUESTION_SCHEMA.names)
                groups.append(group.take(pa.array(here)).cast(QUESTION_SCHEMA))
            start = stop
    return pa.concat_tables(groups)
