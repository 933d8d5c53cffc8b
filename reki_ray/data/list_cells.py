"""Columns of attributes to lists of text: Arrow lists, cells with separators, JSON and Python."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pyarrow as pa

from reki_ray.data.parsing import as_mask, plain, to_text, unfit

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
    if pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type):
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
        offsets = chunk.offsets.to_numpy()
        try:
            text, wrong = to_text(pa.chunked_array([chunk.values]), where=where)
        except pa.ArrowException as error:
            raise unfit(cells.type, error, where=where) from error
        values = text.to_pylist()
        for row, present in enumerate(as_mask(chunk.is_valid())):
            start, end = offsets[row : row + 2] if present else (0, 0)
            bad[len(found)] = wrong[start:end].any()
            found.append(_clean(values[start:end]))
    return found, bad


def _written_list(cell: str) -> list[object] | None:
    """Values of a cell that is a list as a program writes it; None where it is none."""
    if cell[-1] != _CLOSED_BY[cell[0]]:
        return None
    try:
        parsed = json.loads(cell, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        items = _items(cell)
        return [_NESTED] if items is None and _is_literal(cell) else items
    if isinstance(parsed, dict) and parsed:
        return [_NESTED]
    return [_value(value) for value in parsed]


def _value(value: Any) -> object:
    if isinstance(value, list | dict):
        return _NESTED
    if isinstance(value, bool):
        return str(value).lower()
    return None if value in _NO_VALUE else value


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
