"""Vectorised checks of every row: rows that pass fit the schema, others get a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.config import DataConfig
from reki_ray.config.ingest import EPOCH_UNITS
from reki_ray.data.conversion import as_mask, to_id, to_number, to_text
from reki_ray.data.dialects import number_hint
from reki_ray.data.quarantine import CheckedTable, Rejections, finish_check
from reki_ray.data.raw_tables import WRONG_ENCODING, MappedTable
from reki_ray.data.times import TICKS, USUAL_SINCE, Times, guess_units, to_times
from reki_ray.data.wide_strings import narrow, take_rows, wide
from reki_ray.errors import DataError
from reki_ray.schema import (
    ATTRIBUTES,
    IMAGE,
    INTERACTIONS_SCHEMA,
    ITEM_ID,
    ITEMS_SCHEMA,
    LABEL,
    MAX_ID_CHARS,
    RATING,
    TEXT,
    TIMESTAMP,
    TITLE,
    USER_ID,
    USERS_SCHEMA,
)

_UNIT_NAMES: Final = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
}
_UNIT_KEY: Final = "data.source.columns.timestamp_unit"
_USUAL_SHARE: Final = 0.1
"""Share of times since 1990 above which times are absolute, not relative to a first event."""
_SAMPLES: Final = 20
_FLOAT_ID: Final = r"^(-?[0-9]+)\.0$"


def check_items(table: MappedTable) -> CheckedTable:
    """Check items: each needs a unique id and a title."""
    return _check_catalogue(table, ITEM_ID, ITEMS_SCHEMA)


def check_users(table: MappedTable) -> CheckedTable:
    """Check users: each needs a unique id."""
    return _check_catalogue(table, USER_ID, USERS_SCHEMA)


def check_interactions(
    table: MappedTable,
    config: DataConfig,
    unit: str,
    *,
    users: pa.ChunkedArray | None,
    items: pa.ChunkedArray,
) -> CheckedTable:
    """Check interactions: known users (None without a users table) and items, in range, unique.

    Rows keep the order of the source, or are sorted by time at full precision if it has fractions
    of seconds.

    Raises:
        DataError: A column has an unsuitable type, or most timestamps have another unit than the
            configured one.
    """
    rejections = Rejections(len(table.raw.rows))
    notes: list[str] = []
    user_ids, item_ids = (_ids(table, name, rejections) for name in (USER_ID, ITEM_ID))
    times = _timestamps(table, config, unit, rejections)
    ratings, labels = _ratings_and_labels(table, config, rejections)
    user_ids = _matched(user_ids, users, USER_ID, rejections, notes)
    item_ids = _matched(item_ids, items, ITEM_ID, rejections, notes)
    for reason, mask in table.problems.items():
        rejections.reject(mask, reason)
    notes += _require_usual_times(table, times, config, unit, rejections.accepted)
    seconds = np.where(rejections.accepted, times.seconds, 0)
    rows = pa.table(
        {
            USER_ID: user_ids,
            ITEM_ID: item_ids,
            TIMESTAMP: pa.array(seconds),
            RATING: pa.array(ratings.astype(np.float32), from_pandas=True),  # NaN becomes null
            LABEL: pa.array(labels),
        }
    ).select(INTERACTIONS_SCHEMA.names)
    rejections.reject(repeated(rows, rejections.accepted), "duplicate interaction")
    checked = finish_check(table, rejections, rows, notes)
    nanoseconds = times.nanoseconds[rejections.accepted]
    if not nanoseconds.any():
        return checked
    # The table keeps whole seconds, so the order within a second is that of its rows.
    order = np.lexsort((nanoseconds, checked.rows[TIMESTAMP].to_numpy()))
    return replace(checked, rows=take_rows(checked.rows, order))


def _check_catalogue(table: MappedTable, key: str, schema: pa.Schema) -> CheckedTable:
    size = len(table.raw.rows)
    rejections = Rejections(size)
    ids = _ids(table, key, rejections)
    columns = {field.name: pa.nulls(size, field.type) for field in schema} | {key: ids}
    if ATTRIBUTES in table.columns:
        columns[ATTRIBUTES] = table.columns[ATTRIBUTES]
    for name in (TITLE, TEXT, IMAGE):
        if name in table.columns:
            columns[name], bad = to_text(table.columns[name], where=table.where(name))
            rejections.reject(bad, WRONG_ENCODING)
            if name == TITLE:
                rejections.reject(as_mask(pc.is_null(columns[name])), f"{TITLE} is missing")
    for reason, mask in table.problems.items():
        rejections.reject(mask, reason)
    # Only usable rows count: a broken row must not take the id of a good one.
    again = rejections.accepted.copy()
    order = np.flatnonzero(again)
    again[order[np.unique(_codes(ids)[order], return_index=True)[1]]] = False
    rejections.reject(again, f"duplicate {key}")
    return finish_check(table, rejections, pa.table(columns).select(schema.names))


def _ids(table: MappedTable, name: str, rejections: Rejections) -> pa.ChunkedArray:
    values, bad = to_id(table.columns[name], where=table.where(name))
    rejections.reject(bad, WRONG_ENCODING)
    rejections.reject(as_mask(pc.is_null(values)), f"{name} is missing")
    long = pc.fill_null(pc.greater(pc.utf8_length(values), MAX_ID_CHARS), False)
    rejections.reject(as_mask(long), f"{name} has more than {MAX_ID_CHARS} characters")
    return values


def _matched(
    ids: pa.ChunkedArray,
    known: pa.ChunkedArray | None,
    name: str,
    rejections: Rejections,
    notes: list[str],
) -> pa.ChunkedArray:
    """Ids as the catalogue writes them; unknown ones are rejected.

    pandas turns integer columns with gaps into floating point, and 16 becomes 16.0 in CSV.
    """
    if known is None:
        if not pc.all(pc.match_substring_regex(ids, _FLOAT_ID)).as_py():
            return ids
        notes.append(f"every {name} of the interactions is written like 1.0; read as 1")
        return pc.replace_substring_regex(ids, _FLOAT_ID, r"\1")
    missing = rejections.accepted & ~_is_in(ids, known)
    if missing.any():
        shorter = pc.replace_substring_regex(ids, _FLOAT_ID, r"\1")
        longer = pc.binary_join_element_wise(ids, ".0", "")
        other = pc.if_else(pc.equal(ids, shorter), longer, shorter)
        same = missing & _is_in(other, known)
        if same.any():
            row = int(np.flatnonzero(same)[0])
            notes.append(
                f"{np.count_nonzero(same)} interactions have {name} as {ids[row].as_py()!r}, which "
                f"the catalogue has as {other[row].as_py()!r}; treated as the same"
            )
            ids = pc.if_else(pa.array(same), other, ids)
            missing &= ~same
    hint = ""
    if missing.any() and len(known):
        shown = ", ".join(repr(value) for value in known.slice(0, 3).to_pylist())
        first = ids[int(np.flatnonzero(missing)[0])].as_py()
        hint = f"Interactions have {name} as {first!r}, the catalogue as {shown}."
    rejections.reject(missing, f"unknown {name}", hint)
    return ids


def _timestamps(table: MappedTable, config: DataConfig, unit: str, rejections: Rejections) -> Times:
    column, where = table.columns[TIMESTAMP], table.where(TIMESTAMP)
    times = to_times(column, unit, where=where, decimal=table.decimal)
    rejections.reject(times.missing, f"{TIMESTAMP} is missing")
    wrong = {"iso": "no ISO 8601 time"}.get(unit, f"{TIMESTAMP} does not fit {unit!r}")
    if unit in EPOCH_UNITS:
        wrong = f"{TIMESTAMP} is no number"
    rejections.reject(times.wrong, wrong, _unit_hint(table, times.wrong, config))
    late = times.seconds > config.latest
    if unit in EPOCH_UNITS and not pa.types.is_temporal(column.type):
        _reject_other_units(times, late, config, unit, rejections)
    hint = _unit_hint(table, late, config)
    outside = late | (times.seconds < config.earliest)
    rejections.reject(outside, f"{TIMESTAMP} is out of range", hint)
    return times


def _unit_hint(table: MappedTable, mask: np.ndarray, config: DataConfig) -> str:
    """Suggest a unit for the timestamps of a mask (N,), or an empty string."""
    cells = _cells(table, TIMESTAMP, mask)
    if units := guess_units(cells, config.latest):
        shown = " or ".join(map(repr, units[: 1 if units[0] == "iso" else 2]))
        return f"The cells look like {_UNIT_KEY}: {shown}."
    return number_hint(cells, delimited=table.raw.is_delimited)


def _reject_other_units(
    times: Times, late: np.ndarray, config: DataConfig, unit: str, rejections: Rejections
) -> None:
    """Reject numbers out of the usual range that another unit would make recent."""
    per_second = EPOCH_UNITS[unit]
    values = (times.seconds + times.nanoseconds / 1e9) * per_second
    reason = f"{TIMESTAMP} is out of range: it looks like"
    rejections.reject(
        late & (values >= TICKS.start) & (values < TICKS.stop),
        f"{reason} ticks of .NET",
        "Ticks are 100 ns since the year 1: convert them to seconds by (ticks - "
        f"621355968000000000) / 10000000, and set {_UNIT_KEY}: s.",
    )
    known = rejections.accepted & ~late
    early = known & (times.seconds < USUAL_SINCE)
    is_mixed = np.count_nonzero(known & ~early) >= _USUAL_SHARE * np.count_nonzero(known)
    early = early if is_mixed else early & (times.seconds < config.earliest)
    for other, factor in EPOCH_UNITS.items():
        if other == unit:
            continue
        scaled = values / factor
        fits = (scaled >= max(config.earliest, USUAL_SINCE)) & (scaled <= config.latest)
        wrong = (late if factor > per_second else early) & fits
        hint = f"Write all times in one unit, and set {_UNIT_KEY} to it."
        if 2 * np.count_nonzero(wrong) > len(wrong):
            hint = f"Set {_UNIT_KEY}: {other}."
        units = f"{_UNIT_NAMES[other]}, not {_UNIT_NAMES[unit]}"
        rejections.reject(wrong, f"{reason} {units}", hint)


def _require_usual_times(
    table: MappedTable, times: Times, config: DataConfig, unit: str, accepted: np.ndarray
) -> list[str]:
    """Reject old times that another unit would make recent; else a note on them."""
    seconds = times.seconds[accepted]
    if 2 * np.count_nonzero(seconds < USUAL_SINCE) <= len(seconds):
        return []
    median = float(np.median(seconds + times.nanoseconds[accepted] / 1e9))
    when = f"most timestamps are before 1990, the median is {np.datetime64(int(median), 's')}"
    right = "If the times are right, set data.latest to their end, so that no other unit fits."
    if unit not in EPOCH_UNITS or pa.types.is_temporal(table.columns[TIMESTAMP].type):
        # Seconds or milliseconds read as nanoseconds, pandas' default.
        if any(USUAL_SINCE <= median * 1000**power <= config.latest for power in (2, 3)):
            raise DataError(
                f"{when}: they look like numbers read in another unit",
                where=table.where(TIMESTAMP),
                todo="Convert the numbers again with their unit, in pandas with "
                f"to_datetime(numbers, unit='s'). {right}",
            )
    else:
        units = guess_units(_cells(table, TIMESTAMP, accepted), config.latest)
        if units and unit not in units:
            raise DataError(
                f"{when}: they look like {_UNIT_NAMES.get(units[0], units[0])}, not "
                f"{_UNIT_NAMES[unit]}",
                where=table.where(TIMESTAMP),
                todo=f"Set {_UNIT_KEY}: {units[0]!r}. {right}",
            )
    return [f"{when}; kept unchanged"]


def _cells(table: MappedTable, name: str, mask: np.ndarray) -> list[str]:
    """Some cells of a column, evenly spread over the rows of a mask."""
    column, rows = table.columns[name], np.flatnonzero(mask)
    rows = rows[:: max(1, len(rows) // _SAMPLES)]
    pieces = [piece for row in rows for piece in column.slice(row, 1).chunks]
    text, _ = to_text(pa.chunked_array(pieces, column.type), where=table.where(name))
    return [cell for cell in text.to_pylist() if cell]


def _ratings_and_labels(
    table: MappedTable, config: DataConfig, rejections: Rejections
) -> tuple[np.ndarray, np.ndarray]:
    """Ratings (N,) float64, NaN for a click, and labels (N,) int8."""
    size = len(table.raw.rows)
    ratings = np.full(size, np.nan)
    if RATING in table.columns:
        ratings, missing, wrong = to_number(
            table.columns[RATING], where=table.where(RATING), decimal=table.decimal
        )
        cells = _cells(table, RATING, wrong)
        hint = number_hint(cells, delimited=table.raw.is_delimited)
        rejections.reject(wrong, f"{RATING} is no number", hint)
        if LABEL not in table.columns:
            rejections.reject(missing, f"{RATING} is missing")
        outside = (ratings < config.rating_min) | (ratings > config.rating_max)
        rejections.reject(outside, f"{RATING} is out of range")
    if LABEL in table.columns:
        values, _, _ = to_number(table.columns[LABEL], where=table.where(LABEL))
        rejections.reject((values != 0) & (values != 1), f"{LABEL} is neither 0 nor 1")
        return ratings, (values == 1).astype(np.int8)
    if RATING in table.columns:
        return ratings, (ratings > config.positive_above).astype(np.int8)
    return ratings, np.ones(size, dtype=np.int8)  # an interaction without a rating is positive


def _is_in(values: pa.ChunkedArray, known: pa.ChunkedArray) -> np.ndarray:
    known = wide(known)
    return as_mask(pc.is_in(values.cast(known.type), value_set=known))


def _codes(values: pa.ChunkedArray) -> np.ndarray:
    """Equal integers for equal strings, (N,) int64."""
    coded = wide(values).dictionary_encode(null_encoding="encode")  # one dictionary for all chunks
    indices = [chunk.indices.to_numpy() for chunk in coded.chunks]
    codes: np.ndarray = np.concatenate(indices or [np.zeros(0)]).astype(np.int64)
    return codes


def repeated(events: pa.Table, counted: np.ndarray | None = None) -> npt.NDArray[np.bool_]:
    """Mask (N,) of rows that equal an earlier one of those counted (N,), or of all.

    Equal are user, item and time.
    """
    rows = np.arange(len(events)) if counted is None else np.flatnonzero(counted)
    user, item = _codes(events[USER_ID])[rows], _codes(events[ITEM_ID])[rows]
    pair = user * (item.max(initial=0) + 1) + item
    time = events[TIMESTAMP].to_numpy()[rows]
    order = np.lexsort((time, pair))  # stable: the first of equal rows stays first
    pair, time = pair[order], time[order]
    same = (pair[1:] == pair[:-1]) & (time[1:] == time[:-1])
    mask = np.zeros(len(events), dtype=bool)
    mask[rows[order[1:][same]]] = True
    return mask


def bare_users(ids: pa.Array) -> pa.Table:
    """Rows of users known only by their interactions."""
    columns = {field.name: pa.nulls(len(ids), field.type) for field in USERS_SCHEMA}
    return pa.table({**columns, USER_ID: narrow(ids, pa.string())}, schema=USERS_SCHEMA)
