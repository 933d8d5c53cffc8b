"""The plan as a table: the prompt of each subject, also those kept from an earlier round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reki_ray.core.tables import rows_of
from reki_ray.core.workspace import Workspace, reading
from reki_ray.schema import BODY, PROMPT_HASH, SHOWN, SUBJECT_ID, SUBJECT_KIND, SubjectKind, Table

PLAN: Final = Table(
    "extract/plan",
    pa.schema(
        [
            pa.field(SUBJECT_KIND, pa.string(), nullable=False),
            pa.field(SUBJECT_ID, pa.string(), nullable=False),
            pa.field(PROMPT_HASH, pa.string(), nullable=False),
            # Last message of the prompt; null for imported knowledge, which needs no answer.
            pa.field(BODY, pa.string()),
            # Members in the prompt of a cluster, nearest first; empty for a single id.
            pa.field(SHOWN, pa.list_(pa.string()), nullable=False),
        ]
    ),
)
"""Prompts of the current configuration, one row per subject."""

KEPT: Final = Table("extract/kept", PLAN.schema)
"""Prompts of an earlier round that stay valid, whatever their subjects would show today."""


class PlannedRow(NamedTuple):
    """A row of the plan, without its kind."""

    subject_id: str
    address: str
    body: str | None
    shown: list[str]


def plan_table(kind: SubjectKind, rows: Sequence[PlannedRow]) -> pa.Table:
    """Rows of `PLAN` of one kind."""
    assert PLAN.schema is not None
    records = [dict(zip(PLAN.schema.names, (kind, *row), strict=True)) for row in rows]
    return pa.Table.from_pylist(records, schema=PLAN.schema)


def keep(earlier: Workspace, workspace: Workspace, again: Mapping[SubjectKind, set[str]]) -> None:
    """Write `KEPT`: the prompts of an earlier round, whose answers stay valid.

    Args:
        earlier: Holds the plan of that round.
        workspace: The next round, with the same model and prompts.
        again: Subjects whose prompts are rendered again.

    Raises:
        DataError: The earlier plan is missing or damaged.
    """
    earlier.read_table(PLAN, columns=[])  # reports a missing table
    with workspace.replacing("extract", [KEPT]) as scratch:
        for number, part in enumerate(earlier.parts(PLAN)):
            with reading(PLAN, part):
                rows = pq.read_table(part, filesystem=earlier.arrow_filesystem)
            kept = pc.is_valid(rows[BODY])
            for kind, ids in again.items():
                named = pc.is_in(rows[SUBJECT_ID], value_set=pa.array(sorted(ids), pa.string()))
                kept = pc.and_not(kept, pc.and_(pc.equal(rows[SUBJECT_KIND], kind), named))
            scratch.write_table(KEPT, rows.filter(kept), part=f"part-{number:06d}")


def read_kept(workspace: Workspace, kind: SubjectKind, ids: list[str]) -> dict[str, PlannedRow]:
    """Prompts of an earlier round by subject id; ids without one are left out."""
    if not workspace.has_table(KEPT):
        return {}
    rows = rows_of(workspace, KEPT, SUBJECT_ID, pa.array(ids, pa.string()))
    rows = rows.filter(pc.equal(rows[SUBJECT_KIND], kind))
    columns = (rows[name].to_pylist() for name in (SUBJECT_ID, PROMPT_HASH, BODY, SHOWN))
    return {row[0]: PlannedRow(*row) for row in zip(*columns, strict=True)}
