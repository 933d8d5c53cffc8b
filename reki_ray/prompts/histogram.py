"""Shares of attribute values over a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from reki_ray.prompts.text import Attributes

TOP_VALUES = 5
"""Values kept an attribute."""

Histogram = Mapping[str, Mapping[str, float]]
"""Attribute name -> value -> share of the group in [0, 1], largest first."""


def histogram(rows: Iterable[Attributes | None], top: int = TOP_VALUES) -> Histogram:
    """Shares of attribute values over a group.

    Args:
        rows: Attributes of every member; a member with several values counts for each of them.
        top: Values kept an attribute.

    Returns:
        Attribute -> value -> share of all members, largest first, ties by name.
    """
    counts: dict[str, Counter[str]] = {}
    size = 0
    for attributes in rows:
        size += 1
        for name, values in (attributes or {}).items():
            counts.setdefault(name, Counter()).update(set(values))
    return {
        name: {
            value: count / size
            for value, count in sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))[:top]
        }
        for name, counter in sorted(counts.items())
    }
