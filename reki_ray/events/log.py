"""The log of user events: `POST /v1/events` is answered when its events are on disk.

Every process appends to its own segments in a folder that all nodes share; readers follow all of
them. A sender may repeat an event it is not sure of, and readers count equal ones once. The
sender's time is part of that equality, so it is kept unchanged next to the time of receipt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from reki_ray.errors import DataError
from reki_ray.events.segments import SEGMENT_BYTES, SegmentReader, SegmentWriter

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
    """Appends the events of one process durably; for the arguments see `SegmentWriter`."""

    def __init__(
        self, folder: Path | str, writer: str, *, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._writer = SegmentWriter(folder, writer, segment_bytes=segment_bytes)
        self.close = self._writer.close

    def append(self, events: Sequence[Event]) -> None:
        """Append events, all or none; on return they survive a kill and a power cut. Thread-safe.

        Blocks on the disk: call it in a thread. Threads that wait together share one sync.

        Raises:
            DataError: An event cannot be encoded, for example a rating that is not finite.
            StoreError: The write failed, for example on a full disk.
        """
        for event in events:
            if not math.isfinite(event.rating or 0.0):
                todo = "Send a finite number, or no rating."
                raise DataError(f"the rating is {event.rating}", where="event", todo=todo)
        rows = [dataclasses.asdict(event).items() for event in events]
        # Omit empty fields to save space.
        self._writer.append([{k: v for k, v in row if v is not None} for row in rows])


class EventReader(SegmentReader[Event]):
    """Reads new events of all processes, each line once, see `SegmentReader`."""

    @override
    def parse(self, record: dict[str, Any]) -> Event:
        rating, request = record.get("rating"), record.get("request_id")
        received = record.get("received_at")
        if rating is not None and not math.isfinite(rating := float(rating)):
            raise ValueError("the rating is not finite")
        return Event(
            user_id=str(record["user_id"]),
            item_id=str(record["item_id"]),
            event=str(record["event"]),
            timestamp=_time(record["timestamp"]),
            rating=rating,
            request_id=None if request is None else str(request),
            received_at=None if received is None else _time(received),
        )


def _time(value: Any) -> int:
    seconds = int(value)
    if abs(seconds) > 2**40:
        raise ValueError("the time is out of range")
    return seconds
