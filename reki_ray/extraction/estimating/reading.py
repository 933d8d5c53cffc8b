"""Parts of tables that an estimate reads, and what a sample tells of the whole."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reki_ray.core.workspace import Workspace, conform, reading
from reki_ray.schema import Table


def distinct(bodies: Sequence[str], subjects: int) -> float:
    """Number of distinct prompts among all subjects, from a random sample.

    The estimator Duj1 (Haas, Naughton, Seshadri, Stokes: "Sampling-based estimation of the
    number of distinct values of an attribute", VLDB 1995): n d / (n - f + f n / N) for n
    sampled, d distinct and f seen once. It takes a sample without repetition for no repetition
    at all.

    Args:
        bodies: Sampled prompts.
        subjects: Number of all subjects.
    """
    size = len(bodies)
    if not size or not subjects:
        return float(subjects)
    seen = Counter(bodies)
    if size >= subjects:
        return float(len(seen))
    once = sum(times == 1 for times in seen.values())
    return min(float(subjects), size * len(seen) / (size - once + once * size / subjects))


def count_rows(workspace: Workspace, table: Table) -> int:
    """Rows of a table, from the footers of its files; 0 where there is none."""
    return sum(_metadata(workspace, table, part).num_rows for part in workspace.parts(table))


def row_groups(workspace: Workspace, table: Table) -> list[tuple[str, int]]:
    """File and number of every row group of a table."""
    return [
        (part, group)
        for part in workspace.parts(table)
        for group in range(_metadata(workspace, table, part).num_row_groups)
    ]


def rows_with(workspace: Workspace, table: Table, key: str, ids: Sequence[str]) -> pa.Table:
    """Rows with some ids; only the row groups that may hold one of them are read.

    Args:
        workspace: Holds the table.
        table: Which table.
        key: Column of the ids.
        ids: Sorted.
    """
    assert table.schema is not None  # all tables that are sampled have a fixed schema
    wanted = pa.array(ids, pa.string())
    read = [table.schema.empty_table()]
    for part in workspace.parts(table):
        with reading(table, part), workspace.filesystem.open(part, "rb") as source:
            file = pq.ParquetFile(source)
            column = file.schema_arrow.get_field_index(key)
            for group in range(file.metadata.num_row_groups):
                bounds = file.metadata.row_group(group).column(column).statistics
                if bounds is None or not bounds.has_min_max or _within(ids, bounds):
                    rows = file.read_row_group(group)
                    rows = rows.filter(pc.is_in(rows[key], value_set=wanted))
                    read.append(conform(rows, table.schema, where=part))
    return pa.concat_tables(read)


def _within(ids: Sequence[str], bounds: pq.Statistics) -> bool:
    first = bisect_left(ids, bounds.min)
    return first < len(ids) and ids[first] <= bounds.max


def _metadata(workspace: Workspace, table: Table, part: str) -> pq.FileMetaData:
    with reading(table, part), workspace.filesystem.open(part, "rb") as source:
        return pq.ParquetFile(source).metadata
