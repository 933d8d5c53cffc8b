"""Which versions were promoted when: an append-only file of JSON lines.

    {"version": 3, "at": 1760000000, "rollback": false, "seal": "5f2c..."}

A line that a crash left unfinished at the end is not read, and goes with the next append.
"""

from __future__ import annotations

import os
import time
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
        StoreError: A line other than the last is damaged.
    """
    path = root / HISTORY
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
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


def append(root: Path, version: int, *, rollback: bool = False, seal: str = "") -> None:
    """Add a promotion; it is on the disk when this returns."""
    promotion = Promotion(version=version, at=int(time.time()), rollback=rollback, seal=seal)
    line = promotion.model_dump_json()
    with (root / HISTORY).open("ab+") as file:
        file.seek(0)
        content = file.read()
        if content and not content.endswith(b"\n"):
            whole = content.rfind(b"\n") + 1
            try:
                Promotion.model_validate_json(content[whole:])
                file.write(b"\n")
            except ValidationError:
                file.truncate(whole)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def before(promotions: Sequence[Promotion], current: int) -> int | None:
    """The version promoted before the present one; ways back are undone, not counted.

    Args:
        promotions: Oldest first.
        current: The present version; a crash may have kept it out of the history.
    """
    stack: list[int] = []
    for one in promotions:
        if one.rollback and one.version in stack:
            while stack[-1] != one.version:
                stack.pop()
        elif stack[-1:] != [one.version]:
            stack.append(one.version)
    if stack[-1:] != [current]:
        stack.append(current)
    return stack[-2] if len(stack) > 1 else None
