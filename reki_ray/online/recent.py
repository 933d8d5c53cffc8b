"""The latest events of users, for the history of their next request."""

from __future__ import annotations

import itertools
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from reki_ray.online.event_log import Event, EventReader
from reki_ray.store.contents import Profile

Interaction = Callable[[Event], Event | None]
"""The event as an interaction; None where it is none. `EventRules.interaction` is one."""

_CHUNK: Final = 10_000
"""Events that are taken in while readers wait."""


class RecentEvents:
    """Follows the event log of all processes; bounded.

    One thread calls `refresh` again and again, any number call `of`.

    Args:
        folder: Segments of the event log, `OnlineFolders.events`; it may come to be later.
        events_per_user: Latest events kept a user.
        users: Users kept; those who were heard of last.
        interaction: Which events count, and with what rating; None keeps all as they are.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        events_per_user: int = 50,
        users: int = 50_000,
        interaction: Interaction | None = None,
    ) -> None:
        self._reader = EventReader(folder)
        self._per_user = events_per_user
        self._most_users = users
        self._interaction = interaction
        self._users: OrderedDict[str, tuple[Event, ...]] = OrderedDict()
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()

    def __len__(self) -> int:
        """Number of users."""
        return len(self._users)

    @property
    def damaged(self) -> int:
        """Lines of the log that were passed over so far."""
        return self._reader.damaged

    def refresh(self) -> int:
        """Take in what was appended since; returns the number of events read.

        Raises:
            OSError: The folder cannot be listed.
        """
        count = 0
        with self._refreshing:
            events = self._reader.read()
            while chunk := list(itertools.islice(events, _CHUNK)):
                count += len(chunk)
                self._take(chunk)
        return count

    def of(self, user_id: str) -> Sequence[Event]:
        """A user's latest events, oldest first; of equal ones, one."""
        with self._lock:
            return self._users.get(user_id, ())

    def _take(self, events: Iterable[Event]) -> None:
        by_user: dict[str, list[Event]] = {}
        for event in events:
            counted = event if self._interaction is None else self._interaction(event)
            if counted is not None:
                by_user.setdefault(counted.user_id, []).append(_shared(counted))
        with self._lock:
            for user_id, new in by_user.items():
                # A dict drops equal events and keeps the order in which they came.
                known = dict.fromkeys([*self._users.get(user_id, ()), *new])
                ordered = sorted(known, key=lambda event: event.timestamp)
                self._users[user_id] = tuple(ordered[-self._per_user :])
                self._users.move_to_end(user_id)
            while len(self._users) > self._most_users:
                self._users.popitem(last=False)


def merge(profile: Profile, recent: Sequence[Event], limit: int) -> Profile:
    """A profile with what happened since it was stored.

    Args:
        profile: As the store holds it; stays as it is.
        recent: The user's latest events.
        limit: Most interactions of the result, the latest.

    Returns:
        Interactions by time, oldest first; an event that the profile holds already, with the
        same item at the same time, counts once.
    """
    held = list(zip(profile.item_ids, profile.ratings, profile.timestamps, strict=True))
    known = {(item, time) for item, _, time in held}
    # What has no time keeps its place behind the one before it.
    times = itertools.accumulate((time or 0 for _, _, time in held), max)
    rows = list(zip(times, held, strict=True))
    for event in recent:
        if (event.item_id, event.timestamp) not in known:
            known.add((event.item_id, event.timestamp))
            rows.append((event.timestamp, (event.item_id, event.rating, event.timestamp)))
    rows.sort(key=lambda row: row[0])  # stable
    latest = [row for _, row in rows[max(0, len(rows) - limit) :]]
    return Profile(
        profile.attributes,
        tuple(item for item, _, _ in latest),
        tuple(rating for _, rating, _ in latest),
        tuple(time for _, _, time in latest),
    )


def _shared(event: Event) -> Event:
    """The event with texts that many events have in common held once."""
    return Event(
        event.user_id,
        sys.intern(event.item_id),
        sys.intern(event.event),
        event.timestamp,
        event.rating,
        event.request_id,
    )
