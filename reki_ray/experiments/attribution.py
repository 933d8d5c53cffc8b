"""Which shown items were clicked: exposures and clicks joined, each counted once."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from reki_ray.events.log import Event
from reki_ray.experiments.exposures import Exposure
from reki_ray.experiments.user_hash import UserHasher

Ints = npt.NDArray[np.int64]

_MIXED: Final = -1
_SLOW_SECONDS: Final = 300
"""A sender's clock may be behind by so much."""
_BETWEEN_SECONDS: Final = 2
"""Clocks of two gateways may differ by so much."""


@dataclass(frozen=True)
class Joined:
    """What U users of V variants were shown and clicked.

    Attributes:
        variants: (U,) index of the user's variant.
        exposures: (U,) items shown, each once a request.
        clicks: (U,) of these, those that were clicked.
        mixed: Users who were shown several variants, and are left out.
        unmatched: Clicks, each once, on what no exposure shows.
    """

    variants: Ints
    exposures: Ints
    clicks: Ints
    mixed: int
    unmatched: int


class ClickAttribution:
    """Gathers exposures and clicks, and joins them.

    A click that names its request counts for the item in that answer, if the same user was given
    it. Another counts for the last time that its user was shown the item within the window
    before it. An item shown twice by one request, and a click that comes twice, count once.

    Exposures have the service's time and clicks that of their sender, whose clock may be wrong: a
    click is no later than its receipt, and at most `_SLOW_SECONDS` later than it says.

    Args:
        variants: Names of the variants that count.
        window: Longest time from an exposure to a click that names no request, seconds.
    """

    def __init__(self, variants: list[str], window: int) -> None:
        self._variants = {name: code for code, name in enumerate(variants)}
        self._window = window
        self._users: dict[str, int] = {}
        self._items: dict[str, int] = {}
        self._requests: dict[tuple[str, int], int] = {}
        self._shown = [array("q") for _ in range(5)]  # request, user, item, variant, time
        # request or -1, user, item, time as sent, earliest and latest time that it may have been
        self._clicks = [array("q") for _ in range(6)]
        self._foreign: set[tuple[int, str, str, int]] = set()

    def __len__(self) -> int:
        """Number of users who were shown something."""
        return len(self._users)

    def show(self, exposures: Iterable[Exposure]) -> None:
        """Take in exposures; those of other variants are left out."""
        for one in exposures:
            variant = self._variants.get(one.variant)
            if variant is None:
                continue
            user = _code(self._users, one.user_hash)
            request = self._requests.setdefault((one.request_id, user), len(self._requests))
            for item in one.item_ids:
                row = (request, user, _code(self._items, item), variant, one.timestamp)
                for column, value in zip(self._shown, row, strict=True):
                    column.append(value)

    def click(self, clicks: Iterable[Event], hasher: UserHasher) -> None:
        """Take in clicks, after all exposures; users who were shown nothing are left out.

        Args:
            clicks: Events that count as clicks.
            hasher: The one that the exposures were written with.
        """
        for one in clicks:
            user = self._users.get(hasher(one.user_id))
            if user is None:
                continue
            item = self._items.get(one.item_id)
            request = -1
            if one.request_id is not None:
                request = self._requests.get((one.request_id, user), -2)
            if item is None or request == -2:
                self._foreign.add((user, one.item_id, one.request_id or "", one.timestamp))
                continue
            row = (request, user, item, one.timestamp, *_bounds(one))
            for column, value in zip(self._clicks, row, strict=True):
                column.append(value)

    def join(self) -> Joined:
        """What each user was shown and clicked."""
        request, user, item, variant, time = (_column(values) for values in self._shown)
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
            unmatched=unmatched + len(self._foreign),
        )

    def _match(self, request: Ints, user: Ints, item: Ints, time: Ints) -> tuple[Ints, int]:
        """Rows of the exposures that were clicked, each once, and the number of other clicks."""
        asked, clicker, wanted, sent, begin, end = (_column(values) for values in self._clicks)
        items = max(len(self._items), 1)
        named = asked >= 0
        by_request = _exact(request * items + item, asked[named] * items + wanted[named])
        pairs = user * items + item
        by_window = _latest_before(
            (pairs, time),
            (clicker[~named] * items + wanted[~named], end[~named]),
            begin[~named] - self._window,
        )
        rows = np.concatenate([by_request, by_window])
        clicks = np.stack([asked, clicker * items + wanted, np.where(named, 0, sent)], axis=1)
        clicks = np.concatenate([clicks[named], clicks[~named]])
        missed = np.unique(clicks[rows < 0], axis=0)
        return np.unique(rows[rows >= 0]), len(missed)


def _first_of_each(request: Ints, item: Ints, items: int, time: Ints) -> Ints:
    """Rows of the first exposure of every item by every request."""
    key = request * max(items, 1) + item
    order = np.lexsort((time, key))
    first = np.ones(len(order), dtype=bool)
    first[1:] = np.diff(key[order]) != 0
    rows: Ints = order[first]
    return rows


def _exact(keys: Ints, wanted: Ints) -> Ints:
    """Row of each wanted key; -1 where there is none. Keys are distinct."""
    found = np.full(len(wanted), -1, dtype=np.int64)
    if len(keys):
        order = np.argsort(keys, kind="stable")
        places = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
        hit = keys[order[places]] == wanted
        found[hit] = order[places[hit]]
    return found


def _bounds(click: Event) -> tuple[int, int]:
    """Earliest and latest time at which a click may have been."""
    sent, received = click.timestamp, click.received_at
    if received is None:
        return sent, sent
    return min(sent, received), min(sent + _SLOW_SECONDS, received + _BETWEEN_SECONDS)


def _latest_before(rows: tuple[Ints, Ints], wanted: tuple[Ints, Ints], earliest: Ints) -> Ints:
    """For each wanted pair and time, the row of that pair with the latest time not after it.

    Args:
        rows: Pairs (N,) and times (N,).
        wanted: Pairs (C,) and times (C,).
        earliest: First time that counts of each (C,).

    Returns:
        (C,) rows; -1 where there is none of a time that counts.
    """
    (pairs, times), (asked, when) = rows, wanted
    found = np.full(len(asked), -1, dtype=np.int64)
    if not len(pairs) or not len(asked):
        return found
    # Both sorted together by pair and time, exposures first at equal times: the last exposure
    # before a click in this order is the one, if it is of the same pair.
    both, at = np.concatenate([pairs, asked]), np.concatenate([times, when])
    is_click = np.arange(len(both)) >= len(pairs)
    order = np.lexsort((is_click, at, both))
    last = np.maximum.accumulate(np.where(is_click[order], -1, np.arange(len(order))))
    clicks = np.flatnonzero(is_click[order])
    before = last[clicks]
    row, click = order[np.maximum(before, 0)], order[clicks]
    click -= len(pairs)
    fits = (before >= 0) & (both[row] == asked[click]) & (at[row] >= earliest[click])
    found[click[fits]] = row[fits]
    return found


def _column(values: array[int]) -> Ints:
    return np.frombuffer(values, dtype=np.int64) if values else np.empty(0, dtype=np.int64)


def _code(codes: dict[str, int], value: str) -> int:
    return codes.setdefault(value, len(codes))
