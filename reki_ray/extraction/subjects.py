"""Subjects of prompts: every user and item, or every cluster, with its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
        self._items = _Rows(rows.items, ITEM_ID)
        self._users = _Rows(rows.users, USER_ID)
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
        for item_id in self._items.ids:
            title, text = self._items.title(item_id), self._items.value(item_id, TEXT)
            yield self._renderer.item(item_id, title, self._items.attributes(item_id), text)

    def _each_user(self) -> Iterator[Prompt]:
        for user_id in self._users.ids:
            history = self._titles(self._histories.of(user_id))
            yield self._renderer.user(user_id, self._users.attributes(user_id), history)

    def _each_item_cluster(self) -> Iterator[Prompt]:
        for cluster, ids in self._members.items():
            shares = histogram(self._items.attributes(item_id) for item_id in ids)
            members = [
                (self._items.title(item_id), self._items.attributes(item_id))
                for item_id in self.shown(cluster)
            ]
            yield self._renderer.item_cluster(cluster, len(ids), members, shares)

    def _each_user_cluster(self) -> Iterator[Prompt]:
        most = self._limits.max_history
        for cluster, ids in self._members.items():
            profiles = histogram(self._users.attributes(user_id) for user_id in ids)
            liked = histogram(
                self._items.attributes(event.item_id)
                for user_id in ids
                for event in self._histories.of(user_id)
                if event.label
            )
            shares = {**profiles, **{f"{LIKED}{name}": values for name, values in liked.items()}}
            members = [
                (
                    self._users.attributes(user_id),
                    self._titles(_extremes(self._histories.of(user_id)[-most:])),
                )
                for user_id in self.shown(cluster)
            ]
            yield self._renderer.user_cluster(cluster, len(ids), members, shares)

    def _titles(self, events: Sequence[SeenItem]) -> list[tuple[str, float | None]]:
        return [(self._items.title(event.item_id), event.rating) for event in events]


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


class _Rows:
    """Rows of users or items by id."""

    def __init__(self, table: pa.Table | None, key: str) -> None:
        self.ids: list[str] = [] if table is None else table[key].to_pylist()
        self._row: Mapping[str, int] = {value: row for row, value in enumerate(self.ids)}
        self._columns: dict[str, list[Any]] = {
            name: table[name].to_pylist()
            for name in (TITLE, TEXT, ATTRIBUTES)
            if table is not None and name in table.column_names
        }

    def title(self, key: str) -> str:
        """Title of an item; empty for an unknown item."""
        return self.value(key, TITLE) or ""

    def attributes(self, key: str) -> Attributes | None:
        """Attributes by name, if there are any."""
        pairs = self.value(key, ATTRIBUTES)
        return None if pairs is None else dict(pairs)

    def value(self, key: str, column: str) -> Any:
        """Value of a column; None for an unknown id."""
        row = self._row.get(key)
        return None if row is None else self._columns[column][row]


def _extremes(events: Sequence[SeenItem]) -> list[SeenItem]:
    """The best-liked interactions and the least-liked one; without ratings the first ones."""
    ranked = sorted(events, key=lambda event: -(event.rating or 0.0))
    if len(ranked) <= _BEST_LIKED:
        return ranked
    return [*ranked[:_BEST_LIKED], ranked[-1]]
