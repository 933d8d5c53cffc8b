"""Columns of any type become text, numbers, times and lists, or are masked."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from reki_ray.data.conversion import to_number, to_text
from reki_ray.data.list_cells import to_lists
from reki_ray.data.times import to_times
from reki_ray.errors import DataError


def chunked(values: list[Any], kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (chunked([" a ", "", None, "  "]), ["a", None, None, None]),
        (chunked([7, None]), ["7", None]),
        (chunked([1.0, None, float("nan")]), ["1", None, None]),
        (chunked([1.5]), ["1.5"]),
        (chunked(["x", "x"]).dictionary_encode(), ["x", "x"]),
        (chunked([b"x"], pa.large_binary()), ["x"]),
    ],
)
def test_text(column: pa.ChunkedArray, expected: list[str | None]) -> None:
    values, bad = to_text(column, where="here")
    assert values.to_pylist() == expected
    assert not bad.any()


def test_text_that_is_not_utf8_is_masked() -> None:
    broken = pa.array([b"ok", b"\xff", None]).view(pa.string())
    values, bad = to_text(pa.chunked_array([broken]), where="here")
    assert values.to_pylist() == ["ok", None, None]
    assert bad.tolist() == [False, True, False]


def test_nested_columns_are_no_text() -> None:
    with pytest.raises(DataError, match="which is not text"):
        to_text(chunked([["a"]]), where="here")


def test_numbers_in_text() -> None:
    cells = ["3", "+4.5", " -1e2 ", ".5", "", None, "x", "nan", "inf", "0x1", "1_0", "1e999"]
    values, missing, wrong = to_number(chunked(cells), where="here")
    np.testing.assert_array_equal(values[:4], [3, 4.5, -100, 0.5])
    assert missing.tolist() == [False] * 4 + [True] * 2 + [False] * 6
    assert wrong.tolist() == [False] * 6 + [True] * 6


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (chunked([3, None], pa.int8()), [3, np.nan]),
        (chunked([True, False]), [1, 0]),
        (chunked([Decimal("3.50")]), [3.5]),
    ],
)
def test_numbers_of_other_types(column: pa.ChunkedArray, expected: list[float]) -> None:
    values, missing, wrong = to_number(column, where="here")
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(missing, np.isnan(expected))
    assert not wrong.any()


@pytest.mark.parametrize(
    ("column", "unit", "expected"),
    [
        (chunked(["978300760"]), "s", 978300760),
        (chunked([978300760.0]), "s", 978300760),
        (chunked([978300760999]), "ms", 978300760),
        (chunked(["2000-12-31T22:12:40"]), "iso", 978300760),
        (chunked(["2000-12-31 23:12:40.5+01:00"]), "iso", 978300760),
        (chunked(["2000-12-31T22:12:40Z"]), "iso", 978300760),
        (chunked([datetime(2000, 12, 31, 22, 12, 40)], pa.timestamp("ms")), "s", 978300760),
        (chunked([date(1970, 1, 2)]), "iso", 86400),
    ],
)
def test_times(column: pa.ChunkedArray, unit: str, expected: int) -> None:
    times = to_times(column, unit, where="here")
    assert times.seconds.tolist() == [expected]
    assert not times.missing.any()
    assert not times.wrong.any()


def test_unreadable_and_missing_iso_times_are_told_apart() -> None:
    times = to_times(chunked(["", "31.12.2000", "2000-13-01"]), "iso", where="here")
    assert times.missing.tolist() == [True, False, False]
    assert times.wrong.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("column", "separator", "expected"),
    [
        (chunked(["a| b||a", None, ""]), "|", [["a", "b"], [], []]),
        (chunked(["a|b"]), "", [["a|b"]]),
        (chunked([["a", None, "a"], None]), "|", [["a"], []]),
        (chunked([1995]), "|", [["1995"]]),
    ],
)
def test_lists(column: pa.ChunkedArray, separator: str, expected: list[list[str]]) -> None:
    values, bad, nested = to_lists(column, separator, where="here")
    assert values == expected
    assert not bad.any()
    assert not nested.any()
