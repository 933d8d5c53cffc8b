"""The latest events of users, for the history of their next request."""

from __future__ import annotations

import itertools
import math
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from reki_ray.events.event_mapping import Interaction, as_it_is, combine
from reki_ray.events.log import Event, EventReader
from reki_ray.events.segments import PATIENCE_SECONDS
from reki_ray.store.tables import Profile

Interactions = Callable[[Event], Interaction | None]
"""Maps an event to an interaction or None, as `EventRules.interaction` does."""

MOST_BYTES: Final = 256 * 2**20

_CHUNK: Final = 10_000
"""Events per chunk."""
_KEPT: Final = 0.9
"""Share of the memory still used after dropping users."""
_USER_BYTES: Final = 500
"""Memory of a user without interactions: table slots and object headers."""
_SHARED_BYTES: Final = 16 * 2**20

_ROW: Final = struct.Struct("<qqdd?")  # time, sent, rating (NaN: none), value, own


class _Known(NamedTuple):
    """The state of a user; immutable, so that readers need no lock.

    Attributes:
        items: Item of every interaction, by time.
        rows: `_ROW` of every interaction, in the same order.
        met: Distinct items of interactions beyond the limit, the latest last.
        heard: Time of the user's latest event.
        size: Estimated bytes, an upper bound.
    """

    items: tuple[str, ...]
    rows: bytes
    met: tuple[str, ...]
    heard: int
    size: int

    def interactions(self) -> list[Interaction]:
        """By time, oldest first."""
        return [
            Interaction(item, None if math.isnan(rating) else rating, time, sent, own, value)
            for item, (time, sent, rating, value, own) in zip(
                self.items, _ROW.iter_unpack(self.rows), strict=True
            )
        ]


_NOTHING: Final = _Known((), b"", (), 0, 0)


class RecentEvents:
    """Follows the event log of all processes in bounded memory.

    One thread calls `refresh` repeatedly; any number call `of` and `met`, which never wait.

    Args:
        events_per_user: Latest interactions kept per user.
        items_per_user: Items kept per user, for longer than the interactions themselves.
        most_bytes: Memory for all users; the longest inactive ones are dropped.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        events_per_user: int = 50,
        items_per_user: int = 1_000,
        most_bytes: int = MOST_BYTES,
        interaction: Interactions = as_it_is,
        since: float = 0.0,
    ) -> None:
        self._reader = EventReader(folder, patience=PATIENCE_SECONDS, since=since)
        self._per_user = events_per_user
        self._most_items = items_per_user
        self._most_bytes = most_bytes
        self._interaction = interaction
        self._users: dict[str, _Known] = {}
        self.size = 0  # estimated bytes of all users, an upper bound
        self._texts: dict[str, str] = {}
        self._texts_size = 0
        self._refreshing = threading.Lock()

    def __len__(self) -> int:
        """Number of users."""
        return len(self._users)

    @property
    def damaged(self) -> int:
        """Lines of the log skipped so far."""
        return self._reader.damaged

    def refresh(self) -> int:
        """Read new events; returns their number."""
        count = 0
        with self._refreshing:
            events = self._reader.read()
            while chunk := list(itertools.islice(events, _CHUNK)):
                count += len(chunk)
                self._take(chunk)
        return count

    def of(self, user_id: str) -> list[Interaction]:
        """A user's latest interactions, oldest first."""
        return self._users.get(user_id, _NOTHING).interactions()

    def met(self, user_id: str) -> tuple[str, ...]:
        """Items of a user's recent interactions, more than `of` holds."""
        known = self._users.get(user_id, _NOTHING)
        return (*known.met, *known.items)

    def _take(self, events: Iterable[Event]) -> None:
        by_user: dict[str, list[Interaction]] = {}
        heard: dict[str, int] = {}
        for event in events:
            counted = self._interaction(event)
            if counted is not None:
                user = event.user_id
                by_user.setdefault(user, []).append(counted)
                heard[user] = max(heard.get(user, 0), event.received_at or event.timestamp)
        for user, new in by_user.items():
            before = self._users.get(user, _NOTHING)
            after = self._users[user] = self._joined(user, before, new, heard[user])
            self.size += after.size - before.size
        if self.size > self._most_bytes:
            self._forget()

    def _joined(self, user: str, before: _Known, new: Iterable[Interaction], heard: int) -> _Known:
        known: dict[tuple[str, int], Interaction] = {}
        for other in (*before.interactions(), *new):
            key = other.item_id, other.sent
            known[key] = combine(known[key], other) if key in known else other
        ordered = sorted(known.values(), key=lambda row: (row.time, row.sent, row.item_id))
        left = max(0, len(ordered) - self._per_user)
        kept, dropped = ordered[left:], [row.item_id for row in ordered[:left]]
        met = [*before.met, *dropped]
        # A dict keeps the first of equal keys; the latest is wanted.
        distinct = list(dict.fromkeys(reversed(met)))[: max(0, self._most_items - len(kept))]
        items = tuple(self._shared(row.item_id) for row in kept)
        others = tuple(self._shared(item) for item in reversed(distinct))
        return _Known(
            items,
            b"".join(map(_row, kept)),
            others,
            max(before.heard, heard),
            _USER_BYTES
            + sys.getsizeof(user)
            + sum(_ROW.size + 8 + sys.getsizeof(item) for item in items)
            + sum(8 + sys.getsizeof(item) for item in others),
        )

    def _forget(self) -> None:
        """Drop the users who have been inactive longest."""
        users = list(self._users)
        heard = np.fromiter((self._users[user].heard for user in users), np.int64, len(users))
        for place in np.argsort(heard, kind="stable").tolist():
            if self.size <= _KEPT * self._most_bytes:
                return
            self.size -= self._users.pop(users[place]).size

    def _shared(self, text: str) -> str:
        """Intern a text in a bounded table; `sys.intern` would never free one."""
        shared = self._texts.setdefault(text, text)
        if shared is text:
            self._texts_size += 100 + sys.getsizeof(text)
            if self._texts_size > _SHARED_BYTES:
                self._texts.clear()
                self._texts_size = 0
        return shared


def merge(profile: Profile, recent: Sequence[Interaction], limit: int) -> Profile:
    """Merge a stored profile with newer interactions, keeping the latest up to a limit.

    By time, oldest first, without duplicates of item and time.
    """
    held = list(zip(profile.item_ids, profile.ratings, profile.timestamps, strict=True))
    known = {(item, time) for item, _, time in held}
    # An interaction without a time stays behind its predecessor.
    times = itertools.accumulate((time or 0 for _, _, time in held), max)
    rows = list(zip(times, held, strict=True))
    for new in recent:
        if (new.item_id, new.time) not in known:
            known.add((new.item_id, new.time))
            rows.append((new.time, (new.item_id, new.rating, new.time)))
    rows.sort(key=lambda row: row[0])  # stable
    latest = [row for _, row in rows[max(0, len(rows) - limit) :]]
    return Profile(
        profile.attributes,
        tuple(item for item, _, _ in latest),
        tuple(rating for _, rating, _ in latest),
        tuple(time for _, _, time in latest),
    )


def _row(interaction: Interaction) -> bytes:
    _, rating, time, sent, own, value = interaction
    return _ROW.pack(time, sent, math.nan if rating is None else rating, value, own)
