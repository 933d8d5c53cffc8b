"""Parquet files, read one by one so that a damaged one can be named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reki_ray.data.compression import HEAD, refuse_foreign
from reki_ray.data.conversion import plain
from reki_ray.data.raw_tables import (
    FilePart,
    RawTable,
    TableKind,
    read_files,
    reading_file,
    require_columns,
)
from reki_ray.errors import DataError


def read_parquet(kind: TableKind, paths: Sequence[Path], required: Sequence[str]) -> RawTable:
    """Read columns of Parquet files; others, often images or vectors, are never loaded.

    Raises:
        DataError: A file is missing or damaged (footer or page), or lacks a column, or the files
            disagree about the type of a column.
    """
    columns = list(dict.fromkeys(required))
    return read_files(kind, paths, lambda path: _read_file(path, columns), "#")


def read_header(path: Path) -> list[str]:
    """Column names of a Parquet file."""
    with reading_file(path), pq.ParquetFile(path) as file:
        names: list[str] = file.schema_arrow.names
    return names


def _read_file(path: Path, columns: list[str]) -> FilePart:
    with reading_file(path):
        if path.stat().st_size == 0:
            raise DataError("the file is empty", where=str(path), todo="Write rows into it.")
        with path.open("rb") as start:
            head = start.read(HEAD)
        if not head.startswith(b"PAR1"):
            refuse_foreign(path, head)
            raise DataError(
                "the file cannot be read: it is not Parquet",
                where=str(path),
                todo="Write it as Parquet; if it is CSV, set data.source.kind: csv.",
            )
        # In nanoseconds, the default, the year 9999 of Spark and Hive wraps around.
        with pq.ParquetFile(path, coerce_int96_timestamp_unit="us") as file:
            names, is_empty = file.schema_arrow.names, not file.metadata.num_rows
            require_columns(names, columns, where=str(path), is_empty=is_empty)
            # In batches: strings in lists are limited to 2 GiB per piece.
            batches = list(file.iter_batches(columns=columns))
            # Nested columns are mapped by their top-level name.
            kind = pa.schema([file.schema_arrow.field(name) for name in columns])
            table = pa.Table.from_batches([batch.select(columns) for batch in batches], kind)
    # Encodings of single files, such as dictionaries, would prevent concatenation.
    arrays = [plain(table[name], where=f"{path}, column {name}") for name in columns]
    numbers = np.arange(1, len(table) + 1, dtype=np.int64)
    return FilePart(pa.table(arrays, names=columns), numbers, [])
