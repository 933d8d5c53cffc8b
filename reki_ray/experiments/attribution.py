"""Attributes clicks to exposures, counting each once."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.events.log import Event
from reki_ray.experiments.exposures import Exposure
from reki_ray.experiments.user_hash import UserHasher

Ints = npt.NDArray[np.int64]

_MIXED: Final = -1
_SLOW_SECONDS: Final = 300
"""Tolerance for a sender's clock that is behind."""
_BETWEEN_SECONDS: Final = 2
"""Tolerance between the clocks of two gateways."""


@dataclass(frozen=True)
class Joined:
    """Exposures and clicks of U users.

    Attributes:
        variants: (U,) index of the user's variant.
        exposures: (U,) items shown, each once per request.
        clicks: (U,) clicked exposures.
        mixed: Users excluded because they were shown several variants.
        unmatched: Distinct clicks without an exposure.
    """

    variants: Ints
    exposures: Ints
    clicks: Ints
    mixed: int
    unmatched: int


class ClickAttribution:
    """Collects exposures and clicks, and joins them.

    A click that names its request counts for the item in that answer, if it has the same user. Any
    other click counts for the last time that its user was shown the item within the window before
    it. An item shown twice by a request, and a repeated click, count once.

    Exposures have the service's time, and clicks that of their sender, whose clock may be wrong: a
    click is no later than its receipt, and at most `_SLOW_SECONDS` later than its timestamp.

    Args:
        window: Longest time from an exposure to a click that names no request, seconds.
    """

    def __init__(self, variants: list[str], window: int) -> None:
        self._variants = {name: code for code, name in enumerate(variants)}
        self._window = window
        self._users: dict[str, int] = {}
        self._items: dict[str, int] = {}
        self._requests: dict[tuple[str, int], int] = {}
        self._shown = [array("q") for _ in range(5)]  # request, user, item, variant, time
        # request or -1, user, item, time as sent, earliest and latest possible time
        self._clicks = [array("q") for _ in range(6)]
        self._unmatched: set[tuple[int, str, str, int]] = set()

    def __len__(self) -> int:
        """Number of users with exposures."""
        return len(self._users)

    def show(self, exposures: Iterable[Exposure]) -> None:
        """Add exposures, ignoring those of other variants."""
        for exposure in exposures:
            variant = self._variants.get(exposure.variant)
            if variant is None:
                continue
            user = _code(self._users, exposure.user_hash)
            request = self._requests.setdefault((exposure.request_id, user), len(self._requests))
            for item in exposure.item_ids:
                row = (request, user, _code(self._items, item), variant, exposure.timestamp)
                for column, value in zip(self._shown, row, strict=True):
                    column.append(value)

    def click(self, clicks: Iterable[Event], hasher: UserHasher) -> None:
        """Add clicks, after all exposures and with their hasher; other users are ignored."""
        for click in clicks:
            user = self._users.get(hasher(click.user_id))
            if user is None:
                continue
            item = self._items.get(click.item_id)
            request = -1
            if click.request_id is not None:
                request = self._requests.get((click.request_id, user), -2)
            if item is None or request == -2:
                key = (user, click.item_id, click.request_id or "", click.timestamp)
                self._unmatched.add(key)
                continue
            row = (request, user, item, click.timestamp, *_bounds(click))
            for column, value in zip(self._clicks, row, strict=True):
                column.append(value)

    def join(self) -> Joined:
        """Exposures and clicks per user."""
        request, user, item, variant, time = map(_column, self._shown)
        kept = _first_of_each(request, item, len(self._items), time)
        request, user, item, variant, time = (
            column[kept] for column in (request, user, item, variant, time)
        )
        clicked, unmatched = self._match(request, user, item, time)
        size = len(self._users)
        lowest = np.full(size, len(self._variants), dtype=np.int64)
        highest = np.full(size, _MIXED, dtype=np.int64)
        np.minimum.at(lowest, user, variant)
        np.maximum.at(highest, user, variant)
        pure = lowest == highest
        return Joined(
            variants=highest[pure],
            exposures=np.bincount(user, minlength=size)[pure],
            clicks=np.bincount(user[clicked], minlength=size)[pure],
            mixed=int(np.count_nonzero(highest > lowest)),
            unmatched=unmatched + len(self._unmatched),
        )

    def _match(self, request: Ints, user: Ints, item: Ints, time: Ints) -> tuple[Ints, int]:
        """Distinct rows of the clicked exposures, and the number of unmatched clicks."""
        requests, clicker, wanted, sent, begin, end = map(_column, self._clicks)
        items = max(len(self._items), 1)
        named = requests >= 0
        by_request = _exact(request * items + item, requests[named] * items + wanted[named])
        pairs = user * items + item
        by_window = _latest_before(
            (pairs, time),
            (clicker[~named] * items + wanted[~named], end[~named]),
            begin[~named] - self._window,
        )
        rows = np.concatenate([by_request, by_window])
        clicks = np.stack([requests, clicker * items + wanted, np.where(named, 0, sent)], axis=1)
        clicks = np.concatenate([clicks[named], clicks[~named]])
        missed = np.unique(clicks[rows < 0], axis=0)
        return np.unique(rows[rows >= 0]), len(missed)


def _first_of_each(request: Ints, item: Ints, items: int, time: Ints) -> Ints:
    """Rows of the first exposure of each item per request."""
    key = request * max(items, 1) + item
    order = np.lexsort((time, key))
    first = np.ones(len(order), dtype=bool)
    first[1:] = np.diff(key[order]) != 0
    rows: Ints = order[first]
    return rows


def _exact(keys: Ints, wanted: Ints) -> Ints:
    """Row of each wanted key, or -1; keys are distinct."""
    rows: Ints = pc.index_in(pa.array(wanted), value_set=pa.array(keys)).fill_null(-1).to_numpy()
    return rows.astype(np.int64)


def _bounds(click: Event) -> tuple[int, int]:
    """Earliest and latest possible time of a click."""
    sent, received = click.timestamp, click.received_at
    if received is None:
        return sent, sent
    return min(sent, received), min(sent + _SLOW_SECONDS, received + _BETWEEN_SECONDS)


def _latest_before(rows: tuple[Ints, Ints], wanted: tuple[Ints, Ints], earliest: Ints) -> Ints:
    """Row of each wanted pair with the latest time up to the wanted one; -1 before `earliest`."""
    (pairs, times), (click_pairs, click_times) = rows, wanted
    matches = np.full(len(click_pairs), -1, dtype=np.int64)
    if not len(pairs) or not len(click_pairs):
        return matches
    # Both sorted together by pair and time, exposures first at equal times: the last exposure
    # before a click in this order is the one, if it is of the same pair.
    both = np.concatenate([pairs, click_pairs])
    at = np.concatenate([times, click_times])
    is_click = np.arange(len(both)) >= len(pairs)
    order = np.lexsort((is_click, at, both))
    last = np.maximum.accumulate(np.where(is_click[order], -1, np.arange(len(order))))
    clicks = np.flatnonzero(is_click[order])
    before = last[clicks]
    row, click = order[np.maximum(before, 0)], order[clicks]
    click -= len(pairs)
    fits = (before >= 0) & (both[row] == click_pairs[click]) & (at[row] >= earliest[click])
    matches[click[fits]] = row[fits]
    return matches


def _column(values: array[int]) -> Ints:
    return np.frombuffer(values, dtype=np.int64) if values else np.empty(0, dtype=np.int64)


def _code(codes: dict[str, int], value: str) -> int:
    return codes.setdefault(value, len(codes))
