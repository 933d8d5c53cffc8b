"""Ranges of slots for shares of users; a change moves as few slots as possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

SLOTS: Final = 1_000_000

Ranges = tuple[tuple[int, int], ...]
"""Ranges [from, to) of slots, ascending."""


def rounded(shares: Mapping[str, float]) -> dict[str, int]:
    """Shares that sum to 1 as numbers of slots that sum to `SLOTS` (largest remainder)."""
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
        owned: Who owns which slots; what nobody owns is free.
        sizes: Slots that each name gets, `SLOTS` together; a name of `owned` that is not among
            them loses all it has.

    Returns:
        Slots of each name. A name that does not shrink keeps all it had, and one that shrinks
        keeps as many as it may: the lowest.
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
    found = []
    for begin, end in ranges:
        if count <= 0:
            break
        found.append((begin, min(end, begin + count)))
        count -= end - begin
    return tuple(found)


def _rest(taken: Iterable[Ranges]) -> Ranges:
    """Slots in none of some ranges."""
    found, last = [], 0
    for begin, end in sorted(one for ranges in taken for one in ranges):
        if begin > last:
            found.append((last, begin))
        last = end
    if last < SLOTS:
        found.append((last, SLOTS))
    return tuple(found)


def _joined(ranges: list[tuple[int, int]]) -> Ranges:
    """Ascending, with neighbours made one."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if found and found[-1][1] == begin:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    return tuple(found)
