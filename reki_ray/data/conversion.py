"""Converts columns of any type to text, ids and numbers; invalid cells are masked."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.errors import DataError

NUMBER: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"
"""Pattern of a decimal number."""
_NUMERIC: Final = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
    pa.types.is_decimal,
)
_ENCODINGS: Final[tuple[tuple[Callable[..., bool], Callable[..., Any]], ...]] = (
    (pa.types.is_dictionary, lambda array: _plain(array.dictionary).take(array.indices)),
    (pa.types.is_run_end_encoded, pc.run_end_decode),
    (pa.types.is_string_view, lambda array: array.cast(pa.string())),
    (pa.types.is_binary_view, lambda array: array.cast(pa.binary())),
)
"""Encodings of a column, and how to undo each."""
_CONTROL: Final = r"[\x00-\x1f\x7f]"
_ROWS: Final = 65_536
"""Rows of a chunk: a string array holds at most 2 GiB."""


def to_text(column: pa.ChunkedArray, *, where: str) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Strip the text of a column of strings, numbers, booleans or times; `where` is for the error.

    Returns:
        Strings with null for empty cells (N,), and the mask (N,) of cells that are not UTF-8.
    """
    return _text(plain(column, where=where), where=where)


def to_id(column: pa.ChunkedArray, *, where: str) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Ids of a column: as `to_text`, but binary keys of 16 bytes as UUIDs, others in hex."""
    cells = plain(column, where=where)
    if _is_binary(cells.type) and _holds_keys(cells):
        cells = pa.chunked_array([_key_text(chunk) for chunk in cells.chunks], pa.string())
    return _text(cells, where=where)


def to_number(
    column: pa.ChunkedArray, *, where: str, decimal: str = "."
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert a column of numbers, or of text with a decimal mark.

    Returns:
        Values (N,) float64, NaN if missing; mask (N,) of missing cells; mask (N,) of cells that are
        not finite numbers.
    """
    cells = plain(column, where=where)
    if any(is_kind(cells.type) for is_kind in _NUMERIC):
        missing = as_mask(pc.is_null(cells, nan_is_null=True))
        values = _floats(cells)
        return values, missing, np.isinf(values)
    text, bad = _text(cells, where=where)
    missing = as_mask(pc.is_null(text)) & ~bad
    if decimal != ".":
        text = with_point(text, decimal)
    fits = pc.fill_null(pc.match_substring_regex(text, NUMBER), False)
    text = pc.if_else(fits, pc.utf8_ltrim(text, "+"), pa.scalar(None, pa.string()))
    values = _floats(text)
    wrong = bad | ~(as_mask(fits) | missing) | np.isinf(values)
    return values, missing, wrong


def with_point(text: pa.ChunkedArray, decimal: str) -> pa.ChunkedArray:
    """Replace the decimal mark by a point; an existing point is doubled, so that it is invalid."""
    return pc.replace_substring(pc.replace_substring(text, ".", ".."), decimal, ".")


def plain(column: pa.ChunkedArray, *, where: str) -> pa.ChunkedArray:
    """Decode dictionaries, runs, views and extension types (UUIDs as text), in small chunks."""
    try:
        chunks = [
            _plain(chunk.slice(start, _ROWS))
            for chunk in column.chunks
            for start in range(0, len(chunk), _ROWS)
        ]
        kind = chunks[0].type if chunks else _plain(pa.nulls(0, column.type)).type
        return pa.chunked_array(chunks, kind)
    except pa.ArrowException as error:
        raise unfit(column.type, error, where=where) from error


def unfit(kind: pa.DataType, error: Exception | str, *, where: str) -> DataError:
    """Error for a column of an unsuitable type."""
    return DataError(
        f"the column has type {kind}, which is not text: {error}",
        where=where,
        todo="Map a text or number column, or write this one as text.",
    )


def as_mask(array: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Mask (N,) of booleans without nulls."""
    if isinstance(array, pa.ChunkedArray):
        values: np.ndarray = array.to_numpy()
    else:
        values = array.to_numpy(zero_copy_only=False)
    return values.astype(bool, copy=False)


def _plain(array: pa.Array) -> pa.Array:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        is_uuid = kind.extension_name == "arrow.uuid"
        return _key_text(array.storage) if is_uuid else _plain(array.storage)
    for is_kind, decode in _ENCODINGS:
        if is_kind(kind):
            return _plain(decode(array))
    return array


def _text(cells: pa.ChunkedArray, *, where: str) -> tuple[pa.ChunkedArray, np.ndarray]:
    kind = cells.type
    bad = np.zeros(len(cells), dtype=bool)
    try:
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            cells = _integral(cells)
        elif pa.types.is_timestamp(kind) and kind.tz is not None:  # its zone may not exist here
            cells = cells.cast(pa.int64()).cast(pa.timestamp(kind.unit))
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind):
            pairs = [_utf8(chunk) for chunk in cells.chunks]
            text = pa.chunked_array([strings for strings, _ in pairs], pa.string())
            if pairs:
                bad = np.concatenate([wrong for _, wrong in pairs])
        else:
            text = cells.cast(pa.string())
        text = pc.utf8_trim_whitespace(text)
        return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text), bad
    except pa.ArrowException as error:
        raise unfit(kind, error, where=where) from error


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _utf8(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Strings from text or bytes, neither of which files validate."""
    if pa.types.is_fixed_size_binary(array.type):
        array = array.cast(pa.binary())
    try:
        text = array.cast(pa.string())
        text.validate(full=True)
        return text, np.zeros(len(array), dtype=bool)
    except pa.ArrowInvalid:
        cells = array.cast(pa.large_binary()).to_pylist()
    decoded: list[str | None] = []
    bad = np.zeros(len(cells), dtype=bool)
    for row, cell in enumerate(cells):
        try:
            decoded.append(None if cell is None else cell.decode("utf-8"))
        except UnicodeDecodeError:
            decoded.append(None)
            bad[row] = True
    return pa.array(decoded, pa.string()), bad


def _holds_keys(cells: pa.ChunkedArray) -> bool:
    """Whether most of the first cells are bytes that are hardly text."""
    for chunk in cells.chunks:
        text, bad = _utf8(chunk)
        if len(text) > text.null_count + np.count_nonzero(bad) or bad.any():
            odd = as_mask(pc.fill_null(pc.match_substring_regex(text, _CONTROL), False)) | bad
            filled = np.count_nonzero(as_mask(chunk.is_valid()))
            return bool(2 * np.count_nonzero(odd) > filled)
    return False


def _key_text(array: pa.Array) -> pa.Array:
    keys: list[str | None] = []
    for cell in array.to_pylist():
        is_uuid = cell is not None and len(cell) == 16
        text = None if cell is None else cell.hex()
        keys.append(str(uuid.UUID(bytes=cell)) if is_uuid else text)
    return pa.array(keys, pa.string())


def _integral(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """Restore integer ids: a nullable integer column may have turned them into 1.0, 2.0, ..."""
    whole = pa.int64()
    if pa.types.is_decimal(cells.type):
        whole = pa.decimal256(76, 0) if cells.type.bit_width > 128 else pa.decimal128(38, 0)
    else:
        cells = pc.if_else(pc.is_nan(cells), pa.scalar(None, cells.type), cells)
    try:
        return cells.cast(whole)
    except pa.ArrowInvalid:
        return cells


def _floats(cells: pa.ChunkedArray) -> np.ndarray:
    values: np.ndarray = cells.cast(pa.float64(), safe=False).to_numpy()
    return values.astype(np.float64, copy=False)
