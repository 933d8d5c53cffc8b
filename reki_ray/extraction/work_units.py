"""What is still to ask: planned prompts without an answer, each once, cut into work units."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from reki_ray.core.workspace import Workspace, reading
from reki_ray.extraction.answer_cache import AnswerCache, digests_of
from reki_ray.extraction.plan_table import PLAN
from reki_ray.extraction.planner import Plan
from reki_ray.schema import BODY, PROMPT_HASH, QUESTION_SCHEMA, Table

_ROW: Final = "row"

PENDING: Final = Table("extract/pending", pa.schema([pa.field(_ROW, pa.int32(), nullable=False)]))
"""Rows of the plan's file of the same name that are still to ask."""

_DOCUMENT = "extract/asking.json"


@dataclass(frozen=True)
class WorkUnit:
    """A work unit: what is asked, answered and kept together.

    Attributes:
        part: Name of the plan's file.
        start: First row of the unit among that file's pending rows.
        stop: Row after the last.
    """

    part: str
    start: int
    stop: int


@dataclass(frozen=True)
class PendingUnits:
    """What one asking still has to do.

    Attributes:
        parts: Pending prompts of each of the plan's files.
        hits: Planned subjects whose prompt is answered already.
        prompts: Distinct prompts of the plan.
    """

    parts: dict[str, int]
    hits: int
    prompts: int

    @property
    def rows(self) -> int:
        """Prompts to ask."""
        return sum(self.parts.values())

    def units(self, rows: int, *, skip: int = 0, most: int | None = None) -> list[WorkUnit]:
        """Work units in the order of the plan.

        Args:
            rows: Most prompts of a unit.
            skip: Leading prompts that are left out.
            most: Prompts in all; None takes every one.
        """
        stop = self.rows if most is None else skip + most
        found, begin = [], 0
        for part, count in self.parts.items():
            first, last = max(skip - begin, 0), min(stop - begin, count)
            found += [WorkUnit(part, at, min(at + rows, last)) for at in range(first, last, rows)]
            begin += count
        return found


def begin(workspace: Workspace, plan: Plan) -> str:
    """Identity of the current asking of a plan.

    An asking that was cut off goes on, so that its failures stay failures; after it has
    finished, the next one asks again what failed.
    """
    if workspace.exists(_DOCUMENT):
        document = workspace.read_json(_DOCUMENT)
        if document["plan"] == plan.identity and not document["finished"]:
            return str(document["asking"])
    asking = uuid.uuid4().hex
    _write(workspace, plan, asking, finished=False)
    return asking


def finish(workspace: Workspace, plan: Plan, asking: str) -> None:
    """End an asking: nothing is left that it could ask."""
    _write(workspace, plan, asking, finished=True)


def _write(workspace: Workspace, plan: Plan, asking: str, *, finished: bool) -> None:
    document = {"plan": plan.identity, "asking": asking, "finished": finished}
    workspace.write_json(_DOCUMENT, document)


@ray.remote
def find_pending(location: str, asking: str) -> PendingUnits:
    """Compare plan and ledger; writes `PENDING`.

    Holds some hundred bytes a planned prompt in memory, in a task and not in the driver.

    Args:
        location: The workspace.
        asking: Whose failures are final.

    Raises:
        DataError: Plan or ledger are damaged.
    """
    workspace = Workspace(location)
    ledger = AnswerCache(workspace)
    parts = workspace.parts(PLAN)
    tables = [_hashes(workspace, part) for part in parts]
    digests = np.concatenate([digests_of(table[PROMPT_HASH]) for table in tables])
    asked = np.concatenate([table[_ROW].to_numpy() for table in tables]).astype(bool)
    file = np.repeat(np.arange(len(parts)), [table.num_rows for table in tables])
    row = np.concatenate([np.arange(table.num_rows) for table in tables])
    answered = (ledger.index().find(digests) >= 0) | ~asked
    failed = np.isin(digests, digests_of(ledger.failures(asking)[PROMPT_HASH]))
    _, first = np.unique(digests, return_index=True)
    once = np.zeros(len(digests), dtype=bool)
    once[first] = True
    left = once & ~answered & ~failed
    counts = {}
    with workspace.replacing("extract", [PENDING]) as scratch:
        for number, part in enumerate(parts):
            rows = row[left & (file == number)].astype(np.int32)
            if len(rows):
                name = part.rpartition("/")[2].removesuffix(".parquet")
                scratch.write_table(PENDING, pa.table({_ROW: rows}), part=name)
                counts[name] = len(rows)
    return PendingUnits(counts, hits=int(answered.sum()), prompts=len(first))


def _hashes(workspace: Workspace, part: str) -> pa.Table:
    """Addresses of a file of the plan, and whether each is asked rather than imported."""
    source = pq.read_table(part, columns=[PROMPT_HASH, BODY], filesystem=workspace.arrow_filesystem)
    return pa.table({PROMPT_HASH: source[PROMPT_HASH], _ROW: pc.is_valid(source[BODY])})


def read_unit(workspace: Workspace, unit: WorkUnit) -> pa.Table:
    """The questions of a work unit.

    Returns:
        Rows of `QUESTION_SCHEMA`.

    Raises:
        DataError: The plan is damaged.
    """
    name = f"{unit.part}.parquet"
    plan = workspace.path(PLAN.path, name)
    with reading(PLAN, plan), workspace.filesystem.open(plan, "rb") as opened:
        pending = pq.read_table(
            workspace.path(PENDING.path, name), filesystem=workspace.arrow_filesystem
        )
        rows = pending[_ROW].to_numpy()[unit.start : unit.stop]
        source = pq.ParquetFile(opened)
        lengths = [
            source.metadata.row_group(group).num_rows for group in range(source.num_row_groups)
        ]
        ends = np.cumsum(lengths)
        groups = np.unique(np.searchsorted(ends, rows, side="right"))
        found = source.read_row_groups(groups.tolist(), columns=QUESTION_SCHEMA.names)
    # Row in the file -> row among the row groups that were read.
    starts = ends - lengths
    shift = np.cumsum([0, *np.array(lengths)[groups][:-1]]) - starts[groups]
    at = np.searchsorted(groups, np.searchsorted(ends, rows, side="right"))
    return found.take(pa.array(rows + shift[at])).cast(QUESTION_SCHEMA)
