"""Subjects of prompts: every user and item, or every cluster, with its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa

from reki_ray.config import PromptsConfig
from reki_ray.extraction.shards import ShardRows
from reki_ray.prompts.renderer import LIKED, Prompt, Renderer, histogram
from reki_ray.prompts.sanitize import Attributes
from reki_ray.schema import ATTRIBUTES, ITEM_ID, LABEL, RATING, TEXT, TITLE, USER_ID

_BEST_LIKED = 4
"""Best-liked titles of a user inside a group, shown before the least-liked one."""


class SeenItem(NamedTuple):
    """One interaction before the cut."""

    item_id: str
    rating: float | None
    label: int


class Subjects:
    """Iterates over the prompts of one shard."""

    def __init__(self, rows: ShardRows, renderer: Renderer, limits: PromptsConfig) -> None:
        self._kind = rows.kind
        self._members = rows.members
        self._renderer = renderer
        self._limits = limits
        self._items = _rows_by_id(rows.items, ITEM_ID)
        self._users = _rows_by_id(rows.users, USER_ID)
        self._histories = Histories(rows.visible)

    def __iter__(self) -> Iterator[Prompt]:
        each = {
            "item": self._each_item,
            "user": self._each_user,
            "item_cluster": self._each_item_cluster,
            "user_cluster": self._each_user_cluster,
        }
        return each[self._kind]()

    def shown(self, subject_id: str) -> list[str]:
        """Members in the prompt of a cluster, nearest first; empty for a single id."""
        return self._members.get(subject_id, [])[: self._limits.max_members]

    def _each_item(self) -> Iterator[Prompt]:
        for item_id, row in self._items.items():
            yield self._renderer.item(item_id, row[TITLE] or "", row[ATTRIBUTES], row[TEXT])

    def _each_user(self) -> Iterator[Prompt]:
        for user_id, row in self._users.items():
            history = self._titles(self._histories.of(user_id))
            yield self._renderer.user(user_id, row[ATTRIBUTES], history)

    def _each_item_cluster(self) -> Iterator[Prompt]:
        for cluster, ids in self._members.items():
            shares = histogram(_attributes(self._items, ids))
            shown = self.shown(cluster)
            titles = map(self._title, shown)
            members = list(zip(titles, _attributes(self._items, shown), strict=True))
            yield self._renderer.item_cluster(cluster, len(ids), members, shares)

    def _each_user_cluster(self) -> Iterator[Prompt]:
        most = self._limits.max_history
        for cluster, ids in self._members.items():
            events = (event for user_id in ids for event in self._histories.of(user_id))
            liked = _attributes(self._items, (event.item_id for event in events if event.label))
            shares = {
                **histogram(_attributes(self._users, ids)),
                **{f"{LIKED}{name}": values for name, values in histogram(liked).items()},
            }
            shown = self.shown(cluster)
            histories = (
                self._titles(_extremes(self._histories.of(user_id)[-most:])) for user_id in shown
            )
            members = list(zip(_attributes(self._users, shown), histories, strict=True))
            yield self._renderer.user_cluster(cluster, len(ids), members, shares)

    def _title(self, item_id: str) -> str:
        """Title of an item; empty for an unknown item."""
        return self._items.get(item_id, {}).get(TITLE) or ""

    def _titles(self, events: Sequence[SeenItem]) -> list[tuple[str, float | None]]:
        return [(self._title(event.item_id), event.rating) for event in events]


class Histories:
    """Interactions of some users before the cut, oldest first.

    Args:
        visible: Rows of `leak_guard.before_cut`, the rows of a user side by side; None for none.
    """

    def __init__(self, visible: pa.Table | None) -> None:
        self._events: dict[str, slice] = {}
        self._columns: list[list[Any]] = [[], [], []]
        if visible is None:
            return
        self._columns = [visible[name].to_pylist() for name in (ITEM_ID, RATING, LABEL)]
        start = 0
        for user, events in groupby(visible[USER_ID].to_pylist()):
            stop = start + sum(1 for _ in events)
            self._events[user] = slice(start, stop)
            start = stop

    def of(self, user_id: str) -> list[SeenItem]:
        """Visible interactions of a user; empty for an unknown user."""
        rows = self._events.get(user_id, slice(0, 0))
        return list(map(SeenItem._make, zip(*(c[rows] for c in self._columns), strict=True)))


def _rows_by_id(table: pa.Table | None, key: str) -> dict[str, dict[str, Any]]:
    """What prompts show of users or items, by id."""
    if table is None:
        return {}
    shown = [name for name in (key, TITLE, TEXT, ATTRIBUTES) if name in table.column_names]
    rows = table.select(shown).to_pylist(maps_as_pydicts="lossy")  # names are unique
    return {row[key]: row for row in rows}


def _attributes(
    rows: Mapping[str, Mapping[str, Any]], ids: Iterable[str]
) -> Iterator[Attributes | None]:
    """Attributes of each id; None for an unknown one."""
    return (rows.get(key, {}).get(ATTRIBUTES) for key in ids)


def _extremes(events: Sequence[SeenItem]) -> list[SeenItem]:
    """The best-liked interactions and the least-liked one; without ratings the first ones."""
    ranked = sorted(events, key=lambda event: -(event.rating or 0.0))
    if len(ranked) <= _BEST_LIKED:
        return ranked
    return [*ranked[:_BEST_LIKED], ranked[-1]]
