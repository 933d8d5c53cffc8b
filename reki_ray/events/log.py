"""The log of what users did: `POST /v1/events` is answered when its events lie on the disk.

Every process appends to segments of its own in a folder that all nodes share; readers follow
all of them. An event may come twice, as when a sender repeats what it is not sure of: readers
count equal ones once. The time that the sender gave is a part of what makes two of them equal, so
it is kept as it came, and the time of receipt beside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from reki_ray.errors import DataError
from reki_ray.events.segment_reader import Place, SegmentReader
from reki_ray.events.segment_writer import SEGMENT_BYTES, SegmentWriter

_LATEST: Final = 2**40

AHEAD_SECONDS: Final = 3_600
"""A sender's clock that is ahead by no more than this keeps its own time."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a user did with an item.

    Args:
        user_id: Who.
        item_id: With what.
        event: Type, as click or rating.
        timestamp: When, as the sender says, seconds since the epoch, UTC.
        rating: On the scale of training; None where there is none.
        request_id: Answer that showed the item; None where it is not known.
        received_at: When it was taken in; None for what older releases logged. Two events that
            differ in nothing else are one, sent twice.
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
        """When it counts: as sent, or when it was received where the sender is far ahead.

        An event of the future would stay the latest one of its user for long.
        """
        if self.received_at is None or self.timestamp <= self.received_at + AHEAD_SECONDS:
            return self.timestamp
        return self.received_at


class EventLog:
    """Appends the events of one process, durably.

    Args:
        folder: Segments of all processes, `OnlineFolders.events`; it is made.
        writer: Name of this process, unique among those that live, as its replica's tag.
        segment_bytes: Size at which a new segment begins.

    Raises:
        ConfigError: The name is empty or too long.
        StoreError: The folder cannot be made.
    """

    def __init__(
        self, folder: Path | str, writer: str, *, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._writer = SegmentWriter(folder, writer, segment_bytes=segment_bytes)

    def append(self, events: Sequence[Event]) -> None:
        """Append events; on return they survive a kill and a power cut. Thread-safe.

        It waits for the disk: an event loop calls it in a thread, and threads that wait
        together share one sync.

        Args:
            events: All of them are kept, or none is acknowledged.

        Raises:
            DataError: An event cannot be encoded, as with a rating that is not finite.
            StoreError: The disk refuses, as when it is full.
        """
        self._writer.append([_record(event) for event in events])

    def close(self) -> None:
        """Close the segment; a later append opens a new one."""
        self._writer.close()


class EventReader:
    """Reads the events of all processes, each line once, as they come. One thread at a time.

    Args:
        folder: Segments of all processes; it may come to be later.
        place: Where to go on; None starts at the beginning.
        patience: See `SegmentReader`.
        since: See `SegmentReader`.
    """

    def __init__(
        self,
        folder: Path | str,
        place: Mapping[str, int] | None = None,
        *,
        patience: float = 0.0,
        since: float = 0.0,
    ) -> None:
        self._reader = SegmentReader(folder, place, patience=patience, since=since)
        self._foreign = 0

    @property
    def place(self) -> Place:
        """How far the reader has come, for a later reader to go on from."""
        return self._reader.place

    @property
    def damaged(self) -> int:
        """Lines passed over so far: damaged, torn, or no events."""
        return self._reader.damaged + self._foreign

    def read(self) -> Iterator[Event]:
        """Events that came since; a loop that is left early is gone on with later."""
        for record in self._reader.read():
            event = _event(record)
            if event is None:
                self._foreign += 1
            else:
                yield event


def _record(event: Event) -> dict[str, Any]:
    if event.rating is not None and not math.isfinite(event.rating):
        raise DataError(
            f"the rating is {event.rating}", where="event", todo="Send a finite number, or none."
        )
    # What is not there takes no room.
    return {name: value for name, value in dataclasses.asdict(event).items() if value is not None}


def _event(record: dict[str, Any]) -> Event | None:
    """An event of a later release may have more fields; one with fewer is none."""
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
        raise ValueError("a time that no table can hold")
    return seconds


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("a rating that is not finite")
    return number
