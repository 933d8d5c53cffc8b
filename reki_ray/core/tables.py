"""Parts of tables that are too large for the memory of one process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reki_ray import schema
from reki_ray.core.workspace import Workspace, conform, reading
from reki_ray.schema import ITEM_ID, USER_ID, Side, Table

ENTITIES: Final[dict[Side, tuple[Table, str]]] = {
    "users": (schema.USERS, USER_ID),
    "items": (schema.ITEMS, ITEM_ID),
}
"""Table of each side and its column of ids."""


@dataclass(frozen=True)
class RowGroup:
    """Row group of a file of a table."""

    path: str
    number: int


def row_groups(workspace: Workspace, table: Table) -> list[RowGroup]:
    """All row groups of a table, in row order."""
    workspace.read_table(table, columns=[])  # raises if it is missing
    groups = []
    for path in workspace.parts(table):
        with reading(table, path), workspace.filesystem.open(path, "rb") as source:
            count = pq.ParquetFile(source).num_row_groups
        groups += [RowGroup(path, number) for number in range(count)]
    return groups


def read_row_group(workspace: Workspace, table: Table, group: RowGroup) -> pa.Table:
    """Read a row group of a table with a fixed schema."""
    assert table.schema is not None
    with reading(table, group.path), workspace.filesystem.open(group.path, "rb") as source:
        rows = pq.ParquetFile(source).read_row_group(group.number)
    return conform(rows, table.schema, where=group.path)


def rows_of(
    workspace: Workspace,
    table: Table,
    key: str,
    ids: pa.Array | pa.ChunkedArray,
    columns: list[str] | None = None,
) -> pa.Table:
    """Read the rows of a table with these ids in column `key`; unknown ids are skipped.

    Raises:
        DataError: The table is damaged, or has another schema.
    """
    assert table.schema is not None
    fields = (
        table.schema if columns is None else pa.schema([table.schema.field(c) for c in columns])
    )
    if not len(ids):
        return fields.empty_table()
    # The range lets the reader skip row groups; tables are (nearly) sorted by id.
    bounds = pc.min_max(ids).as_py()
    within = (pc.field(key) >= bounds["min"]) & (pc.field(key) <= bounds["max"])
    with reading(table, workspace.path(table.path)):
        rows = workspace.dataset(table).to_table(
            filter=within & pc.field(key).isin(ids), columns=columns
        )
    return conform(rows, fields, where=workspace.path(table.path))
