"""Sampled prompts for an estimate: from some row groups of a workspace, or from examples.

Nothing is enumerated: what is read does not grow with the number of subjects, but for the
footers of Parquet files and one pass over the column of cluster ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reki_ray import schema
from reki_ray.config import OpenAiEngine, RekiConfig
from reki_ray.core.workspace import Workspace, conform, reading
from reki_ray.data.leak_guard import before_cut
from reki_ray.errors import ConfigError
from reki_ray.extraction.estimating.reading import count_rows, row_groups, rows_with
from reki_ray.extraction.shards import Shard, ShardRows, load
from reki_ray.extraction.subjects import Subjects
from reki_ray.prompts.renderer import GroupUser, Prompt, Renderer, load_scenario
from reki_ray.schema import CLUSTER_ID, ITEM_ID, USER_ID, Side, SubjectKind, Table

KINDS: Final[tuple[SubjectKind, ...]] = ("item", "user", "item_cluster", "user_cluster")

_SAMPLE = 1000
_LARGE_SAMPLE = 250
"""Of tables so large that each sampled user costs a row group of its own."""
_LARGE = 20_000_000
_CATALOGUE = 262_144
_ROW_GROUPS = 8
_CLUSTERS = 200
_PSEUDO_MEMBERS = 32
_SIZE_TO_SMALLEST = 4
"""Mean size of a cluster to the smallest allowed: 4.0 items, 4.9 users on MovieLens-100K."""
_SEED = 0


@dataclass(frozen=True)
class Sample:
    """Some prompts of one kind.

    Attributes:
        kind: Kind of the subjects.
        subjects: Number of all subjects.
        bodies: Bodies of sampled prompts, in random order.
        drawn: Whether they are a random draw from the data; False where they are made of the
            scenario's worked examples.
    """

    kind: SubjectKind
    subjects: int
    bodies: list[str]
    drawn: bool


@dataclass
class Sampler:
    """Draws prompts.

    Args:
        config: The run.
        workspace: Holds ingest and perhaps cluster; None where there are no data.
        assumptions: Gets a sentence for everything that is assumed.
    """

    config: RekiConfig
    workspace: Workspace | None
    assumptions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.workspace is not None and not self.workspace.has_table(schema.ITEMS):
            self.workspace = None
        self._random = np.random.default_rng(_SEED)
        engine = self.config.extract.engine
        withheld = frozenset(engine.withhold) if isinstance(engine, OpenAiEngine) else frozenset()
        self._scenario = load_scenario(self.config.prompts.scenario)
        self.renderer = Renderer(self._scenario, self.config.prompts, withheld)

    def draw(self, users: int | None, items: int | None) -> dict[SubjectKind, Sample]:
        """A sample of each kind.

        Args:
            users: Number of users; None takes that of the workspace.
            items: Number of items; None takes that of the workspace.

        Raises:
            ConfigError: A number is missing.
            DataError: A table is damaged.
        """
        counts = self._counts(users, items)
        if self.workspace is None:
            self.assumptions.append(
                "There is no ingested workspace: prompts are made of the worked examples of "
                f"scenario {self._scenario.name}, histories of 1 to {self._longest()} titles."
            )
            bodies = self._example_bodies()
        else:
            bodies = self._workspace_bodies(self.workspace)
        drawn = self.workspace is not None
        return {kind: Sample(kind, counts[kind], bodies[kind], drawn) for kind in KINDS}

    # --- how many ------------------------------------------------------------------------------

    def _counts(self, users: int | None, items: int | None) -> dict[SubjectKind, int]:
        given: dict[Side, int | None] = {"users": users, "items": items}
        counts: dict[Side, int] = {}
        clusters: dict[Side, int] = {}
        for side, number in given.items():
            counts[side] = self._rows(side) if number is None else number
            clusters[side] = self._clusters(side, counts[side])
        return {
            "item": counts["items"],
            "user": counts["users"],
            "item_cluster": clusters["items"],
            "user_cluster": clusters["users"],
        }

    def _rows(self, side: Side) -> int:
        if self.workspace is None:
            raise ConfigError(
                f"the number of {side} is unknown: no workspace is ingested",
                where=f"--{side}",
                todo=f"Give --users and --items, or run `reki ingest` for {self.config.root}.",
            )
        return count_rows(self.workspace, schema.USERS if side == "users" else schema.ITEMS)

    def _clusters(self, side: Side, number: int) -> int:
        smallest: int = getattr(self.config.cluster, side).min_cluster_size
        table = schema.CLUSTERS[side]
        if self.workspace is None or not self.workspace.has_table(table):
            self.assumptions.append(
                f"{side.capitalize()} are not clustered yet: one cluster for each "
                f"{_SIZE_TO_SMALLEST} x cluster.{side}.min_cluster_size ({smallest}) of them, as "
                f"MovieLens-100K has; there cannot be more than {number // smallest:,}."
            )
            return max(1, number // (_SIZE_TO_SMALLEST * smallest))
        found: set[str] = set()
        for part in self.workspace.parts(table):
            with reading(table, part), self.workspace.filesystem.open(part, "rb") as source:
                for batch in pq.ParquetFile(source).iter_batches(columns=[CLUSTER_ID]):
                    found.update(pc.unique(batch[CLUSTER_ID]).to_pylist())
        rows = count_rows(self.workspace, table)
        if rows == number or not rows:
            return len(found)
        self.assumptions.append(
            f"The number of {side[:-1]} clusters grows with that of {side}: "
            f"{len(found):,} for {rows:,} here."
        )
        return max(1, round(len(found) * number / rows))

    # --- from a workspace ----------------------------------------------------------------------

    def _workspace_bodies(self, workspace: Workspace) -> dict[SubjectKind, list[str]]:
        large = count_rows(workspace, schema.INTERACTIONS) > _LARGE
        size = _LARGE_SAMPLE if large else _SAMPLE
        items = self._some_rows(workspace, schema.ITEMS, size)
        users = self._some_rows(workspace, schema.USERS, size)
        catalogue, visible = self._histories(workspace, users)
        rows: dict[SubjectKind, ShardRows] = {
            "item": ShardRows("item", items),
            "user": ShardRows("user", catalogue, users=users, visible=visible),
            "item_cluster": self._clustered(workspace, "item_cluster", large)
            or ShardRows("item_cluster", items, members=self._groups(items[ITEM_ID])),
            "user_cluster": self._clustered(workspace, "user_cluster", large)
            or ShardRows(
                "user_cluster",
                catalogue,
                users=users,
                visible=visible,
                members=self._groups(users[USER_ID]),
            ),
        }
        limits = self.config.prompts
        return {kind: self._shuffled(Subjects(rows[kind], self.renderer, limits)) for kind in KINDS}

    def _shuffled(self, prompts: Subjects) -> list[str]:
        bodies = [prompt.body for prompt in prompts]
        return [bodies[row] for row in self._random.permutation(len(bodies))]

    def _some_rows(self, workspace: Workspace, table: Table, size: int) -> pa.Table:
        """Random rows out of some random row groups."""
        rows = self._some_groups(workspace, table)
        chosen = self._random.permutation(rows.num_rows)[:size]
        return rows.take(pa.array(np.sort(chosen)))

    def _some_groups(self, workspace: Workspace, table: Table) -> pa.Table:
        assert table.schema is not None  # all tables that are sampled have a fixed schema
        groups = row_groups(workspace, table)
        chosen = self._random.permutation(len(groups))[:_ROW_GROUPS]
        read = [table.schema.empty_table()]
        for part, group in (groups[row] for row in np.sort(chosen)):
            with reading(table, part), workspace.filesystem.open(part, "rb") as source:
                rows = pq.ParquetFile(source).read_row_group(group)
            read.append(conform(rows, table.schema, where=part))
        return pa.concat_tables(read)

    def _histories(self, workspace: Workspace, users: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Items, and the visible interactions of some users with these items."""
        ids = sorted(users[USER_ID].to_pylist())
        visible = before_cut(
            rows_with(workspace, schema.INTERACTIONS, USER_ID, ids),
            rows_with(workspace, schema.CUTS, USER_ID, ids),
        )
        if count_rows(workspace, schema.ITEMS) <= _CATALOGUE:
            return workspace.read_table(schema.ITEMS), visible
        # Other titles of the same catalogue stand in for those that were not read.
        catalogue = self._some_groups(workspace, schema.ITEMS)
        known = pc.is_in(visible[ITEM_ID], value_set=catalogue[ITEM_ID].combine_chunks())
        others = self._random.integers(0, catalogue.num_rows, visible.num_rows)
        seen = pc.if_else(known, visible[ITEM_ID], catalogue[ITEM_ID].take(pa.array(others)))
        column = visible.column_names.index(ITEM_ID)
        return catalogue, visible.set_column(column, ITEM_ID, seen)

    def _clustered(self, workspace: Workspace, kind: SubjectKind, large: bool) -> ShardRows | None:
        """Some real clusters; None where there are none, or too many to read their members."""
        table = schema.CLUSTERS["items" if kind == "item_cluster" else "users"]
        if large or not workspace.has_table(table) or count_rows(workspace, table) > _LARGE // 20:
            return None
        ids = pc.unique(workspace.read_table(table, columns=[CLUSTER_ID])[CLUSTER_ID]).to_pylist()
        chosen = tuple(ids[row] for row in self._random.permutation(len(ids))[:_CLUSTERS])
        return load(workspace, Shard(kind, clusters=chosen)) if chosen else None

    def _groups(self, ids: pa.ChunkedArray) -> dict[str, list[str]]:
        """Random ids in groups: prompts of clusters show as many members, whoever they are."""
        sentence = "Prompts about clusters are sampled with random members."
        if sentence not in self.assumptions:
            self.assumptions.append(sentence)
        members = ids.to_pylist()
        size = min(len(members), _PSEUDO_MEMBERS)
        return {
            f"g{number}": [members[row] for row in self._random.permutation(len(members))[:size]]
            for number in range(_CLUSTERS if size else 0)
        }

    # --- from worked examples ------------------------------------------------------------------

    def _longest(self) -> int:
        return min(self.config.prompts.max_history, self.config.split.prompt_history)

    def _example_bodies(self) -> dict[SubjectKind, list[str]]:
        examples, renderer = self._scenario.examples, self.renderer
        item, group = examples.item, examples.item_cluster
        titles = [(member.title, member.attributes) for member in group.members]
        history = [(event.title, event.rating) for event in examples.user.history]
        crowd = [
            GroupUser(member.attributes, [(event.title, event.rating) for event in member.history])
            for member in examples.user_cluster.members
        ]
        shown = self.config.prompts.max_members
        prompts: dict[SubjectKind, list[Prompt]] = {
            "item": [
                renderer.item("", item.title, item.attributes, item.text),
                *(renderer.item("", title, attributes, None) for title, attributes in titles),
            ],
            "user": [
                renderer.user("", examples.user.attributes, list(islice(cycle(history), length)))
                for length in range(1, self._longest() + 1)
            ],
            "item_cluster": [
                renderer.item_cluster(
                    "", group.size, list(islice(cycle(titles), shown)), group.histogram
                )
            ],
            "user_cluster": [
                renderer.user_cluster(
                    "",
                    examples.user_cluster.size,
                    list(islice(cycle(crowd), shown)),
                    examples.user_cluster.histogram,
                )
            ],
        }
        return {kind: [prompt.body for prompt in prompts[kind]] for kind in KINDS}
