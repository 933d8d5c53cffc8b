"""Durable appends to segments: what is acknowledged survives a kill and a power cut.

A segment `<writer>-<number>.jsonl` has one writer, for as long as that lives: a process never
goes on in a file of an earlier one, which may end in a torn line. Numbers are times in
microseconds: a name is never used again, also after its segment was pruned, since readers
remember by names how far they have come.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from reki_ray.core import atomic
from reki_ray.errors import ConfigError, StoreError
from reki_ray.events.record_codec import encode_line

SUFFIX: Final = ".jsonl"
SEGMENT_BYTES: Final = 64 * 2**20
SEGMENT_SECONDS: Final = 86_400.0
"""A segment this old gets no more lines, so that `prune` never takes one that is written to."""

_MAX_NAME_CHARS: Final = 200


class _Pending:
    """Lines that wait for the disk."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.settled = False
        self.failure: OSError | None = None


class SegmentWriter:
    """Appends records of one process, many threads at a time.

    Concurrent appends are written and synced together (group commit): while one thread waits
    for the disk, the others queue, and the next one takes all of them along.

    Args:
        folder: Holds the segments of all writers; it is made.
        writer: Name of this process, unique among those that live.
        segment_bytes: A segment that has reached this size is followed by a new one.
        segment_seconds: And one that has reached this age.

    Raises:
        ConfigError: The name is empty or too long.
        StoreError: The folder cannot be made.
    """

    def __init__(
        self,
        folder: Path | str,
        writer: str,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        segment_seconds: float = SEGMENT_SECONDS,
    ) -> None:
        self.folder = Path(folder)
        self._name = quote(writer, safe="")
        if not 0 < len(self._name) <= _MAX_NAME_CHARS:
            raise ConfigError(
                f"a writer's name has 1 to {_MAX_NAME_CHARS} characters, not {len(self._name)}",
                where=str(folder),
                todo="Name the process by its replica.",
            )
        self._segment_bytes = segment_bytes
        self._segment_seconds = segment_seconds
        self._queue: list[_Pending] = []
        self._committing = False
        self._turn = threading.Condition()  # guards the queue, and whose turn the file is
        self._descriptor: int | None = None
        self._size = 0
        self._opened_at = 0.0
        try:
            atomic.make_folder(self.folder)
        except OSError as error:
            raise self._refused(error) from error

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records; on return they are on the disk.

        Args:
            records: JSON-ready records; none of them is kept where one cannot be encoded.

        Raises:
            DataError: A record cannot be encoded.
            StoreError: The disk refuses, as when it is full: nothing is acknowledged.
        """
        self.append_lines([encode_line(record) for record in records])

    def append_lines(self, lines: Sequence[bytes]) -> None:
        """Append lines of `encode_line`; on return they are on the disk.

        Raises:
            StoreError: The disk refuses, as when it is full: nothing is acknowledged.
        """
        if not lines:
            return
        pending = _Pending(b"".join(lines))
        with self._turn:
            self._queue.append(pending)
            while not pending.settled:
                if self._committing:
                    self._turn.wait()
                else:
                    self._commit()
        if pending.failure is not None:
            raise self._refused(pending.failure) from pending.failure

    def close(self) -> None:
        """Close the segment; a later append opens a new one."""
        with self._turn:
            while self._committing:
                self._turn.wait()
            self._abandon()

    def _commit(self) -> None:
        """Write what is queued; others queue meanwhile, and are woken afterwards."""
        group, self._queue = self._queue, []
        failure: OSError | None = OSError("the write was cut off")
        self._committing = True
        self._turn.release()
        try:
            self._write(b"".join(pending.data for pending in group))
            failure = None
        except OSError as error:
            failure = error
        finally:
            if failure is not None:
                # What a disk holds after a failed write or sync nobody knows: that segment ends.
                self._abandon()
            self._turn.acquire()
            self._committing = False
            for pending in group:
                pending.failure = failure
                pending.settled = True
            self._turn.notify_all()

    def _write(self, data: bytes) -> None:
        descriptor = self._segment()
        before = self._size
        try:
            view = memoryview(data)
            while view:
                written = os.write(descriptor, view)
                self._size += written
                view = view[written:]
            os.fsync(descriptor)
        except OSError:
            # Nobody is told that these lines were kept, so better they are not.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, before)
            raise

    def _segment(self) -> int:
        """Descriptor of the segment to write to."""
        if self._descriptor is not None and (
            self._size >= self._segment_bytes
            or not 0 <= time.time() - self._opened_at < self._segment_seconds
        ):
            self._abandon()
        if self._descriptor is None:
            self._descriptor = self._create()
            self._size = 0
            self._opened_at = time.time()
            atomic.sync(self.folder)
        return self._descriptor

    def _create(self) -> int:
        taken = [number_of(path) for path in self.folder.glob(f"{self._name}-*{SUFFIX}")]
        number = max([time.time_ns() // 1_000, *(other + 1 for other in taken)])
        while True:
            path = self.folder / f"{self._name}-{number:08d}{SUFFIX}"
            try:
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            except FileExistsError:  # another process of this name, which should not be
                number += 1

    def _abandon(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # network filesystems tell of lost writes here too
                os.close(self._descriptor)
            self._descriptor = None

    def _refused(self, error: OSError) -> StoreError:
        return StoreError(
            f"the log cannot be written: {error.strerror or error}; nothing is acknowledged",
            where=str(self.folder),
            todo="Make room on the disk or mend the rights, then send the same again.",
        )


def number_of(segment: Path) -> int:
    """Number of a segment; 0 where the name holds none."""
    number = segment.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0
