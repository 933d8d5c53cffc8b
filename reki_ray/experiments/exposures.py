"""The log of what users were shown, which must never slow an answer.

It holds no user id: `reki ab` joins it with the clicks by a keyed hash.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from reki_ray.core.background import BackgroundThread
from reki_ray.errors import DataError, RekiError
from reki_ray.events.record_codec import encode_line
from reki_ray.events.segment_reader import SegmentReader
from reki_ray.events.segment_writer import SegmentWriter
from reki_ray.experiments.user_hash import UserHasher

_logger = logging.getLogger(__name__)

_BATCH: Final = 1_000
_CLOSE_SECONDS: Final = 10.0
_TELL_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Exposure:
    """An answer that a user was given.

    Args:
        request_id: Of the answer.
        experiment: Name of the experiment that ran; empty where none did.
        variant: Name of the user's variant.
        user_hash: Keyed hash of the user id.
        item_ids: What was shown, in its order.
        timestamp: When, seconds since the epoch, UTC.
    """

    request_id: str
    experiment: str
    variant: str
    user_hash: str
    item_ids: tuple[str, ...]
    timestamp: int


class ExposureLog:
    """Writes exposures in a thread of its own.

    What does not fit into the queue, or cannot be written, is dropped and counted: an answer
    waits for neither. `close` writes what is queued.

    Args:
        folder: Segments of all processes, `OnlineFolders.exposures`; it is made.
        writer: Name of this process, unique among those that live.
        hasher: Hashes user ids.
        capacity: Exposures that may wait.
        seconds: Time that exposures are gathered before they are written.

    Raises:
        ConfigError: The name is empty or too long.
        StoreError: The folder cannot be made.
    """

    def __init__(  # all but three have defaults
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
        self._dropped = 0
        self._written = 0
        self._told_at = -_TELL_SECONDS
        self._closing = threading.Event()
        self._thread = BackgroundThread("write-exposures", self._flush, seconds)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Exposures that were not logged: the queue was full, or the disk refused."""
        return self._dropped

    @property
    def written(self) -> int:
        """Exposures that lie on the disk."""
        return self._written

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
        """Queue an exposure; never waits.

        Args:
            request_id: Of the answer.
            experiment: Name of the running experiment; empty where none runs.
            variant: Name of the user's variant.
            user_id: Who was answered; only its hash is kept.
            item_ids: What was shown, in its order.
            timestamp: Seconds since the epoch, UTC; None is now.
        """
        when = int(time.time()) if timestamp is None else timestamp
        exposure = Exposure(
            request_id, experiment, variant, self._hasher(user_id), tuple(item_ids), when
        )
        try:
            if self._closing.is_set():
                raise queue.Full
            self._queue.put_nowait(exposure)
        except queue.Full:
            self._drop(1, "the queue is full or closed")

    def close(self) -> None:
        """Write what is queued, and end the thread; what comes later is dropped."""
        self._closing.set()
        if self._thread.stop(_CLOSE_SECONDS):
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        while batch := self._taken():
            lines = [line for exposure in batch if (line := self._line(exposure)) is not None]
            try:
                self._writer.append_lines(lines)
            except RekiError as error:
                self._drop(len(lines), error.what)
            except Exception:
                self._drop(len(lines), "a defect")
                raise  # the thread logs it, and goes on
            else:
                with self._counts:
                    self._written += len(lines)

    def _line(self, exposure: Exposure) -> bytes | None:
        """An exposure as a line; None for one that cannot be kept, which must not cost others."""
        try:
            return encode_line(dataclasses.asdict(exposure))
        except DataError as error:
            self._drop(1, error.what)
            return None

    def _taken(self) -> list[Exposure]:
        batch: list[Exposure] = []
        while len(batch) < _BATCH:
            try:
                batch.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return batch

    def _drop(self, count: int, why: str) -> None:
        with self._counts:
            self._dropped += count
            now = time.monotonic()
            tell = now - self._told_at >= _TELL_SECONDS
            if tell:
                self._told_at = now
        if tell:  # a full disk must not fill the process's own log as well
            _logger.warning("exposures are dropped, %d so far: %s", self._dropped, why)


class ExposureReader:
    """Reads the exposures of all processes, each line once.

    Args:
        folder: Segments of all processes; it may come to be later.
    """

    def __init__(self, folder: Path | str) -> None:
        self._reader = SegmentReader(folder)
        self._foreign = 0

    @property
    def damaged(self) -> int:
        """Lines passed over so far: damaged, torn, or no exposures."""
        return self._reader.damaged + self._foreign

    def read(self) -> Iterator[Exposure]:
        """Exposures that came since."""
        for record in self._reader.read():
            exposure = _exposure(record)
            if exposure is None:
                self._foreign += 1
            else:
                yield exposure


def _exposure(record: dict[str, Any]) -> Exposure | None:
    try:
        return Exposure(
            request_id=str(record["request_id"]),
            experiment=str(record["experiment"]),
            variant=str(record["variant"]),
            user_hash=str(record["user_hash"]),
            item_ids=tuple(str(item) for item in record["item_ids"]),
            timestamp=int(record["timestamp"]),
        )
    except (KeyError, TypeError, ValueError):
        return None
