"""String columns beyond the 2 GiB limit of an Arrow string array."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

_BOUND: Final = 2**31 - 1
"""Bytes of a column up to which its strings fit one array."""
_PIECE: Final = 2**20
"""Rows of a chunk of strings: 2 KiB per row."""


def wide(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column that can be hashed and concatenated: equal values, as large strings if needed."""
    is_large = pa.types.is_string(column.type) and column.nbytes > _BOUND
    return column.cast(pa.large_string()) if is_large else column


def narrow(values: pa.Array, kind: pa.DataType) -> pa.ChunkedArray:
    """An array of N values in chunks of a table's type."""
    return take(pa.chunked_array([values]), kind, np.arange(len(values)))


def take(column: pa.ChunkedArray, kind: pa.DataType, order: np.ndarray) -> pa.ChunkedArray:
    """Values of a column at rows (K,), in chunks of a table's type."""
    whole = wide(column).combine_chunks()  # once: otherwise every take concatenates it
    pieces = [
        whole.take(pa.array(order[start : start + _PIECE])).cast(kind)
        for start in range(0, len(order), _PIECE)
    ]
    return pa.chunked_array(pieces, kind)


def take_rows(rows: pa.Table, order: np.ndarray) -> pa.Table:
    """Rows (K,) of a table, in that order."""
    return pa.table(
        [take(rows[field.name], field.type, order) for field in rows.schema], schema=rows.schema
    )
