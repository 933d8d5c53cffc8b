"""Subjects of prompts: every user and item, or every cluster, with its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import pyarrow as pa

from reki_ray.config import PromptsConfig
from reki_ray.extraction.shards import ShardRows
from reki_ray.prompts.renderer import LIKED, GroupUser, Prompt, Renderer, histogram
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
        if self._kind == "item":
            yield from self._each_item()
        elif self._kind == "user":
            yield from self._each_user()
        elif self._kind == "item_cluster":
            yield from self._each_item_cluster()
        else:
            yield from self._each_user_cluster()

    def shown(self, subject_id: str) -> list[str]:
        """Members in the prompt of a cluster, nearest first; empty for a single id."""
        return self._members.get(subject_id, [])[: self._limits.max_members]

    # --- individual ----------------------------------------------------------------------------

    def _each_item(self) -> Iterator[Prompt]:
        for item_id in self._items.ids:
            title, text = self._items.title(item_id), self._items.text(item_id)
            yield self._renderer.item(item_id, title, self._items.attributes(item_id), text)

    def _each_user(self) -> Iterator[Prompt]:
        for user_id in self._users.ids:
            history = self._titles(self._histories.of(user_id))
            yield self._renderer.user(user_id, self._users.attributes(user_id), history)

    # --- collective ----------------------------------------------------------------------------

    def _each_item_cluster(self) -> Iterator[Prompt]:
        for cluster, ids in self._members.items():
            shares = histogram(self._items.attributes(item_id) for item_id in ids)
            members = [
                (self._items.title(item_id), self._items.attributes(item_id))
                for item_id in self.shown(cluster)
            ]
            yield self._renderer.item_cluster(cluster, len(ids), members, shares)

    def _each_user_cluster(self) -> Iterator[Prompt]:
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
                GroupUser(
                    self._users.attributes(user_id),
                    self._titles(_extremes(self._latest(user_id))),
                )
                for user_id in self.shown(cluster)
            ]
            yield self._renderer.user_cluster(cluster, len(ids), members, shares)

    def _latest(self, user_id: str) -> list[SeenItem]:
        return self._histories.of(user_id)[-self._limits.max_history :]

    def _titles(self, events: Sequence[SeenItem]) -> list[tuple[str, float | None]]:
        return [(self._items.title(event.item_id), event.rating) for event in events]


class Histories:
    """Interactions of some users before the cut, oldest first.

    Args:
        visible: Rows of `leak_guard.before_cut`, the rows of a user side by side; None for none.
    """

    def __init__(self, visible: pa.Table | None) -> None:
        self._events: dict[str, slice] = {}
        self._items: list[str] = []
        self._ratings: list[float | None] = []
        self._labels: list[int] = []
        if visible is None:
            return
        self._items = visible[ITEM_ID].to_pylist()
        self._ratings = visible[RATING].to_pylist()
        self._labels = visible[LABEL].to_pylist()
        start = 0
        for user, events in groupby(visible[USER_ID].to_pylist()):
            stop = start + sum(1 for _ in events)
            self._events[user] = slice(start, stop)
            start = stop

    def of(self, user_id: str) -> list[SeenItem]:
        """Visible interactions of a user; empty for an unknown user."""
        rows = self._events.get(user_id, slice(0, 0))
        return [
            SeenItem(*event)
            for event in zip(
                self._items[rows], self._ratings[rows], self._labels[rows], strict=True
            )
        ]


class _Rows:
    """Rows of users or items by id."""

    def __init__(self, table: pa.Table | None, key: str) -> None:
        self.ids: list[str] = [] if table is None else table[key].to_pylist()
        self._row: Mapping[str, int] = {value: row for row, value in enumerate(self.ids)}
        self._columns: dict[str, list[object]] = {
            name: table[name].to_pylist()
            for name in (TITLE, TEXT, ATTRIBUTES)
            if table is not None and name in table.column_names
        }

    def title(self, key: str) -> str:
        """Title of an item; empty for an unknown item."""
        return str(self._value(key, TITLE) or "")

    def text(self, key: str) -> str | None:
        """Description of an item, if it has one."""
        text = self._value(key, TEXT)
        return None if text is None else str(text)

    def attributes(self, key: str) -> Attributes | None:
        """Attributes by name, if there are any."""
        pairs = self._value(key, ATTRIBUTES)
        return None if pairs is None else dict(pairs)  # type: ignore[call-overload]

    def _value(self, key: str, column: str) -> object:
        row = self._row.get(key)
        return None if row is None else self._columns[column][row]


def _extremes(events: Sequence[SeenItem]) -> list[SeenItem]:
    """The best-liked interactions and the least-liked one; without ratings the first ones."""
    ranked = sorted(events, key=lambda event: -(event.rating or 0.0))
    if len(ranked) <= _BEST_LIKED:
        return ranked
    return [*ranked[:_BEST_LIKED], ranked[-1]]
