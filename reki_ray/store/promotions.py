"""Which versions were promoted when: JSON lines, the latest one last.

    {"version": 3, "at": 1760000000, "rollback": false, "seal": "5f2c..."}

A line that a crash left unfinished at the end is not read, and goes with the next promotion.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from reki_ray.errors import StoreError

HISTORY: Final = "HISTORY"


class Promotion(BaseModel):
    """One move of the pointer.

    Attributes:
        version: Version that was made the current one.
        at: Seconds since the epoch.
        rollback: Whether it was a way back.
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
    found = []
    for number, line in enumerate(lines, 1):
        if not line and number == len(lines):
            continue
        try:
            found.append(Promotion.model_validate_json(line))
        except ValidationError as error:
            if number == len(lines):  # torn: the promotion itself may have come about
                continue
            raise StoreError(
                f"line {number} is damaged",
                where=str(path),
                todo="Remove this line; `reki promote N` needs no history.",
            ) from error
    return found


def extended(root: Path, current: int | None, move: Promotion) -> bytes:
    """Content of the file with one more promotion.

    Args:
        root: Folder of the versions.
        current: The present version, which a crash may have kept out of the history: then it is
            noted too; None if nothing is served.
    """
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
    return content + b"".join(one.model_dump_json().encode() + b"\n" for one in moves)


def before(promotions: Sequence[Promotion], current: int) -> int | None:
    """The version promoted before the present one; ways back are undone, not counted.

    Args:
        promotions: Oldest first.
        current: The present version; a crash may have kept it out of the history.
    """
    stack = _stack(promotions)
    if current in stack[-2:-1]:  # a way back
        stack.pop()
    elif stack[-1:] != [current]:
        stack.append(current)
    return stack[-2] if len(stack) > 1 else None


def _stack(promotions: Sequence[Promotion]) -> list[int]:
    """Versions that one can go back to, the present one last."""
    stack: list[int] = []
    for one in promotions:
        if one.rollback and one.version in stack:
            while stack[-1] != one.version:
                stack.pop()
        elif stack[-1:] != [one.version]:
            stack.append(one.version)
    return stack
