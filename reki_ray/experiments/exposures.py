"""The log of items shown to users, which must never slow down an answer.

It contains no user ids: `reki ab` joins it with the clicks by a keyed hash.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from reki_ray.core.background import BackgroundThread
from reki_ray.errors import DataError, RekiError
from reki_ray.events.segments import SegmentReader, SegmentWriter, encode_line
from reki_ray.experiments.user_hash import UserHasher

_logger = logging.getLogger(__name__)

_BATCH: Final = 1_000
_CLOSE_SECONDS: Final = 10.0
_WARN_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Exposure:
    """An answer given to a user.

    Args:
        experiment: Name of the running experiment, or empty.
        timestamp: Seconds since the epoch, UTC.
    """

    request_id: str
    experiment: str
    variant: str
    user_hash: str
    item_ids: tuple[str, ...]
    timestamp: int


class ExposureLog:
    """Writes exposures in a background thread, see `SegmentWriter`.

    Exposures that do not fit into the queue or cannot be written are dropped and counted: answers
    never wait. `close` writes the queue.
    """

    def __init__(
        self,
        folder: Path | str,
        writer: str,
        hasher: UserHasher,
        *,
        capacity: int = 10_000,
        seconds: float = 0.5,
    ) -> None:
        self._writer = SegmentWriter(folder, writer)
        self._hasher = hasher
        self._queue: queue.Queue[Exposure] = queue.Queue(capacity)
        self._counts = threading.Lock()
        self.dropped = 0  # exposures not logged: the queue was full, or a write failed
        self.written = 0  # exposures on disk
        self._warned_at = -_WARN_SECONDS
        self._closing = threading.Event()
        self._thread = BackgroundThread("write-exposures", self._flush, seconds)
        self._thread.start()

    def append(
        self,
        *,
        request_id: str,
        experiment: str,
        variant: str,
        user_id: str,
        item_ids: Sequence[str],
        timestamp: int | None = None,
    ) -> None:
        """Queue an `Exposure` without waiting; only the hash of the user id is kept."""
        now = int(time.time()) if timestamp is None else timestamp
        exposure = Exposure(
            request_id, experiment, variant, self._hasher(user_id), tuple(item_ids), now
        )
        try:
            if self._closing.is_set():
                raise queue.Full
            self._queue.put_nowait(exposure)
        except queue.Full:
            self._drop(1, "the queue is full or closed")

    def close(self) -> None:
        """Write the queue and end the thread; later exposures are dropped."""
        self._closing.set()
        if self._thread.stop(_CLOSE_SECONDS):
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        # The only consumer, so that as many are in the queue.
        while size := min(self._queue.qsize(), _BATCH):
            batch = [self._queue.get_nowait() for _ in range(size)]
            lines = []
            for exposure in batch:
                try:
                    lines.append(encode_line(dataclasses.asdict(exposure)))
                except DataError as error:  # the others are kept
                    self._drop(1, error.what)
            try:
                self._writer.append_lines(lines)
            except RekiError as error:
                self._drop(len(lines), error.what)
            except Exception:
                self._drop(len(lines), "an unexpected error")
                raise  # the thread logs it and continues
            else:
                with self._counts:
                    self.written += len(lines)

    def _drop(self, count: int, why: str) -> None:
        with self._counts:
            self.dropped += count
            now = time.monotonic()
            warn = now - self._warned_at >= _WARN_SECONDS
            if warn:
                self._warned_at = now
        if warn:  # a full disk must not flood the process's own log
            _logger.warning("dropped exposures, %d so far: %s", self.dropped, why)


class ExposureReader(SegmentReader[Exposure]):
    """Reads the exposures of all processes, each line once, see `SegmentReader`."""

    @override
    def parse(self, record: dict[str, Any]) -> Exposure:
        return Exposure(
            request_id=str(record["request_id"]),
            experiment=str(record["experiment"]),
            variant=str(record["variant"]),
            user_hash=str(record["user_hash"]),
            item_ids=tuple(str(item) for item in record["item_ids"]),
            timestamp=int(record["timestamp"]),
        )
