"""Allots slots to shares of users; a change moves as few slots as possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Final

SLOTS: Final = 1_000_000

Ranges = tuple[tuple[int, int], ...]
"""Ranges [from, to) of slots, ascending."""


def rounded(shares: Mapping[str, float]) -> dict[str, int]:
    """Convert shares to numbers of slots that sum to `SLOTS` (largest remainder)."""
    total = sum(shares.values())
    exact = {name: share / total * SLOTS for name, share in shares.items()}
    sizes = {name: int(amount) for name, amount in exact.items()}
    left = SLOTS - sum(sizes.values())
    by_remainder = sorted(exact, key=lambda name: sizes[name] - exact[name])
    for name in by_remainder[:left]:
        sizes[name] += 1
    return sizes


def allot(owned: Mapping[str, Ranges], sizes: Mapping[str, int]) -> dict[str, Ranges]:
    """Give each name its number of slots.

    Args:
        owned: Current slots of each name; all others are free.
        sizes: Slots per name, `SLOTS` in total; other names of `owned` lose theirs.

    Returns:
        Slots of each name. One that does not shrink keeps all of its slots, and one that shrinks
        keeps its lowest.
    """
    kept = {name: _first(owned.get(name, ()), size) for name, size in sizes.items()}
    free = _rest(kept.values())
    for name, size in sizes.items():
        taken = _first(free, size - _count(kept[name]))
        kept[name] = _joined([*kept[name], *taken])
        free = _rest(kept.values())
    return kept


def _count(ranges: Ranges) -> int:
    return sum(end - begin for begin, end in ranges)


def _first(ranges: Ranges, count: int) -> Ranges:
    """The lowest slots."""
    lowest = []
    for begin, end in ranges:
        if count <= 0:
            break
        lowest.append((begin, min(end, begin + count)))
        count -= end - begin
    return tuple(lowest)


def _rest(taken: Iterable[Ranges]) -> Ranges:
    """Slots in none of the ranges."""
    free, last = [], 0
    for begin, end in sorted(chain.from_iterable(taken)):
        if begin > last:
            free.append((last, begin))
        last = end
    if last < SLOTS:
        free.append((last, SLOTS))
    return tuple(free)


def _joined(ranges: list[tuple[int, int]]) -> Ranges:
    """Sorted, with adjacent ranges merged."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return tuple(joined)
