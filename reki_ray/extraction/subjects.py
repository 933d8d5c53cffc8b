"""Whom to ask about: every user and item, or every cluster of them.

Only the interactions before a user's cut are visible here, so that no prompt can show what a
sample is about to predict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Literal, NamedTuple

import pyarrow as pa

from reki_ray import schema
from reki_ray.config import PromptsConfig
from reki_ray.histories import before_cut
from reki_ray.prompts.render import GroupUser, Prompt, Renderer, histogram, load_scenario
from reki_ray.prompts.text import Attributes
from reki_ray.schema import (
    ATTRIBUTES,
    CLUSTER_ID,
    ID,
    ITEM_ID,
    LABEL,
    RATING,
    SIMILARITY,
    TEXT,
    TITLE,
    USER_ID,
    Side,
)
from reki_ray.workspace import Workspace

Mode = Literal["collective", "individual"]

_TELLING_LIKED = 4
"""Liked titles shown of a user inside a group, before the one liked least."""


class Event(NamedTuple):
    """One interaction before the cut."""

    item_id: str
    rating: float | None
    label: int


class Subjects:
    """Prompts for all subjects of a run; may be walked through several times.

    Prompts are made one at a time, so that memory does not grow with their number.

    Args:
        workspace: Holds the tables of stages ingest and, for collective knowledge, cluster.
        prompts: Scenario, factors and limits.
        mode: One prompt a cluster (REKI-C) or one an id (REKI-I).

    Raises:
        ConfigError: The scenario is unknown, or lacks a factor.
        DataError: A table is missing or damaged.
    """

    def __init__(self, workspace: Workspace, prompts: PromptsConfig, mode: Mode) -> None:
        self._workspace = workspace
        self._mode = mode
        self._limits = prompts
        self._renderer = Renderer(load_scenario(prompts.scenario), prompts)
        self._items = _Rows(workspace.read_table(schema.ITEMS), ITEM_ID)
        self._users = _Rows(workspace.read_table(schema.USERS), USER_ID)
        self._histories = Histories(
            workspace.read_table(schema.INTERACTIONS), workspace.read_table(schema.CUTS)
        )

    @property
    def factors(self) -> list[str]:
        """Keys of the factors that are asked for."""
        return [factor.key for factor in self._renderer.factors]

    def __len__(self) -> int:
        if self._mode == "individual":
            return len(self._items) + len(self._users)
        return sum(len(clusters) for clusters in self._clusters.values())

    def __iter__(self) -> Iterator[Prompt]:
        if self._mode == "individual":
            yield from self._each_item()
            yield from self._each_user()
        else:
            yield from self._each_item_cluster()
            yield from self._each_user_cluster()

    # --- individual ----------------------------------------------------------------------------

    def _each_item(self) -> Iterator[Prompt]:
        for item_id in self._items.ids:
            title, text = self._items.value(item_id, TITLE), self._items.value(item_id, TEXT)
            attributes = self._items.attributes(item_id)
            yield self._renderer.item(item_id, title or "", attributes, text)

    def _each_user(self) -> Iterator[Prompt]:
        for user_id in self._users.ids:
            history = self._titles(self._histories.of(user_id))
            yield self._renderer.user(user_id, self._users.attributes(user_id), history)

    # --- collective ----------------------------------------------------------------------------

    @cached_property
    def _clusters(self) -> dict[Side, dict[str, list[str]]]:
        return {side: self._members(side) for side in schema.SIDES}

    def _members(self, side: Side) -> dict[str, list[str]]:
        """Cluster id -> member ids, nearest to the centre first, ties by id."""
        rows = self._workspace.read_table(schema.CLUSTERS[side]).sort_by(
            [(CLUSTER_ID, "ascending"), (SIMILARITY, "descending"), (ID, "ascending")]
        )
        members: dict[str, list[str]] = {}
        for cluster, member in zip(rows[CLUSTER_ID].to_pylist(), rows[ID].to_pylist(), strict=True):
            members.setdefault(cluster, []).append(member)
        return members

    def _each_item_cluster(self) -> Iterator[Prompt]:
        for cluster, ids in self._clusters["items"].items():
            shares = histogram(self._items.attributes(item_id) for item_id in ids)
            members = [
                (self._items.value(item_id, TITLE) or "", self._items.attributes(item_id))
                for item_id in ids[: self._limits.max_members]
            ]
            yield self._renderer.item_cluster(cluster, len(ids), members, shares)

    def _each_user_cluster(self) -> Iterator[Prompt]:
        for cluster, ids in self._clusters["users"].items():
            profiles = histogram(self._users.attributes(user_id) for user_id in ids)
            liked = histogram(
                self._items.attributes(event.item_id)
                for user_id in ids
                for event in self._histories.of(user_id)
                if event.label
            )
            shares = {**profiles, **{f"liked {name}": values for name, values in liked.items()}}
            members = [
                GroupUser(
                    self._users.attributes(user_id),
                    self._titles(telling(self._histories.of(user_id))),
                )
                for user_id in ids[: self._limits.max_members]
            ]
            yield self._renderer.user_cluster(cluster, len(ids), members, shares)

    def _titles(self, events: Sequence[Event]) -> list[tuple[str, float | None]]:
        return [(self._items.value(e.item_id, TITLE) or "", e.rating) for e in events]


class Histories:
    """The interactions of every user before the cut, oldest first.

    Args:
        interactions: Rows of `INTERACTIONS_SCHEMA`, sorted by user, then time.
        cuts: Rows of `CUTS_SCHEMA`; a user without a row has cut 0.
    """

    def __init__(self, interactions: pa.Table, cuts: pa.Table) -> None:
        rows = before_cut(interactions, cuts)
        self._items: list[str] = rows[ITEM_ID].to_pylist()
        self._ratings: list[float | None] = rows[RATING].to_pylist()
        self._labels: list[int] = rows[LABEL].to_pylist()
        self._events: dict[str, slice] = {}
        start = 0
        for user, events in groupby(rows[USER_ID].to_pylist()):
            stop = start + sum(1 for _ in events)
            self._events[user] = slice(start, stop)
            start = stop

    def of(self, user_id: str) -> list[Event]:
        """Visible interactions of a user; empty for an unknown one."""
        rows = self._events.get(user_id, slice(0, 0))
        return [
            Event(*event)
            for event in zip(
                self._items[rows], self._ratings[rows], self._labels[rows], strict=True
            )
        ]


class _Rows:
    """Rows of a table by id."""

    def __init__(self, table: pa.Table, key: str) -> None:
        self._table = table.combine_chunks()
        self.ids: list[str] = table[key].to_pylist()
        self._row: Mapping[str, int] = {value: row for row, value in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def value(self, key: str, column: str) -> str | None:
        row = self._row.get(key)
        return None if row is None else self._table[column][row].as_py()

    def attributes(self, key: str) -> Attributes | None:
        row = self._row.get(key)
        pairs = None if row is None else self._table[ATTRIBUTES][row].as_py()
        return None if pairs is None else dict(pairs)


def telling(events: Sequence[Event]) -> list[Event]:
    """The few interactions that say most about a user: best liked, and the least liked.

    Args:
        events: Visible interactions, oldest first.

    Returns:
        At most five, in order of rating; without ratings the first ones.
    """
    ranked = sorted(events, key=lambda event: -(event.rating or 0.0))
    if len(ranked) <= _TELLING_LIKED:
        return ranked
    return [*ranked[:_TELLING_LIKED], ranked[-1]]
