"""Converts attribute columns to lists of text: Arrow lists, separators, JSON and Python."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.data.conversion import plain, to_text

_LISTS: Final = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_QUOTED: Final = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_BARE: Final = r"""[^\s,'"\[\]{}][^,"\[\]{}]*"""
_PREFIXED: Final = rf"[ub](?:{_QUOTED})(?=\s*(?:,|$))"
_GAP: Final = r"\.\.\.(?=\s|,|$)"
_ITEM: Final = re.compile(rf"\s*(?:({_QUOTED}|{_PREFIXED})|({_GAP})|({_BARE}))\s*(,|$)?", re.DOTALL)
"""A quoted value, numpy's ellipsis, or a bare value."""
_SCALAR: Final = re.compile(
    rf"(?<![^\s,\[({{])(?:np\.\w+|Decimal|UUID)\(({_QUOTED}|[^\s()'\"]*)\)", re.DOTALL
)
_CALL: Final = re.compile(
    r"(?:(?P<bare>WrappedArray|ArraySeq|ArrayBuffer|ListBuffer|c(?=\(['\"]))"
    r"|(?:np\.|numpy\.)?array|list|set|frozenset|deque|Index)"
    r"\((?P<inner>.*?)\s*(?:,\s*(?:dtype|maxlen)=[^\[\]{}]*)?\)",
    re.DOTALL,
)
"""A list with the name of its type, from Python, Scala (Spark) and R."""
_WORD: Final = re.compile(
    r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?inf|nan|True|False|\.\.\."
)
"""Values that numpy separates by blanks."""
_CLOSED_BY: Final = {"[": "]", "{": "}", "(": ")"}
_NO_VALUE: Final = frozenset({"None", "null", "NULL", "nan", "NaN", "np.nan", "..."})
_NESTED: Final = object()
"""Marks a nested list or object."""


def to_lists(
    column: pa.ChunkedArray, separator: str, *, where: str
) -> tuple[list[list[str]], np.ndarray, np.ndarray]:
    """Values of an attribute column.

    A text cell is split at the separator, or parsed as a list written by JSON, Python, numpy or
    DuckDB: `["a", "b"]`, `['a', 'b']`, `['a' 'b']`, `[a, b]`, `[1 2]`, `[a|b]`, `array(['a'])`.

    Without a separator, text cells are never split or parsed.

    Returns:
        N lists without blanks and duplicates, in order; the mask (N,) of cells that are not UTF-8;
        the mask (N,) of text cells with nested lists or objects.

    Raises:
        DataError: The column has another type, for example lists of lists.
    """
    cells = plain(column, where=where)
    nested = np.zeros(len(cells), dtype=bool)
    if any(is_kind(cells.type) for is_kind in _LISTS):
        values, bad = _arrow_lists(cells, where=where)
        return values, bad, nested
    text, bad = to_text(cells, where=where)
    texts = text.to_pylist()
    if not separator:
        return [_clean([cell]) for cell in texts], bad, nested
    split: list[list[str]] = []
    for row, cell in enumerate(texts):
        listed = _written_list(_without_type(cell), separator) if cell else None
        if listed is not None:
            nested[row] = any(value is _NESTED for value in listed)
            split.append(_clean(listed))
        else:
            split.append(_clean(cell.split(separator)) if cell else [])
    return split, bad, nested


def _arrow_lists(cells: pa.ChunkedArray, *, where: str) -> tuple[list[list[str]], np.ndarray]:
    lists: list[list[str]] = []
    bad = np.zeros(len(cells), dtype=bool)
    for chunk in cells.chunks:
        # Not by casts and offsets: Arrow's cast of a slice of a list view is wrong.
        text, wrong = to_text(pa.chunked_array([chunk.flatten()]), where=where)
        values, start = text.to_pylist(), 0
        for length in pc.fill_null(pc.list_value_length(chunk), 0).to_pylist():
            end = start + length
            bad[len(lists)] = wrong[start:end].any()
            lists.append(_clean(values[start:end]))
            start = end
    return lists, bad


def _without_type(cell: str) -> str:
    """A cell with a list in brackets, without the name of its type before them."""
    call = _CALL.fullmatch(cell) if cell[-1] == ")" else None
    if call is None:
        return cell
    inner = call["inner"].strip()
    if call["bare"] or not inner:
        return f"[{inner}]"
    return inner if inner[0] in _CLOSED_BY else cell


def _written_list(cell: str, separator: str) -> list[object] | None:
    """Values of a cell that a program wrote as a list, or None."""
    if cell[-1] != _CLOSED_BY.get(cell[0]):
        return None
    try:
        parsed = json.loads(cell, parse_int=str, parse_float=str, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        items = _items(cell, separator)
        is_nested = items is None and ("array([" in cell or _is_literal(cell))
        return [_NESTED] if is_nested else items
    if isinstance(parsed, dict) and parsed:
        return [_NESTED]
    return [_value(value) for value in parsed]


def _value(value: Any) -> object:
    if isinstance(value, list | dict):
        return _NESTED
    return str(value).lower() if isinstance(value, bool) else value


def _items(cell: str, separator: str) -> list[object] | None:
    """Parse item by item: Python's parser would join numpy's 'a' 'b' to 'ab'."""
    inner = _SCALAR.sub(r"\1", cell[1:-1]).strip()
    words = inner.split()
    if cell[0] == "[" and len(words) > 1 and all(map(_WORD.fullmatch, words)):
        return [None if word in _NO_VALUE else word.removesuffix(".") for word in words]
    items: list[object] = []
    at, separated = 0, True
    while at < len(inner):
        item = _ITEM.match(inner, at)
        if item is None or (item[3] and (cell[0] == "(" or not separated)):
            return None  # (unknown) is a word in brackets, not a tuple
        if item[1]:
            try:
                value = ast.literal_eval(item[1])
                items.append(value.decode() if isinstance(value, bytes) else value)
            except (SyntaxError, ValueError):
                return None
        elif item[3]:
            value = item[3].strip()
            # A list of one bare value may hold several: [a|b].
            values = value.split(separator) if item[0].strip() == inner else [value]
            items += [None if text.strip() in _NO_VALUE else text for text in values]
        at, separated = item.end(), item[4] == ","
    return items


def _is_literal(cell: str) -> bool:
    try:
        ast.literal_eval(cell)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _clean(values: Iterable[object]) -> list[str]:
    texts = [value.strip() for value in values if isinstance(value, str)]
    return list(dict.fromkeys(text for text in texts if text))
