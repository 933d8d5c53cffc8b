"""Reading segments that others still write to: from a place on, whole lines only."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from reki_ray.events.record_codec import MAX_LINE_BYTES, decode_line
from reki_ray.events.segment_writer import SEGMENT_SECONDS, SUFFIX

_logger = logging.getLogger(__name__)

_CHUNK_BYTES: Final = 2 * MAX_LINE_BYTES
_TORN_AFTER_SECONDS: Final = 60.0
"""A line without an end for so long was cut off by its writer's death."""

PATIENCE_SECONDS: Final = 60.0
"""What followers of a log take: network filesystems show a line's pages in any order."""

Place = dict[str, int]
"""How far a reader has come: bytes read of each segment, by its name."""


class SegmentReader:
    """Reads each whole line of a folder's segments once, as they grow; the oldest segment first.

    A line that is damaged or torn is logged, counted and passed over. A segment that cannot be
    read, for instance because it was just pruned, is told of once and left for the next time;
    it keeps its place, and the others are read. One thread at a time.

    Args:
        folder: The segments; it may come to be later.
        place: Where to go on; None starts at the beginning.
        patience: A line of a segment that changed within so many seconds is damaged only when it
            has been for as long; until then the reader waits before it. 0 waits for none.
        since: Segments that were last written to before this time are passed over, seconds since
            the epoch.

    Attributes:
        damaged: Lines passed over so far.
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
        self._told: set[str] = set()
        self._unreadable: set[str] = set()
        self._doubted: dict[str, tuple[int, float]] = {}  # where a line is damaged, and since when
        self.damaged = 0

    @property
    def place(self) -> Place:
        """How far the reader has come."""
        return dict(self._place)

    def read(self) -> Iterator[dict[str, Any]]:
        """Records that came since; a loop that is left early is gone on with later.

        Raises:
            OSError: The folder cannot be listed.
        """
        try:
            names = {name for name in os.listdir(self._folder) if name.endswith(SUFFIX)}
        except FileNotFoundError:  # nothing was logged yet, or the folder is away for a while
            return
        for name in self._place.keys() - names:  # pruned
            del self._place[name]
        self._unreadable &= names
        found = self._states(names)
        for name, (changed_at, size) in sorted(found.items(), key=lambda one: (one[1][0], one[0])):
            if changed_at >= self._since and size > self._place.get(name, 0):
                yield from self._segment(name, changed_at)

    def _states(self, names: Iterable[str]) -> dict[str, tuple[float, int]]:
        """Time of change and size in bytes of the segments that show them."""
        found = {}
        for name in names:
            try:
                state = (self._folder / name).stat()
            except OSError as error:
                self._cannot_read(name, error)
            else:
                found[name] = (state.st_mtime, state.st_size)
        return found

    def _segment(self, name: str, changed_at: float) -> Iterator[dict[str, Any]]:
        try:
            with (self._folder / name).open("rb") as file:
                while True:
                    start = self._place.get(name, 0)
                    file.seek(start)
                    chunk = file.read(_CHUNK_BYTES)
                    self._unreadable.discard(name)
                    end = chunk.rfind(b"\n") + 1
                    if not end and len(chunk) < _CHUNK_BYTES:
                        self._tell_torn(name, start, len(chunk), changed_at)
                        return
                    if not end:  # no line is that long
                        self._tell(name, start)
                        self._place[name] = start + len(chunk)
                        continue
                    if not (yield from self._lines(name, start, chunk[:end], changed_at)):
                        return
        except OSError as error:
            self._cannot_read(name, error)

    def _cannot_read(self, name: str, error: OSError) -> None:
        if name not in self._unreadable:  # not at every look
            self._unreadable.add(name)
            _logger.warning("segment %s cannot be read now: %s", name, error)

    def _lines(
        self, name: str, start: int, lines: bytes, changed_at: float
    ) -> Generator[dict[str, Any], None, bool]:
        """Records of lines; whether the reader came to their end."""
        for line in lines.removesuffix(b"\n").split(b"\n"):
            record = decode_line(line)
            if record is None:
                if self._may_become_whole(name, start, changed_at):
                    return False
                self._tell(name, start)
            start += len(line) + 1
            self._place[name] = start
            if record is not None:
                yield record
        return True

    def _may_become_whole(self, name: str, start: int, changed_at: float) -> bool:
        now = time.monotonic()
        place, since = self._doubted.get(name, (start, now))
        if place != start:
            since = now
        waits = time.time() - changed_at < self._patience and now - since < self._patience
        if waits:
            self._doubted[name] = (start, since)
        else:
            self._doubted.pop(name, None)
        return waits

    def _tell_torn(self, name: str, start: int, length: int, changed_at: float) -> None:
        if length and name not in self._told and time.time() - changed_at > _TORN_AFTER_SECONDS:
            self._told.add(name)
            self._tell(name, start)

    def _tell(self, name: str, start: int) -> None:
        self.damaged += 1
        _logger.warning("%s: the line at byte %d is damaged and passed over", name, start)


def prune(folder: Path | str, place: Mapping[str, int] | None, older_than: float) -> int:
    """Remove segments that were read to their end and that nobody writes to any more.

    One that cannot be read or removed is told of and stays.

    Args:
        folder: The segments; it may come to be later.
        place: How far the reader that must miss nothing has come; None where there is none.
        older_than: Age of a segment's last line, seconds; at least twice the age at which a
            writer leaves a segment.

    Returns:
        Number of segments removed.
    """
    limit = time.time() - max(older_than, 2 * SEGMENT_SECONDS)
    removed = 0
    for path in Path(folder).glob(f"*{SUFFIX}"):
        try:
            is_old = path.stat().st_mtime < limit
            if is_old and (place is None or _is_read(path, place.get(path.name, 0))):
                path.unlink()
                removed += 1
        except OSError as error:
            _logger.warning("segment %s cannot be pruned: %s", path.name, error)
    return removed


def _is_read(path: Path, place: int) -> bool:
    """Whether no whole line is left; a torn one at the end counts as read."""
    with path.open("rb") as file:
        file.seek(place)
        rest = file.read(_CHUNK_BYTES)
    return len(rest) < _CHUNK_BYTES and b"\n" not in rest
