"""Which version is served, and which were promoted when.

    <root>/CURRENT                         number of the version that is served
    <root>/HISTORY                         JSON lines, the latest one last:
    {"version": 3, "at": 1760000000, "rollback": false, "seal": "5f2c..."}

A line that a crash left unfinished at the end is not read, and goes with the next promotion.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from reki_ray.core import atomic
from reki_ray.errors import StoreError

CURRENT: Final = "CURRENT"
HISTORY: Final = "HISTORY"
LOCK_MODE: Final = 0o666
"""Publisher and service may be two users, whatever the umask."""

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
"""As folders and the pointer name it; `int` would take `+1`, `1_0` and 400 digits too."""
_POINTER_SECONDS: Final = 5.0
"""Longest wait for another process that moves the pointer, which takes milliseconds."""
_UNCHANGED: Final = (
    "Nothing was changed: look at `reki versions`, and try again if it is still wanted."
)

_logger = logging.getLogger(__name__)


class NotCurrentError(StoreError):
    """Another version than the expected one is current."""


class Promotion(BaseModel):
    """One move of the pointer.

    Attributes:
        at: Seconds since the epoch.
        seal: Seal of the files whose checksums were compared for it; empty where none were.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    at: int
    rollback: bool = False
    seal: str = ""


def read(root: Path) -> list[Promotion]:
    """All promotions below a root, oldest first.

    Raises:
        StoreError: It cannot be read, or a line other than the last is damaged.
    """
    path = root / HISTORY
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(
            f"the history cannot be read: {error.strerror or error}",
            where=str(path),
            todo="Mend its rights, or move it away; `reki promote N` needs no history.",
        ) from error
    promotions = []
    for number, line in enumerate(lines, 1):
        if not line and number == len(lines):
            continue
        try:
            promotions.append(Promotion.model_validate_json(line))
        except ValidationError as error:
            if number == len(lines):  # torn: the promotion itself may have come about
                continue
            raise StoreError(
                f"line {number} is damaged",
                where=str(path),
                todo="Remove this line; `reki promote N` needs no history.",
            ) from error
    return promotions


def version_numbers(root: Path) -> list[int]:
    """Numbers of the finished versions below a root, ascending."""
    if not root.is_dir():
        return []
    names = (entry.name for entry in root.iterdir() if entry.is_dir())
    return sorted(int(n[1:]) for n in names if n[:1] == "v" and _NUMBER.fullmatch(n[1:]))


class VersionPointer(Protocol):
    """Which version of a store is served."""

    def current(self) -> int:
        """Number of the version that is served; raises StoreError."""

    def require(self, expected: int | None) -> None:
        """Refuse another current version than the expected one, by a NotCurrentError."""

    def history(self) -> list[Promotion]:
        """All promotions, oldest first; raises StoreError."""

    def move(self, number: int, *, expected: int | None, seal: str, rollback: bool = False) -> None:
        """Make a version the current one, and note it in the history; raises StoreError."""


def require_current(current: int | None, expected: int, where: str) -> None:
    """Refuse another current version than the expected one.

    Raises:
        NotCurrentError: It is another.
    """
    if current != expected:
        what = "no version" if current is None else f"version {current}"
        raise NotCurrentError(f"{what} is current, not {expected}", where=where, todo=_UNCHANGED)


class Pointer:
    """Which version below a root is served; it has a lock of its own, held for a move alone."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def current(self) -> int:
        """Number of the version that is served.

        Raises:
            StoreError: Nothing is published, or the pointer is damaged.
        """
        pointer = self.root / CURRENT
        try:
            content = pointer.read_bytes().decode("ascii", "replace").strip()
        except FileNotFoundError as error:
            raise StoreError(
                "nothing is published", where=str(self.root), todo="Run `reki publish` first."
            ) from error
        except OSError as error:
            raise StoreError(
                f"the pointer cannot be read: {error.strerror or error}",
                where=str(pointer),
                todo="Make it a file that may be read, then run `reki promote N` with one of "
                f"{version_numbers(self.root)}.",
            ) from error
        if _NUMBER.fullmatch(content) is None:
            raise StoreError(
                "the pointer holds no version number",
                where=str(pointer),
                todo=f"Run `reki promote N` with one of {version_numbers(self.root)}.",
            )
        return int(content)

    def require(self, expected: int | None) -> None:
        """Refuse another current version than the expected one, if one is.

        Raises:
            StoreError: It is another.
        """
        if expected is not None:
            require_current(self.current(), expected, str(self.root / CURRENT))

    def history(self) -> list[Promotion]:
        """All promotions, see `read`."""
        return read(self.root)

    def move(self, number: int, *, expected: int | None, seal: str, rollback: bool = False) -> None:
        """Make a version the current one, and note it in the history.

        Args:
            expected: Do so only if this version is current; None: whichever is.
            seal: Seal of its files, if their checksums were compared.

        Raises:
            StoreError: Another version is current, another process holds the pointer for long, or
                the disk refuses; the current version is unchanged.
        """
        with self._lock():
            self.require(expected)
            move = Promotion(version=number, at=int(time.time()), rollback=rollback, seal=seal)
            try:
                with atomic.writing(self.root / HISTORY, mode=0o644) as history:
                    history.write(_extended(self.root, self._current_or_none(), move))
                    # On the disk before the pointer moves, so that a full disk refuses both.
                    history.flush()
                    os.fsync(history.fileno())
                    atomic.replace_file(self.root / CURRENT, f"{number}\n".encode(), mode=0o644)
            except OSError as error:
                current = self._current_or_none()
                if current == number:
                    _logger.warning(
                        "version %d is served, but not noted as promoted: %s", number, error
                    )
                    return
                served = "nothing is" if current is None else f"version {current} is still"
                raise StoreError(
                    f"version {number} is not promoted, {served} served: {error.strerror or error}",
                    where=str(error.filename2 or error.filename or self.root / CURRENT),
                    todo=f"Make room on the disk or mend the rights, then `reki promote {number}`.",
                ) from error

    def _current_or_none(self) -> int | None:
        try:
            return self.current()
        except StoreError:
            return None

    @contextmanager
    def _lock(self) -> Iterator[None]:
        lock = FileLock(self.root / ".pointer.lock", timeout=_POINTER_SECONDS, mode=LOCK_MODE)
        try:
            lock.acquire()
        except (Timeout, OSError) as error:
            raise StoreError(
                "another process is moving the pointer"
                if isinstance(error, Timeout)
                else f"the pointer cannot be locked: {error.strerror or error}",
                where=str(self.root / CURRENT),
                todo=_UNCHANGED,
            ) from error
        try:
            yield
        finally:
            lock.release()


def before(promotions: Sequence[Promotion], current: int) -> int | None:
    """The version promoted before the present one; ways back are undone, not counted.

    A crash may have kept the current version out of the promotions.
    """
    stack = _stack(promotions)
    if current in stack[-2:-1]:  # a way back
        stack.pop()
    elif stack[-1:] != [current]:
        stack.append(current)
    return stack[-2] if len(stack) > 1 else None


def _extended(root: Path, current: int | None, move: Promotion) -> bytes:
    """Content of the file with one more promotion, and with the current one if a crash lost it."""
    path = root / HISTORY
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        whole = content.rfind(b"\n") + 1
        try:
            Promotion.model_validate_json(content[whole:])
            content += b"\n"
        except ValidationError:
            content = content[:whole]
    moves = [move]
    if current is not None:
        with contextlib.suppress(StoreError):  # a damaged history is left alone
            stack = _stack(read(root))
            if stack and stack[-1] != current:
                back = current in stack[-2:-1]
                moves.insert(0, Promotion(version=current, at=move.at, rollback=back))
    return content + b"".join(each.model_dump_json().encode() + b"\n" for each in moves)


def _stack(promotions: Sequence[Promotion]) -> list[int]:
    """Versions that one can go back to, the present one last."""
    stack: list[int] = []
    for move in promotions:
        if move.rollback and move.version in stack:
            while stack[-1] != move.version:
                stack.pop()
        elif stack[-1:] != [move.version]:
            stack.append(move.version)
    return stack
