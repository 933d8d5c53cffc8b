"""Converts columns of any type to times, and guesses units of unreadable cells."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.config.ingest import EPOCH_UNITS
from reki_ray.data.conversion import as_mask, plain, to_number, to_text, with_point
from reki_ray.errors import DataError

USUAL_SINCE: Final = 631_152_000
"""1990-01-01: interactions are later, and numbers in a wrong unit rarely are."""

_NANOS: Final = 10**9
TICKS: Final = range(630_822_816 * _NANOS, 646_602_048 * _NANOS)
"""The years 2000 to 2050 in .NET ticks; as nanoseconds they would all be in 1990."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LARGEST: Final = 2**63 - 1
_DIGITS: Final = 18
"""Digits read of a fraction; an integer of this length fits 64 bits."""
_EXACT: Final = (
    rf"^(?P<sign>[+-]?)(?P<whole>[0-8]?[0-9]{{1,{_DIGITS}}})(?:\.(?P<fraction>[0-9]*))?$"
)
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
_Read = Callable[[str], tuple[int, int]]
"""Reads text as seconds and nanoseconds, or raises `ValueError`."""
_COMPACT: Final = {8: "%Y%m%d", 14: "%Y%m%d%H%M%S"}
"""Number of digits -> format without separators."""


@dataclass(frozen=True)
class Times:
    """Times of a column.

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

    Args:
        column: Numbers, text, or Arrow timestamps and dates, (N,).
        unit: For all but Arrow's time types: a key of `EPOCH_UNITS` for numbers since the epoch,
            iso (ISO 8601), or a format of `datetime.strptime`; UTC without an offset.

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
    if unit not in EPOCH_UNITS:
        return _of_text(cells, iso_time if unit == "iso" else _formatted(unit), where=where)
    if pa.types.is_integer(kind):
        return _of_integers(cells, EPOCH_UNITS[unit])
    if pa.types.is_floating(kind):
        return _of_floats(*to_number(cells, where=where), EPOCH_UNITS[unit])
    return _of_number_text(cells, EPOCH_UNITS[unit], where=where, decimal=decimal)


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
    readers: dict[str, _Read] = {unit: _of_number(unit) for unit in EPOCH_UNITS}
    if not any(char.isdecimal() for cell in cells for char in cell):
        return []
    if all(cell.isdecimal() for cell in cells):
        readers |= {_COMPACT[size]: _of_digits(size) for size in _COMPACT}
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


def _of_number(unit: str) -> _Read:
    return lambda text: (int(float(text)) // EPOCH_UNITS[unit], 0)


def _of_digits(size: int) -> _Read:
    """Read digits without separators; Python would also accept fewer."""
    layout = _formatted(_COMPACT[size])

    def read(text: str) -> tuple[int, int]:
        if len(text) != size:
            raise ValueError(f"{text} does not have {size} digits")
        return layout(text)

    return read


def _formatted(layout: str) -> _Read:
    return lambda text: _since_epoch(datetime.strptime(text, layout))


def _since_epoch(moment: datetime) -> tuple[int, int]:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    passed = moment - _EPOCH
    return passed.days * 86_400 + passed.seconds, passed.microseconds * 1000


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


def _of_number_text(cells: pa.ChunkedArray, per_second: int, *, where: str, decimal: str) -> Times:
    """Convert digits exactly: in float64, nanoseconds lose a quarter of a microsecond."""
    text, _ = to_text(cells, where=where)
    if decimal != ".":
        text = with_point(text, decimal)
    parts = pc.extract_regex(text, _EXACT)
    exact = as_mask(parts.is_valid())
    rest = _of_floats(*to_number(cells, where=where, decimal=decimal), per_second)
    sign, whole, fraction = (
        pc.fill_null(pc.struct_field(parts, name), "") for name in ("sign", "whole", "fraction")
    )
    values = _digits(pc.utf8_lpad(whole, 1, "0"))
    below = _digits(pc.utf8_slice_codeunits(pc.utf8_rpad(fraction, _DIGITS, "0"), 0, _DIGITS))
    seconds, left = values // per_second, values % per_second
    scale = _NANOS // per_second
    nanoseconds = left * scale + below // (10**_DIGITS // scale)
    negative = as_mask(pc.equal(sign, "-"))
    borrowed = negative & (nanoseconds > 0)
    seconds = np.where(negative, -seconds - borrowed, seconds)
    nanoseconds = np.where(borrowed, _NANOS - nanoseconds, nanoseconds)
    return Times(
        np.where(exact, seconds, rest.seconds),
        np.where(exact, nanoseconds, rest.nanoseconds),
        rest.missing,
        rest.wrong,
    )


def _digits(text: pa.ChunkedArray) -> np.ndarray:
    values: np.ndarray = text.cast(pa.int64()).to_numpy()
    return values


def _of_text(cells: pa.ChunkedArray, read: _Read, *, where: str) -> Times:
    text, bad = to_text(cells, where=where)
    missing = as_mask(pc.is_null(text)) & ~bad
    seconds, nanoseconds = (np.zeros(len(text), dtype=np.int64) for _ in range(2))
    wrong = bad.copy()
    start = 0
    for chunk in text.chunks:
        coded = chunk.dictionary_encode()  # values repeat, and parsing is slow
        rows = start + np.flatnonzero(as_mask(chunk.is_valid()))
        codes = coded.indices.drop_null().to_numpy()
        values = np.zeros((len(coded.dictionary), 2), dtype=np.int64)
        unread = np.zeros(len(values), dtype=bool)
        for code, cell in enumerate(coded.dictionary.to_pylist()):
            try:
                values[code] = read(cell)
            except (ValueError, OverflowError):
                unread[code] = True
        seconds[rows], nanoseconds[rows] = values[codes].T
        wrong[rows] |= unread[codes]
        start += len(chunk)
    return Times(seconds, nanoseconds, missing, wrong)
