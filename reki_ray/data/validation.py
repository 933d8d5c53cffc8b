"""Checks of every row, vectorised: what passes fits the schema, what fails says why."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.config import DataConfig
from reki_ray.data.parsing import to_number, to_seconds, to_text
from reki_ray.data.quarantine import Checked, Verdict, settle
from reki_ray.data.raw import WRONG_ENCODING, Draft, TimestampUnit
from reki_ray.schema import (
    ATTRIBUTES,
    IMAGE,
    INTERACTIONS_SCHEMA,
    ITEM_ID,
    ITEMS_SCHEMA,
    LABEL,
    RATING,
    TEXT,
    TIMESTAMP,
    TITLE,
    USER_ID,
    USERS_SCHEMA,
)

_MILLISECONDS = "timestamp is out of range: it looks like milliseconds, not seconds"


def check_items(draft: Draft) -> Checked:
    """Items with an id of their own and a title.

    Raises:
        DataError: A column has a type that cannot hold what it should.
    """
    return _check_catalogue(draft, ITEM_ID, ITEMS_SCHEMA)


def check_users(draft: Draft) -> Checked:
    """Users with an id of their own.

    Raises:
        DataError: A column has a type that cannot hold what it should.
    """
    return _check_catalogue(draft, USER_ID, USERS_SCHEMA)


def check_interactions(
    draft: Draft,
    config: DataConfig,
    unit: TimestampUnit,
    *,
    users: pa.Array | None,
    items: pa.Array,
) -> Checked:
    """Interactions of known users with known items, in range, each once.

    Args:
        draft: The table as read.
        config: Valid ranges and the threshold of a positive label.
        unit: Unit of the timestamps.
        users: Known user ids; None where the data set has no users table.
        items: Known item ids.

    Raises:
        DataError: A column has a type that cannot hold what it should.
    """
    verdict = Verdict(len(draft.raw.rows))
    user_ids = _text(draft, USER_ID, verdict, required=True)
    item_ids = _text(draft, ITEM_ID, verdict, required=True)
    seconds = _timestamps(draft, config, unit, verdict)
    ratings, labels = _ratings_and_labels(draft, config, verdict)
    if users is not None:
        verdict.reject(~_is_in(user_ids, users), f"unknown {USER_ID}")
    verdict.reject(~_is_in(item_ids, items), f"unknown {ITEM_ID}")
    for reason, mask in draft.problems.items():
        verdict.reject(mask, reason)
    again = repeated(user_ids, item_ids, seconds, verdict.accepted)
    verdict.reject(again, "duplicate interaction")
    rows = pa.table(
        {
            USER_ID: user_ids,
            ITEM_ID: item_ids,
            TIMESTAMP: pa.array(seconds),
            RATING: pa.array(ratings.astype(np.float32), from_pandas=True),  # NaN becomes null
            LABEL: pa.array(labels),
        }
    ).select(INTERACTIONS_SCHEMA.names)
    return settle(draft, verdict, rows)


def _check_catalogue(draft: Draft, key: str, schema: pa.Schema) -> Checked:
    size = len(draft.raw.rows)
    verdict = Verdict(size)
    ids = _text(draft, key, verdict, required=True)
    columns = {key: ids}
    if TITLE in schema.names:
        columns[TITLE] = _text(draft, TITLE, verdict, required=True)
    for name in (TEXT, IMAGE):
        columns[name] = pa.nulls(size, pa.string())
        if name in draft.columns:
            columns[name] = _text(draft, name, verdict, required=False)
    columns[ATTRIBUTES] = draft.columns.get(
        ATTRIBUTES, pa.nulls(size, schema.field(ATTRIBUTES).type)
    )
    for reason, mask in draft.problems.items():
        verdict.reject(mask, reason)
    # Only usable rows count as first: a broken row must not take a good one's id.
    order = np.flatnonzero(verdict.accepted)
    _, first = np.unique(_codes(ids)[order], return_index=True)
    again = np.zeros(size, dtype=bool)
    again[np.delete(order, first)] = True
    verdict.reject(again, f"duplicate {key}")
    return settle(draft, verdict, pa.table(columns).select(schema.names))


def _text(draft: Draft, name: str, verdict: Verdict, *, required: bool) -> pa.Array:
    values, bad = to_text(draft.columns[name], where=_where(draft, name))
    verdict.reject(bad, WRONG_ENCODING)
    if required:
        verdict.reject(pc.is_null(values).to_numpy(zero_copy_only=False), f"{name} is missing")
    return values


def _timestamps(
    draft: Draft, config: DataConfig, unit: TimestampUnit, verdict: Verdict
) -> np.ndarray:
    seconds, missing, wrong = to_seconds(
        draft.columns[TIMESTAMP], unit, where=_where(draft, TIMESTAMP)
    )
    verdict.reject(missing, f"{TIMESTAMP} is missing")
    verdict.reject(wrong, f"{TIMESTAMP} is no number" if unit != "iso" else "no ISO 8601 time")
    late = seconds > config.latest
    as_seconds = seconds / 1000
    verdict.reject(
        late & (as_seconds >= config.earliest) & (as_seconds <= config.latest), _MILLISECONDS
    )
    verdict.reject(late | (seconds < config.earliest), f"{TIMESTAMP} is out of range")
    return np.where(verdict.accepted, seconds, 0).astype(np.int64)


def _ratings_and_labels(
    draft: Draft, config: DataConfig, verdict: Verdict
) -> tuple[np.ndarray, np.ndarray]:
    """Ratings (N,) float64, NaN for a click, and labels (N,) int8."""
    size = len(draft.raw.rows)
    ratings = np.full(size, np.nan)
    if RATING in draft.columns:
        ratings, missing, wrong = to_number(draft.columns[RATING], where=_where(draft, RATING))
        verdict.reject(wrong, f"{RATING} is no number")
        if LABEL not in draft.columns:
            verdict.reject(missing, f"{RATING} is missing")
        outside = (ratings < config.rating_min) | (ratings > config.rating_max)
        verdict.reject(outside, f"{RATING} is out of range")
    if LABEL in draft.columns:
        values, _, _ = to_number(draft.columns[LABEL], where=_where(draft, LABEL))
        verdict.reject((values != 0) & (values != 1), f"{LABEL} is neither 0 nor 1")
        return ratings, (values == 1).astype(np.int8)
    if RATING in draft.columns:
        return ratings, (ratings > config.positive_above).astype(np.int8)
    return ratings, np.ones(size, dtype=np.int8)  # a bare interaction is a positive one


def _where(draft: Draft, name: str) -> str:
    return f"{draft.raw.files[0]}, column for {name}"


def _is_in(values: pa.Array, known: pa.Array) -> np.ndarray:
    found: np.ndarray = pc.is_in(values, value_set=known).to_numpy(zero_copy_only=False)
    return found


def _codes(values: pa.Array) -> np.ndarray:
    """Equal integers for equal strings, (N,) int64."""
    indices = values.dictionary_encode(null_encoding="encode").indices
    codes: np.ndarray = indices.to_numpy(zero_copy_only=False)
    return codes.astype(np.int64)


def repeated(
    users: pa.Array, items: pa.Array, seconds: np.ndarray, accepted: np.ndarray
) -> np.ndarray:
    """Interactions that are there already.

    Args:
        users: User ids, N.
        items: Item ids, N.
        seconds: Times (N,).
        accepted: Rows that count, (N,) bool.

    Returns:
        Mask (N,) of accepted rows that equal an earlier accepted one in user, item and time.
    """
    rows = np.flatnonzero(accepted)
    user, item = _codes(users)[rows], _codes(items)[rows]
    pair = user * (item.max(initial=0) + 1) + item
    time = seconds[rows]
    order = np.lexsort((time, pair))  # stable: the first of equal rows stays first
    pair, time = pair[order], time[order]
    same = (pair[1:] == pair[:-1]) & (time[1:] == time[:-1])
    mask = np.zeros(len(accepted), dtype=bool)
    mask[rows[order[1:][same]]] = True
    return mask
