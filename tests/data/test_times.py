"""Times keep the source's full precision, and say what they look like where they do not fit."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reki_ray.config import ColumnMapping
from reki_ray.config.ingest import EPOCH_UNITS
from reki_ray.data.times import guess_units, to_times
from reki_ray.errors import DataError

LATEST = 4_102_444_800


def times(cells: list[Any], unit: str = "s", kind: pa.DataType | None = None) -> list[Any]:
    """Seconds and nanoseconds of each cell; None where there is no time."""
    found = to_times(pa.chunked_array([pa.array(cells, kind)]), unit, where="here")
    readable = ~(found.missing | found.wrong)
    pairs = zip(found.seconds.tolist(), found.nanoseconds.tolist(), strict=True)
    return [pair if ok else None for pair, ok in zip(pairs, readable, strict=True)]


@pytest.mark.parametrize(
    ("cell", "unit", "expected"),
    [
        (1_600_000_000_123_456_789, "ns", (1_600_000_000, 123_456_789)),
        ("1600000000123456789", "ns", (1_600_000_000, 123_456_789)),
        (-1, "ms", (-1, 999_000_000)),
        ("-1.5", "s", (-2, 500_000_000)),
        ("1600000000.123456789", "s", (1_600_000_000, 123_456_789)),
        ("1600000000123.25", "ms", (1_600_000_000, 123_250_000)),
        ("1.6e9", "s", (1_600_000_000, 0)),
        (1_600_000_000.25, "s", (1_600_000_000, 250_000_000)),
        ("2020-09-13", "iso", (1_599_955_200, 0)),
        ("20200913", "iso", (1_599_955_200, 0)),
        ("2020-09-13 12:26:40 UTC", "iso", (1_600_000_000, 0)),
        ("2020-09-13 12:26:40.5 +0000 UTC", "iso", (1_600_000_000, 500_000_000)),
        ("2020-09-13T14:26:40,123456789+02:00", "iso", (1_600_000_000, 123_456_789)),
        ("1600000000000", "iso", None),
        ("09/13/2020 12:26:40 PM", "%m/%d/%Y %I:%M:%S %p", (1_600_000_000, 0)),
        ("13.09.2020", "%m/%d/%Y", None),
        (20200913, "%Y%m%d", (1_599_955_200, 0)),
        ("9999-12-31", "iso", (253_402_214_400, 0)),
    ],
)
def test_times_of_cells(cell: Any, unit: str, expected: tuple[int, int] | None) -> None:
    assert times([cell], unit) == [expected]


@pytest.mark.parametrize("unit", list(EPOCH_UNITS))
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_arrow_s_own_types_know_their_unit(unit: str, zone: str | None) -> None:
    seconds = 1_600_000_000
    array = pa.array([seconds * EPOCH_UNITS[unit], None]).cast(pa.timestamp(unit, zone))
    assert times(array.to_pylist() if unit != "ns" else [seconds * 10**9, None], "ms", array.type)
    found = to_times(pa.chunked_array([array]), "ms", where="here")
    assert found.seconds.tolist() == [seconds, 0]
    assert found.missing.tolist() == [False, True]


def test_dates_and_the_never_date() -> None:
    assert times([date(9999, 12, 31), date(1970, 1, 2)]) == [(253_402_214_400, 0), (86_400, 0)]
    assert times([2**62], "s", pa.uint64())[0] == (2**62, 0)


@pytest.mark.parametrize("kind", [pa.bool_(), pa.time64("us"), pa.duration("s")])
def test_what_is_no_point_in_time_is_refused(kind: pa.DataType) -> None:
    with pytest.raises(DataError, match="not a point in time"):
        to_times(pa.chunked_array([pa.nulls(1, kind)]), "s", where="here")


@given(
    st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)),
    st.integers(-14, 14),
    st.sampled_from(["iso", "ns", "us", "timestamp"]),
)
def test_a_moment_is_the_same_however_it_is_written(moment: datetime, hours: int, way: str) -> None:
    aware = moment.replace(tzinfo=timezone(timedelta(hours=hours)))
    since = aware - datetime(1970, 1, 1, tzinfo=UTC)
    micros = since // timedelta(microseconds=1)
    cells = {
        "iso": (aware.isoformat(" "), "iso", None),
        "ns": (str(micros * 1000), "ns", None),
        "us": (micros, "us", None),
        "timestamp": (aware, "s", pa.timestamp("us", "UTC")),
    }
    cell, unit, kind = cells[way]
    assert times([cell], unit, kind) == [(micros // 10**6, micros % 10**6 * 1000)]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1600000000", "1600086400"], ["s"]),
        (["1600000000123"] * 3, ["ms"]),
        (["1600000000123456"], ["us"]),
        (["1600000000123456789"], ["ns"]),
        (["20200913", "20201224"], ["%Y%m%d"]),
        (["20200913122640"], ["%Y%m%d%H%M%S"]),
        (["2020-09-13 12:26:40 UTC"], ["iso"]),
        (["09/13/2020 12:26:40 PM"] * 2 + ["n/a"], ["%m/%d/%Y %I:%M:%S %p"]),
        (["01/02/2020", "03/04/2021"], ["%m/%d/%Y", "%d/%m/%Y"]),
        (["13.09.2020 12:26"], ["%d.%m.%Y %H:%M"]),
        (["Sun Sep 13 12:26:40 +0000 2020"], ["%a %b %d %H:%M:%S %z %Y"]),
        (["5", "17"], []),
        (["noon", "1600000000", "never"], []),
        ([], []),
    ],
)
def test_cells_look_like_their_unit(cells: list[str], expected: list[str]) -> None:
    assert guess_units(cells, LATEST) == expected


@pytest.mark.parametrize("cells", [["09/13/2020 12:26:40 PM"], ["1600000000123"], ["20200913"]])
def test_what_cells_look_like_can_be_set_and_reads_them(cells: list[str]) -> None:
    [unit] = guess_units(cells, LATEST)
    assert ColumnMapping(timestamp_unit=unit).timestamp_unit == unit
    [(seconds, _)] = times(cells, unit)
    assert seconds // 86_400 == 1_600_000_000 // 86_400


@pytest.mark.parametrize("unit", ["seconds", "%H:%M", "%Y-%m", "%Q %d", "", "%"])
def test_a_unit_that_reads_no_day_is_refused(unit: str) -> None:
    with pytest.raises(ValueError, match="neither one of s, ms, us, ns and iso nor a format"):
        ColumnMapping(timestamp_unit=unit)


def test_parsing_repeated_texts_keeps_their_rows() -> None:
    cells = ["2020-09-13", None, "2020-09-14", "2020-09-13", "bad"]
    column = pa.chunked_array([cells[:2], cells[2:]])
    found = to_times(column, "iso", where="here")
    np.testing.assert_array_equal(found.seconds // 86_400, [18518, 0, 18519, 18518, 0])
    assert found.missing.tolist() == [False, True, False, False, False]
    assert found.wrong.tolist() == [False, False, False, False, True]
