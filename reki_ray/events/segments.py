"""Logs as folders of segments: durable appends, and reads while others still write.

A segment `<writer>-<number>.jsonl` has one writer while that lives: a process never continues a
file of an earlier one, which may end in a torn line. Numbers are times in microseconds: a name is
never reused, even after its segment was pruned, since readers remember positions by name.

A record is one line with a checksum: `<CRC-32 of the rest, 8 hexadecimal digits> <JSON object>` and
a line feed. JSON escapes line feeds in values; other characters stay as they are, in UTF-8.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote

from reki_ray.core import atomic
from reki_ray.errors import ConfigError, DataError, StoreError

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

SUFFIX: Final = ".jsonl"
SEGMENT_BYTES: Final = 64 * 2**20
SEGMENT_SECONDS: Final = 86_400.0
"""A segment this old gets no more lines, so that `prune` never removes one in use."""

_MAX_NAME_CHARS: Final = 200

MAX_LINE_BYTES: Final = 2**21
"""Longest line written; a longer one in a file is damage."""

_CHECK_CHARS: Final = 8

_LONGEST_READ: Final = 2 * MAX_LINE_BYTES
_TORN_AFTER_SECONDS: Final = 60.0
"""After this time a line without an end was cut off by the death of its writer."""

PATIENCE_SECONDS: Final = 60.0
"""`patience` of a log's followers: network filesystems show a line's pages in any order."""

Place = dict[str, int]
"""Position of a reader: bytes read of each segment, by its name."""


def encode_line(record: Mapping[str, Any]) -> bytes:
    """Encode a record as a line.

    Raises:
        DataError: It is not JSON-serialisable, or too long.
    """
    try:
        text = json.dumps(record, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        body = text.encode("utf-8", "surrogatepass")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the record cannot be kept: {error}",
            where=f"fields {', '.join(record)}",
            todo="Send text, finite numbers and lists of them.",
        ) from error
    line = b"%08x %b\n" % (zlib.crc32(body), body)
    if len(line) > MAX_LINE_BYTES:
        raise DataError(
            f"the record takes {len(line)} bytes, more than {MAX_LINE_BYTES}",
            where=f"fields {', '.join(record)}",
            todo="Shorten its ids or lists.",
        )
    return line


def decode_line(line: bytes) -> dict[str, Any] | None:
    """Decode a line without its line feed; None if it is damaged."""
    check, blank, body = line.partition(b" ")
    if not blank or len(check) != _CHECK_CHARS or check != b"%08x" % zlib.crc32(body):
        return None
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):  # nested too deeply
        return None
    return record if isinstance(record, dict) else None


@dataclass
class _Pending:
    """Lines waiting to be written."""

    data: bytes
    settled: bool = False
    failure: OSError | None = None


class SegmentWriter:
    """Appends records of one process from many threads.

    Concurrent appends are written and synced together (group commit): while one thread waits for
    the disk, the others queue, and the next one writes all of theirs. Segments end by size or age.

    Args:
        writer: Name of this process, unique among running ones.

    Raises:
        ConfigError: The name is empty or too long.
        StoreError: The folder cannot be created.
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
        self._turn = threading.Condition()  # guards the queue and the turn to write
        self._descriptor: int | None = None
        self._size = 0
        self._opened_at = 0.0
        try:
            atomic.make_folder(self.folder)
        except OSError as error:
            raise self._refused(error) from error

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append JSON-ready records durably, all or none, see `append_lines`."""
        self.append_lines([encode_line(record) for record in records])

    def append_lines(self, lines: Sequence[bytes]) -> None:
        """Append lines of `encode_line` durably.

        Raises:
            StoreError: The write failed, for example on a full disk; nothing is acknowledged.
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
        """Write the queued lines; other threads queue meanwhile and are woken afterwards."""
        group, self._queue = self._queue, []
        failure: OSError | None = OSError("the write was interrupted")
        self._committing = True
        self._turn.release()
        try:
            self._write(b"".join(pending.data for pending in group))
            failure = None
        except OSError as error:
            failure = error
        finally:
            if failure is not None:
                # After a failed write or sync the content on disk is unknown: end the segment.
                self._abandon()
            self._turn.acquire()
            self._committing = False
            for pending in group:
                pending.failure = failure
                pending.settled = True
            self._turn.notify_all()

    def _write(self, data: bytes) -> None:
        if self._descriptor is not None and (
            self._size >= self._segment_bytes
            or not 0 <= time.time() - self._opened_at < self._segment_seconds
        ):
            self._abandon()
        if self._descriptor is None:
            self._descriptor, self._size = self._create(), 0
            self._opened_at = time.time()
            atomic.sync(self.folder)
        before = self._size
        try:
            view = memoryview(data)
            while view:
                written = os.write(self._descriptor, view)
                self._size += written
                view = view[written:]
            os.fsync(self._descriptor)
        except OSError:
            # These lines are not acknowledged: try to remove them.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, before)
            raise

    def _create(self) -> int:
        taken = [number_of(path) for path in self.folder.glob(f"{self._name}-*{SUFFIX}")]
        number = max([time.time_ns() // 1_000, *(other + 1 for other in taken)])
        while True:
            path = self.folder / f"{self._name}-{number:08d}{SUFFIX}"
            try:
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            except FileExistsError:  # another process uses this name, against the rules
                number += 1

    def _abandon(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # network filesystems report lost writes here too
                os.close(self._descriptor)
            self._descriptor = None

    def _refused(self, error: OSError) -> StoreError:
        return StoreError(
            f"the log cannot be written: {error.strerror or error}; nothing is acknowledged",
            where=str(self.folder),
            todo="Free disk space or correct the permissions, then send the same again.",
        )


def number_of(segment: Path) -> int:
    """Number of a segment; 0 if its name has none."""
    number = segment.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


class SegmentReader(Generic[_T]):
    """Reads each complete line of a folder's segments once, oldest segment first, as they grow.

    Subclasses parse records. A damaged or torn line is logged, counted and skipped. A segment that
    cannot be read, for example because it was just pruned, is logged once and retried at the next
    read; it keeps its position. Not thread-safe.

    Args:
        place: Where to resume; None starts at the beginning.
        patience: Seconds to wait at a damaged line of a segment that changed as recently, before
            it is skipped; 0 does not wait.
        since: Skip segments last written before this time, seconds since the epoch.

    Attributes:
        damaged: Lines skipped so far, including records that `parse` rejects.
    """

    def __init__(
        self,
        folder: Path | str,
        place: Mapping[str, int] | None = None,
        *,
        patience: float = 0.0,
        since: float = 0.0,
    ) -> None:
        self._folder = Path(folder)
        self._place: Place = dict(place or {})
        self._patience = patience
        self._since = since
        self._torn: set[str] = set()
        self._unreadable: set[str] = set()
        self._suspects: dict[str, tuple[int, float]] = {}  # offset of a damaged line, and when
        self.damaged = 0

    @property
    def place(self) -> Place:
        """Position of the reader."""
        return dict(self._place)

    def parse(self, record: dict[str, Any]) -> _T:
        """Convert a record; later releases may add fields.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: The record is invalid.
        """
        raise NotImplementedError

    def read(self) -> Iterator[_T]:
        """New records; a loop that is left early resumes with the next call.

        Raises:
            OSError: The folder cannot be listed.
        """
        try:
            names = {name for name in os.listdir(self._folder) if name.endswith(SUFFIX)}
        except FileNotFoundError:  # nothing logged yet, or the folder is temporarily unavailable
            return
        for name in self._place.keys() - names:  # pruned
            del self._place[name]
        self._unreadable &= names
        segments = []
        for name in names:
            try:
                state = (self._folder / name).stat()
                segments.append((state.st_mtime, name, state.st_size))
            except OSError as error:
                self._cannot_read(name, error)
        for changed_at, name, size in sorted(segments):
            if changed_at >= self._since and size > self._place.get(name, 0):
                yield from self._segment(name, changed_at)

    def _segment(self, name: str, changed_at: float) -> Iterator[_T]:
        try:
            with (self._folder / name).open("rb") as file:
                start = file.seek(self._place.get(name, 0))
                while line := file.readline(_LONGEST_READ):
                    self._unreadable.discard(name)
                    is_whole = line.endswith(b"\n")
                    if not is_whole and len(line) < _LONGEST_READ:  # still being written, or torn
                        age = time.time() - changed_at
                        if name not in self._torn and age > _TORN_AFTER_SECONDS:
                            self._torn.add(name)
                            self._skip(name, start)
                        return
                    record = decode_line(line[:-1]) if is_whole else None
                    if record is None:
                        if is_whole and self._may_become_whole(name, start, changed_at):
                            return
                        self._skip(name, start)
                    start = self._place[name] = start + len(line)
                    if record is not None:
                        try:
                            parsed = self.parse(record)
                        except (KeyError, TypeError, ValueError, OverflowError):
                            self.damaged += 1
                        else:
                            yield parsed
        except OSError as error:
            self._cannot_read(name, error)

    def _cannot_read(self, name: str, error: OSError) -> None:
        if name not in self._unreadable:  # once, not at every read
            self._unreadable.add(name)
            _logger.warning("segment %s cannot be read: %s", name, error)

    def _may_become_whole(self, name: str, start: int, changed_at: float) -> bool:
        now = time.monotonic()
        place, since = self._suspects.pop(name, (start, now))
        since = since if place == start else now
        waits = time.time() - changed_at < self._patience and now - since < self._patience
        if waits:
            self._suspects[name] = (start, since)
        return waits

    def _skip(self, name: str, start: int) -> None:
        self.damaged += 1
        _logger.warning("%s: skipped the damaged line at byte %d", name, start)


def prune(folder: Path | str, place: Mapping[str, int] | None, older_than: float) -> int:
    """Remove segments that were read to their end and have no writer any more; returns how many.

    A segment that cannot be read or removed is logged and stays.

    Args:
        place: Position of the reader that must not miss anything; None without one.
        older_than: Age of a segment's last line, seconds; at least twice `SEGMENT_SECONDS` counts.
    """
    limit = time.time() - max(older_than, 2 * SEGMENT_SECONDS)
    removed = 0
    for path in Path(folder).glob(f"*{SUFFIX}"):
        try:
            if path.stat().st_mtime < limit and (
                place is None or _is_read(path, place.get(path.name, 0))
            ):
                path.unlink()
                removed += 1
        except OSError as error:
            _logger.warning("segment %s cannot be pruned: %s", path.name, error)
    return removed


def _is_read(path: Path, place: int) -> bool:
    """Whether no complete line is left; a torn one at the end counts as read."""
    with path.open("rb") as file:
        file.seek(place)
        rest = file.read(_LONGEST_READ)
    return len(rest) < _LONGEST_READ and b"\n" not in rest
