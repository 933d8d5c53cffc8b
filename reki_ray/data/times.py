"""Converts columns of any type to times, and guesses units of unreadable cells."""

from __future__ import annotations

import calendar
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_DOWN, Context, Decimal
from functools import lru_cache
from itertools import product
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.config.ingest import EPOCH_UNITS
from reki_ray.data.conversion import NUMBER, as_mask, plain, to_number, to_text, with_point
from reki_ray.errors import DataError

USUAL_SINCE: Final = 631_152_000
"""1990-01-01: interactions are later, and numbers in a wrong unit rarely are."""

_NANOS: Final = 10**9
TICKS: Final = range(630_822_816 * _NANOS, 646_602_048 * _NANOS)
"""The years 2000 to 2050 in .NET ticks; as nanoseconds they would all be in 1990."""
_LARGEST: Final = 2**63 - 1
_INTEGER: Final = r"^-?[0-8]?[0-9]{1,18}$"
"""Integers that fit 64 bits."""
_EXACT: Final = Context(prec=60, rounding=ROUND_DOWN)
_FRACTION: Final = re.compile(r"(?<=:\d\d)[.,](\d+)")
_ZONE: Final = re.compile(r"\s*(?:UTC|GMT)$")
_SPACED_OFFSET: Final = re.compile(r"\s+(?=[+-]\d\d:?\d\d$)")
_BASIC_DATE_DIGITS: Final = 8

_DATES: Final = (
    *("%Y-%m-%d", "%Y/%m/%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y"),
    *("%m/%d/%y", "%d/%m/%y", "%d-%b-%Y", "%d %b %Y", "%b %d, %Y", "%B %d, %Y", "%m %d, %Y"),
)
_CLOCKS: Final = ("", " %H:%M:%S", " %H:%M", " %I:%M:%S %p", " %I:%M %p", " %H:%M:%S.%f")
_FORMATS: Final = (
    *(date + clock for date, clock in product(_DATES, _CLOCKS)),
    *("%a %b %d %H:%M:%S %z %Y", "%a, %d %b %Y %H:%M:%S %z", "%d/%b/%Y:%H:%M:%S %z"),
)
_REMEMBERED: Final = 65_536
_Read = Callable[[str], tuple[int, int]]
"""Reads text as seconds and nanoseconds, or raises `ValueError`."""
_COMPACT: Final = {8: "%Y%m%d", 14: "%Y%m%d%H%M%S"}
"""Number of digits -> format without separators."""


@dataclass(frozen=True)
class Times:
    """Times of N cells.

    Args:
        seconds: Whole seconds since the epoch, (N,) int64; 0 without a time.
        nanoseconds: Remainder, (N,) int64, below 10**9.
        missing: Mask (N,) of empty cells.
        wrong: Mask (N,) of unreadable cells.
    """

    seconds: np.ndarray
    nanoseconds: np.ndarray
    missing: np.ndarray
    wrong: np.ndarray


def to_times(column: pa.ChunkedArray, unit: str, *, where: str, decimal: str = ".") -> Times:
    """Times of a column.

    All but Arrow's time types have a unit: a key of `EPOCH_UNITS` for numbers since the epoch, iso
    (ISO 8601), or a format of `datetime.strptime`; without an offset, times are UTC.

    Raises:
        DataError: The column has another type.
    """
    cells = plain(column, where=where)
    kind = cells.type
    if pa.types.is_timestamp(kind):
        return _of_integers(cells.cast(pa.int64()), EPOCH_UNITS[kind.unit])
    if pa.types.is_date(kind):
        milliseconds = cells.cast(pa.date64()).cast(pa.int64())
        return _of_integers(milliseconds, EPOCH_UNITS["ms"])
    if pa.types.is_boolean(kind) or pa.types.is_time(kind) or pa.types.is_duration(kind):
        raise DataError(
            f"the column has type {kind}, which is not a point in time",
            where=where,
            todo="Map a column of timestamps, dates, numbers since the epoch, or text.",
        )
    per_second = EPOCH_UNITS.get(unit)
    if per_second and pa.types.is_integer(kind):
        return _of_integers(cells, per_second)
    if per_second and pa.types.is_floating(kind):
        return _of_floats(*to_number(cells, where=where), per_second)
    text, bad = to_text(cells, where=where)
    read = iso_time if unit == "iso" else _formatted(unit)
    if per_second:
        text = text if decimal == "." else with_point(text, decimal)
        if not bad.any() and pc.all(pc.match_substring_regex(text, _INTEGER)).as_py():
            return _of_integers(text.cast(pa.int64()), per_second)
        read = _of_number(per_second)
    return _of_text(text, bad, read)


def iso_time(text: str) -> tuple[int, int]:
    """Seconds and nanoseconds of an ISO 8601 time, also with `UTC` or `GMT` at its end."""
    if text.isdecimal() and len(text) != _BASIC_DATE_DIGITS:
        raise ValueError(f"{text} is a number")  # Python reads some numbers of 13 digits as times
    text = _SPACED_OFFSET.sub("", _ZONE.sub("", text))
    fraction = _FRACTION.search(text)
    if fraction is None:
        return _since_epoch(datetime.fromisoformat(text))
    seconds, _ = _since_epoch(datetime.fromisoformat(_FRACTION.sub("", text, count=1)))
    return seconds, int(fraction[1][:9].ljust(9, "0"))


def guess_units(cells: Sequence[str], latest: int) -> list[str]:
    """Guess `timestamp_unit` from sample cells (stripped) and the latest valid time, seconds.

    Returns:
        The units, `iso` or formats under which most cells, and as many as under any other, are
        times between `USUAL_SINCE` and `latest`; may be empty.
    """
    if cells and all(cell.isdecimal() and int(cell) in TICKS for cell in cells):
        return []
    readers = {unit: _of_number(per_second) for unit, per_second in EPOCH_UNITS.items()}
    if not any(char.isdecimal() for cell in cells for char in cell):
        return []
    if all(cell.isdecimal() for cell in cells):
        readers |= {layout: _formatted(layout, size) for size, layout in _COMPACT.items()}
    else:
        readers |= {"iso": iso_time, **{layout: _formatted(layout) for layout in _FORMATS}}
    fits = {
        unit: sum(_fits(read, cell, latest) for cell in cells) for unit, read in readers.items()
    }
    most = max(fits.values())
    return [unit for unit, count in fits.items() if count == most and 2 * count > len(cells)]


def _fits(read: _Read, cell: str, latest: int) -> bool:
    try:
        return USUAL_SINCE <= read(cell)[0] <= latest
    except (ValueError, OverflowError):
        return False


def _of_number(per_second: int) -> _Read:
    """Read numbers exactly: in float64, nanoseconds lose a quarter of a microsecond."""

    def read(text: str) -> tuple[int, int]:
        if not re.match(NUMBER, text) or math.isinf(float(text)):
            raise ValueError(f"{text} is not a finite number")
        exact = _EXACT.multiply(Decimal(text), _NANOS // per_second)
        seconds, nanoseconds = divmod(int(exact), _NANOS)
        return min(max(seconds, -_LARGEST), _LARGEST), nanoseconds

    return read


def _formatted(layout: str, size: int | None = None) -> _Read:
    """Read a format of `strptime`; of digits only, that would also accept fewer than `size`."""

    def read(text: str) -> tuple[int, int]:
        if size not in (None, len(text)):
            raise ValueError(f"{text} does not have {size} digits")
        return _since_epoch(datetime.strptime(text, layout))

    return read


def _since_epoch(moment: datetime) -> tuple[int, int]:
    # A time without an offset is UTC.
    return calendar.timegm(moment.utctimetuple()), moment.microsecond * 1000


def _of_integers(cells: pa.ChunkedArray, per_second: int) -> Times:
    missing = as_mask(pc.is_null(cells))
    values = pc.fill_null(cells, 0).to_numpy()
    if values.dtype == np.uint64:
        values = np.minimum(values, np.uint64(_LARGEST))
    values = values.astype(np.int64, copy=False)
    seconds = values // per_second
    nanoseconds = (values - seconds * per_second) * (_NANOS // per_second)
    return Times(seconds, nanoseconds, missing, np.zeros(len(missing), dtype=bool))


def _of_floats(
    values: np.ndarray, missing: np.ndarray, wrong: np.ndarray, per_second: int
) -> Times:
    known = np.where(missing | wrong, 0.0, values) / per_second
    known = np.clip(known, -9.2e18, 9.2e18)
    seconds = np.floor(known)
    nanoseconds = np.minimum(((known - seconds) * _NANOS).astype(np.int64), _NANOS - 1)
    return Times(seconds.astype(np.int64), nanoseconds, missing, wrong)


def _of_text(text: pa.ChunkedArray, bad: np.ndarray, read: _Read) -> Times:
    read = lru_cache(_REMEMBERED)(read)  # values repeat, and parsing is slow
    values = np.zeros((2, len(text)), dtype=np.int64)
    wrong = bad.copy()
    cells = (cell for chunk in text.chunks for cell in chunk.to_pylist())
    for row, cell in enumerate(cells):
        if cell is not None:
            try:
                values[:, row] = read(cell)
            except (ValueError, OverflowError):
                wrong[row] = True
    return Times(values[0], values[1], as_mask(pc.is_null(text)) & ~bad, wrong)
