"""Columns of any type to text, numbers, times and lists; what does not parse is masked."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.errors import DataError

_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"
_NUMERIC = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)


def to_text(column: pa.ChunkedArray, *, where: str) -> tuple[pa.Array, np.ndarray]:
    """Text of a column, without surrounding blanks.

    Args:
        column: Strings, numbers, booleans or dates, (N,).
        where: Name of the column for the error message.

    Returns:
        Strings with null for empty cells (N,), and the mask (N,) of cells that are not UTF-8.

    Raises:
        DataError: The column is nested.
    """
    array = _plain(column)
    if pa.types.is_floating(array.type):
        array = _integral(array)
    if _is_text(array.type) or pa.types.is_binary(array.type):
        array, bad = _utf8(array)
    else:
        bad = np.zeros(len(array), dtype=bool)
        try:
            array = array.cast(pa.string())
        except pa.ArrowNotImplementedError as error:
            raise DataError(
                f"the column has type {array.type}, which is no text",
                where=where,
                todo="Map a text or number column, or write this one as text.",
            ) from error
    array = pc.utf8_trim_whitespace(array)
    return pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array), bad


def to_number(column: pa.ChunkedArray, *, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of a column.

    Args:
        column: Numbers or text, (N,).
        where: Name of the column for the error message.

    Returns:
        Values (N,) float64, NaN where there is none; mask (N,) of missing cells; mask (N,) of
        cells that are no finite numbers.

    Raises:
        DataError: The column is nested.
    """
    array = _plain(column)
    if any(is_kind(array.type) for is_kind in _NUMERIC):
        missing = _mask(pc.is_null(array, nan_is_null=True))
        values = _floats(array)
        return values, missing, np.isinf(values)
    text, bad = to_text(column, where=where)
    missing = _mask(pc.is_null(text)) & ~bad
    fits = pc.fill_null(pc.match_substring_regex(text, _NUMBER), False)
    text = pc.if_else(fits, pc.utf8_ltrim(text, "+"), pa.scalar(None, pa.string()))
    values = _floats(text)
    wrong = bad | ~(_mask(fits) | missing) | np.isinf(values)
    return values, missing, wrong


def to_seconds(
    column: pa.ChunkedArray, unit: str, *, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times of a column, seconds since the epoch.

    Args:
        column: Numbers, text, or Arrow timestamps and dates, (N,). Arrow's own time types know
            their unit; `unit` is for the others.
        unit: s, ms or iso (ISO 8601; without an offset it counts as UTC).
        where: Name of the column for the error message.

    Returns:
        Whole seconds (N,) float64, NaN where there are none; masks (N,) of missing and of
        unreadable cells.

    Raises:
        DataError: The column is nested.
    """
    array = _plain(column)
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        nanoseconds = array.cast(pa.timestamp("us")).cast(pa.int64())
        seconds = np.floor(_floats(nanoseconds) / 1e6)
        return seconds, np.isnan(seconds), np.zeros(len(array), dtype=bool)
    if unit == "iso":
        return _iso_seconds(column, where=where)
    values, missing, wrong = to_number(column, where=where)
    return np.floor(values / 1000 if unit == "ms" else values), missing, wrong


def to_lists(
    column: pa.ChunkedArray, separator: str, *, where: str
) -> tuple[list[list[str]], np.ndarray]:
    """Values of an attribute column: cells of several values are split.

    Args:
        column: Lists of text, or text or numbers, (N,).
        separator: Between the values of a text cell; empty splits nothing.
        where: Name of the column for the error message.

    Returns:
        N lists without blanks and duplicates, in order, empty where there is no value; and the
        mask (N,) of text cells that are not UTF-8.

    Raises:
        DataError: The column holds something else, or lists that are not UTF-8.
    """
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        try:
            cells = column.cast(pa.list_(pa.string())).to_pylist()
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise DataError(
                f"the lists hold {kind.value_type}, which is no UTF-8 text",
                where=where,
                todo="Write the values as lists of text.",
            ) from error
        return [_clean(cell or []) for cell in cells], np.zeros(len(cells), dtype=bool)
    text, bad = to_text(column, where=where)
    cells = text.to_pylist()
    if not separator:
        return [_clean([cell]) for cell in cells], bad
    return [_clean(cell.split(separator)) if cell else [] for cell in cells], bad


def _clean(values: list[str | None]) -> list[str]:
    return list(dict.fromkeys(v.strip() for v in values if v and v.strip()))


def _plain(column: pa.ChunkedArray) -> pa.Array:
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _utf8(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Strings of text or bytes; neither is checked by the files it comes from."""
    try:
        text = array.cast(pa.string())
        text.validate(full=True)
        return text, np.zeros(len(array), dtype=bool)
    except pa.ArrowInvalid:
        cells = array.cast(pa.binary()).to_pylist()
    decoded = [_decode(cell) for cell in cells]
    bad = [cell is not None and text is None for cell, text in zip(cells, decoded, strict=True)]
    return pa.array(decoded, pa.string()), np.array(bad, dtype=bool)


def _decode(cell: bytes | None) -> str | None:
    try:
        return cell.decode("utf-8") if cell is not None else None
    except UnicodeDecodeError:
        return None


def _integral(array: pa.Array) -> pa.Array:
    """Ids that a nullable integer column turned into 1.0, 2.0, ... become 1, 2, ... again."""
    array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    try:
        return array.cast(pa.int64())
    except pa.ArrowInvalid:
        return array


def _floats(array: pa.Array) -> np.ndarray:
    values: np.ndarray = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values.astype(np.float64, copy=False)


def _mask(array: pa.Array) -> np.ndarray:
    values: np.ndarray = array.to_numpy(zero_copy_only=False)
    return values.astype(bool, copy=False)


def _iso_seconds(
    column: pa.ChunkedArray, *, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    text, bad = to_text(column, where=where)
    missing = _mask(pc.is_null(text)) & ~bad
    seconds = np.array([_iso(cell) for cell in text.to_pylist()], dtype=np.float64)
    return seconds, missing, np.isnan(seconds) & ~missing


def _iso(text: str | None) -> float:
    if text is None:
        return float("nan")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return float("nan")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return float(np.floor(moment.timestamp()))
