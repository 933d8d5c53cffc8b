"""The log of user events: `POST /v1/events` is answered when its events are on disk.

Every process appends to its own segments in a folder that all nodes share; readers follow all of
them. A sender may repeat an event it is not sure of, and readers count equal ones once. The
sender's time is part of that equality, so it is kept unchanged next to the time of receipt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from reki_ray.errors import DataError
from reki_ray.events.segments import SEGMENT_BYTES, Place, SegmentReader, SegmentWriter

_LATEST: Final = 2**40

AHEAD_SECONDS: Final = 3_600
"""Tolerance for a sender's clock that is ahead."""


@dataclass(frozen=True, slots=True)
class Event:
    """An interaction of a user with an item.

    Args:
        timestamp: Time given by the sender, seconds since the epoch, UTC.
        rating: On the training scale; optional.
        request_id: Answer that showed the item; None if unknown.
        received_at: Time of receipt; None in logs of older releases. Not part of the equality of
            events.
    """

    user_id: str
    item_id: str
    event: str
    timestamp: int
    rating: float | None = None
    request_id: str | None = None
    received_at: int | None = field(default=None, compare=False)

    @property
    def time(self) -> int:
        """Effective time: the sender's, or that of receipt if the sender is far ahead.

        An event in the future would stay its user's latest one for long.
        """
        if self.received_at is None or self.timestamp <= self.received_at + AHEAD_SECONDS:
            return self.timestamp
        return self.received_at


class EventLog:
    """Appends the events of one process durably.

    Raises:
        ConfigError: The name is empty or too long.
        StoreError: The folder cannot be created.
    """

    def __init__(
        self, folder: Path | str, writer: str, *, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._writer = SegmentWriter(folder, writer, segment_bytes=segment_bytes)

    def append(self, events: Sequence[Event]) -> None:
        """Append events, all or none; on return they survive a kill and a power cut. Thread-safe.

        Blocks on the disk: call it in a thread. Threads that wait together share one sync.

        Raises:
            DataError: An event cannot be encoded, for example a rating that is not finite.
            StoreError: The write failed, for example on a full disk.
        """
        self._writer.append([_record(event) for event in events])

    def close(self) -> None:
        """Close the segment; a later append opens a new one."""
        self._writer.close()


class EventReader:
    """Reads new events of all processes, each line once. Not thread-safe."""

    def __init__(
        self,
        folder: Path | str,
        place: Mapping[str, int] | None = None,
        *,
        patience: float = 0.0,
        since: float = 0.0,
    ) -> None:
        self._reader = SegmentReader(folder, place, patience=patience, since=since)
        self._invalid = 0

    @property
    def place(self) -> Place:
        """Position of the reader, to resume from."""
        return self._reader.place

    @property
    def damaged(self) -> int:
        """Lines skipped so far: damaged, torn, or not events."""
        return self._reader.damaged + self._invalid

    def read(self) -> Iterator[Event]:
        """New events; a loop that is left early resumes with the next call."""
        for record in self._reader.read():
            event = _event(record)
            if event is None:
                self._invalid += 1
            else:
                yield event


def _record(event: Event) -> dict[str, Any]:
    if event.rating is not None and not math.isfinite(event.rating):
        raise DataError(
            f"the rating is {event.rating}",
            where="event",
            todo="Send a finite number, or no rating.",
        )
    # Omit empty fields to save space.
    return {name: value for name, value in dataclasses.asdict(event).items() if value is not None}


def _event(record: dict[str, Any]) -> Event | None:
    """Parse an event; later releases may add fields, and missing ones make it None."""
    try:
        rating, request = record.get("rating"), record.get("request_id")
        received = record.get("received_at")
        return Event(
            user_id=str(record["user_id"]),
            item_id=str(record["item_id"]),
            event=str(record["event"]),
            timestamp=_time(record["timestamp"]),
            rating=None if rating is None else _finite(rating),
            request_id=None if request is None else str(request),
            received_at=None if received is None else _time(received),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _time(value: Any) -> int:
    seconds = int(value)
    if abs(seconds) > _LATEST:
        raise ValueError("the time is out of range")
    return seconds


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("the rating is not finite")
    return number
