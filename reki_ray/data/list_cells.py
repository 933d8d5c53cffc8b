"""Columns of attributes to lists of text: Arrow lists, cells with separators, JSON and Python."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.data.parsing import plain, to_text

_LISTS: Final = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_QUOTED: Final = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_BARE: Final = r"""[^\s,'"\[\]{}][^,"\[\]{}]*"""
_ITEM: Final = re.compile(rf"\s*(?:({_QUOTED})|({_BARE}))\s*(,|$)?", re.DOTALL)
_CLOSED_BY: Final = {"[": "]", "{": "}", "(": ")"}
_NO_VALUE: Final = frozenset({"None", "null", "NULL", "nan", "NaN"})
_NESTED: Final = object()
"""Stands for a value that is a list or an object itself."""


def to_lists(
    column: pa.ChunkedArray, separator: str, *, where: str
) -> tuple[list[list[str]], np.ndarray, np.ndarray]:
    """Values of an attribute column: cells of several values are split.

    A text cell is split at the separator, or is a list as JSON, Python, numpy or DuckDB write it:
    `["a", "b"]`, `['a', 'b']`, `['a' 'b']`, `[a, b]`.

    Args:
        column: Lists of text or numbers, or text or numbers, (N,).
        separator: Between the values of a text cell; empty splits nothing, lists neither.
        where: Name of the column for the error message.

    Returns:
        N lists without blanks and duplicates, in order, empty where there is no value; the mask
        (N,) of cells that are not UTF-8; the mask (N,) of text cells with lists of lists or of
        objects.

    Raises:
        DataError: The column holds something else, as lists of lists.
    """
    cells = plain(column, where=where)
    nested = np.zeros(len(cells), dtype=bool)
    if any(is_kind(cells.type) for is_kind in _LISTS):
        values, bad = _arrow_lists(cells, where=where)
        return values, bad, nested
    text, bad = to_text(cells, where=where)
    found = text.to_pylist()
    if not separator:
        return [_clean([cell]) for cell in found], bad, nested
    split: list[list[str]] = []
    for row, cell in enumerate(found):
        listed = _written_list(cell) if cell and cell[0] in _CLOSED_BY else None
        if listed is not None:
            nested[row] = any(value is _NESTED for value in listed)
            split.append(_clean(listed))
        else:
            split.append(_clean(cell.split(separator)) if cell else [])
    return split, bad, nested


def _arrow_lists(cells: pa.ChunkedArray, *, where: str) -> tuple[list[list[str]], np.ndarray]:
    found: list[list[str]] = []
    bad = np.zeros(len(cells), dtype=bool)
    for chunk in cells.chunks:
        # Not by casts and offsets: Arrow's cast of a slice of a list view is wrong.
        text, wrong = to_text(pa.chunked_array([chunk.flatten()]), where=where)
        values, start = text.to_pylist(), 0
        for length in pc.fill_null(pc.list_value_length(chunk), 0).to_pylist():
            end = start + length
            bad[len(found)] = wrong[start:end].any()
            found.append(_clean(values[start:end]))
            start = end
    return found, bad


def _written_list(cell: str) -> list[object] | None:
    """Values of a cell that is a list as a program writes it; None where it is none."""
    if cell[-1] != _CLOSED_BY[cell[0]]:
        return None
    try:
        parsed = json.loads(cell, parse_int=str, parse_float=str, parse_constant=_nothing)
    except (ValueError, RecursionError):
        items = _items(cell)
        return [_NESTED] if items is None and _is_literal(cell) else items
    if isinstance(parsed, dict) and parsed:
        return [_NESTED]
    return [_value(value) for value in parsed]


def _value(value: Any) -> object:
    if isinstance(value, list | dict):
        return _NESTED
    return str(value).lower() if isinstance(value, bool) else value


def _nothing(_: str) -> None:
    """What NaN and Infinity of JSON stand for."""


def _items(cell: str) -> list[object] | None:
    """Item by item: Python's own parser would join 'a' 'b', as numpy writes arrays, to 'ab'."""
    inner = cell[1:-1].strip()
    found: list[object] = []
    at, separated = 0, True
    while at < len(inner):
        item = _ITEM.match(inner, at)
        if item is None or (item[2] and (cell[0] == "(" or not separated)):
            return None  # (unknown) is a word in brackets, not a tuple
        try:
            value = ast.literal_eval(item[1]) if item[1] else item[2].strip()
        except (SyntaxError, ValueError):
            return None
        found.append(None if item[2] and value in _NO_VALUE else value)
        at, separated = item.end(), item[3] == ","
    return found


def _is_literal(cell: str) -> bool:
    try:
        ast.literal_eval(cell)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _clean(values: Iterable[object]) -> list[str]:
    texts = [value.strip() for value in values if isinstance(value, str)]
    return list(dict.fromkeys(text for text in texts if text))
