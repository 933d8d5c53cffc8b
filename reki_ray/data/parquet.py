"""Parquet files, read file by file so that a damaged one can be named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reki_ray.data.raw import Kind, RawTable, require_columns, unreadable
from reki_ray.errors import DataError


def read_parquet(kind: Kind, paths: Sequence[Path], required: Sequence[str]) -> RawTable:
    """Read some columns of Parquet files.

    Only those columns are read: catalogues often carry images or vectors beside them.

    Args:
        kind: Which table they hold.
        paths: Files.
        required: Columns to read; each file must have them.

    Raises:
        DataError: A file is missing or damaged (footer or page), or lacks a column, or the
            files disagree about a column's type.
    """
    tables = [_read_file(path, list(dict.fromkeys(required))) for path in paths]
    try:
        rows = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"the files of {kind} have different types: {error}",
            where=", ".join(str(path) for path in paths[:3]),
            todo="Write all files with the same schema.",
        ) from error
    return RawTable(
        kind=kind,
        rows=rows,
        files=tuple(str(path) for path in paths),
        file_of=np.repeat(np.arange(len(paths), dtype=np.int32), [len(t) for t in tables]),
        number_of=np.concatenate([np.arange(1, len(t) + 1, dtype=np.int64) for t in tables]),
        mark="#",
    )


def _read_file(path: Path, columns: list[str]) -> pa.Table:
    try:
        if path.stat().st_size == 0:
            raise DataError("the file is empty", where=str(path), todo="Write rows into it.")
        with pq.ParquetFile(path) as file:
            require_columns(file.schema_arrow.names, columns, where=str(path))
            # A column may be mapped although it has children; read() takes the top-level name.
            return file.read(columns=columns).select(columns)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
