"""A cell of several values is a list, whichever program wrote it."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reki_ray.data.list_cells import to_lists
from reki_ray.errors import DataError

WORDS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), max_size=4)


def lists(*cells: str, separator: str = "|") -> list[list[str]]:
    found, bad, nested = to_lists(pa.chunked_array([cells]), separator, where="here")
    assert not bad.any()
    assert not nested.any()
    return found


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ("['a' 'b'\n 'c']", ["a", "b", "c"]),
        ("[a, Children's, c d]", ["a", "Children's", "c d"]),
        ("('a', 'b')", ["a", "b"]),
        ("('a',)", ["a"]),
        ("{'a', \"b's\"}", ["a", "b's"]),
        ('{a,"b c"}', ["a", "b c"]),
        ("[]", []),
        ("{}", []),
        ("()", []),
        ("[None, 'a', nan]", ["a"]),
        ('[1995, 2.50, true, null, "a"]', ["1995", "2.50", "true", "a"]),
        ("[a|b", ["[a", "b"]),
        ("[1] first|second", ["[1] first", "second"]),
        ("(unknown)", ["(unknown)"]),
        ("['a' 'b' ... 'z']", ["a", "b", "z"]),
        ("['a', ..., 'z']", ["a", "z"]),
        ("['a', '...']", ["a", "..."]),
        ("[1. 2.5 nan ... 7]", ["1", "2.5", "7"]),
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("array([], dtype='<U1')", []),
        ("frozenset({'a'})", ["a"]),
        ("set()", []),
        ("deque(['a', 'b'], maxlen=3)", ["a", "b"]),
        ("WrappedArray(a, b c)", ["a", "b c"]),
        ("ArraySeq()", []),
        ('c("a", "b")', ["a", "b"]),
        ("[a|b]", ["a", "b"]),
        ("{a|b|None}", ["a", "b"]),
        ("['a|b']", ["a|b"]),
        ("[u'a', u\"b's\"]", ["a", "b's"]),
        ("[b'a', b'\\xc3\\xa9']", ["a", "é"]),
        ("[B's, C's, u's]", ["B's", "C's", "u's"]),
        ("[np.str_('a'), np.float64(1.5), Decimal('2')]", ["a", "1.5", "2"]),
        ("['np.str_(a)']", ["np.str_(a)"]),
        ("set(2)", ["set(2)"]),
        ("Array (used)", ["Array (used)"]),
        ("wait ...", ["wait ..."]),
        ("a|b", ["a", "b"]),
    ],
)
def test_lists_in_text(cell: str, expected: list[str]) -> None:
    assert lists(cell) == [expected]


def test_without_a_separator_a_cell_is_one_value() -> None:
    assert lists("['a', 'b']", separator="") == [["['a', 'b']"]]


@pytest.mark.parametrize(
    "cell",
    ["[{'id': 16, 'name': 'a'}]", '{"a": 1}', "[['a'], ['b']]", '["a", ["b"]]', "[array(['a'])]"],
)
def test_lists_of_lists_and_of_objects_are_masked(cell: str) -> None:
    _, _, nested = to_lists(pa.chunked_array([[cell, "a"]]), "|", where="here")
    assert nested.tolist() == [True, False]


def cleaned(words: list[str]) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in words if word.strip()))


@given(WORDS)
def test_what_json_python_and_numpy_write_comes_back(words: list[str]) -> None:
    cells = [json.dumps(words), json.dumps(words, ensure_ascii=False), str(words)]
    cells += [str(tuple(words))] if words else []
    cells.append(str(np.array(words, dtype=object)) if words else "[]")
    assert lists(*cells) == [cleaned(words)] * len(cells)


@given(st.lists(st.integers() | st.floats(allow_nan=False), min_size=2, max_size=4))
def test_numbers_of_numpy_come_back(numbers: list[float]) -> None:
    array = np.array(numbers, dtype=float)
    [found] = lists(str(array))
    with np.printoptions(threshold=2, edgeitems=1):
        [ends] = lists(str(array))
    shown = list(dict.fromkeys(word.removesuffix(".") for word in str(array)[1:-1].split()))
    assert found == shown
    assert set(ends) <= {*lists(str(array[[0, -1]]))[0], *found}
    assert lists(repr(np.array(["a", "b"])), str(list(np.array(["a", "b"])))) == [["a", "b"]] * 2


@given(WORDS)
def test_lists_in_a_frame_survive_csv(words: list[str]) -> None:
    text = pd.DataFrame({"genre": [words]}).to_csv(index=False)
    [cell] = pd.read_csv(io.StringIO(text), keep_default_na=False, lineterminator="\n")["genre"]
    assert lists(cell) == [cleaned(words)]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.string(), 2),
        pa.list_view(pa.string()),
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
        pa.list_(pa.string_view()),
    ],
    ids=str,
)
def test_arrow_lists_of_all_types(kind: pa.DataType) -> None:
    column = pa.chunked_array([pa.array([["a", "b"], None, ["c ", "c"]], kind).slice(1)])
    assert to_lists(column, "|", where="here")[0] == [[], ["c"]]


def test_numbers_in_lists_are_text_and_broken_cells_are_masked() -> None:
    assert to_lists(pa.chunked_array([[[1.0, 2.0]]]), "|", where="here")[0] == [["1", "2"]]
    values = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    column = pa.chunked_array([pa.ListArray.from_arrays([0, 2, 3], values)])
    found, bad, _ = to_lists(column, "|", where="here")
    assert (found[1], bad.tolist()) == (["c"], [True, False])
    with pytest.raises(DataError, match="list"):
        to_lists(pa.chunked_array([[[["a"]]]]), "|", where="here")
