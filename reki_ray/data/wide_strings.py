"""Columns of strings that together pass the 2 GiB which one Arrow string array can hold."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

_BOUND: Final = 2**31 - 1
"""Bytes of a column up to which its strings fit one array, whatever is done with them."""
_PIECE: Final = 2**20
"""Rows of a piece that is a string array again: 2 KiB a row."""


def wide(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column that can be hashed and put together as a whole: equal, its type perhaps larger."""
    is_large = pa.types.is_string(column.type) and column.nbytes > _BOUND
    return column.cast(pa.large_string()) if is_large else column


def narrow(values: pa.Array, kind: pa.DataType) -> pa.ChunkedArray:
    """An array in pieces of a table's type.

    Args:
        values: Of a wide column or another, N.
        kind: Type of the table's column.
    """
    return take(pa.chunked_array([values]), kind, np.arange(len(values)))


def take(column: pa.ChunkedArray, kind: pa.DataType, order: np.ndarray) -> pa.ChunkedArray:
    """Values of a column in another order, as a table's column.

    Args:
        column: N values.
        kind: Type of the table's column.
        order: Row indices, (K,).
    """
    whole = wide(column).combine_chunks()  # once: otherwise every take puts it together
    pieces = [
        whole.take(pa.array(order[start : start + _PIECE])).cast(kind)
        for start in range(0, len(order), _PIECE)
    ]
    return pa.chunked_array(pieces, kind)


def take_rows(rows: pa.Table, order: np.ndarray) -> pa.Table:
    """Rows of a table in another order.

    Args:
        rows: N rows.
        order: Row indices, (K,).
    """
    return pa.table(
        [take(rows[field.name], field.type, order) for field in rows.schema], schema=rows.schema
    )
