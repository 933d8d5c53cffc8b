"""Shards: a share of the subjects that one task renders from the rows it needs.

Neither a process nor the driver ever holds all subjects. Only the interactions before a user's
cut are read, so that no prompt can show what a sample is about to predict.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from reki_ray import schema
from reki_ray.core.tables import ENTITIES, RowGroup, read_row_group, row_groups, rows_of
from reki_ray.core.workspace import Workspace
from reki_ray.data.leak_guard import visible_to_prompts
from reki_ray.schema import CLUSTER_ID, ID, SIDE_OF, SIMILARITY, USER_ID, Side, SubjectKind

Mode = Literal["collective", "individual", "blend"]

_CLUSTERS_A_SHARD = 512


@dataclass(frozen=True)
class Shard:
    """A share of the subjects: one row group of a table, or some clusters.

    Attributes:
        kind: What its subjects are.
        path: Parquet file of the ids; empty for clusters.
        row_group: Row group of that file.
        clusters: Ids of the clusters; empty for single ids.
    """

    kind: SubjectKind
    path: str = ""
    row_group: int = 0
    clusters: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardRows:
    """What the prompts of a shard show.

    Attributes:
        kind: What its subjects are.
        items: Rows of the items that appear in its prompts.
        users: Rows of its users; None where it has none.
        visible: Interactions of its users, as `before_cut` gives them; None where it has none.
        members: Cluster id to member ids, nearest to the centre first; empty for single ids.
    """

    kind: SubjectKind
    items: pa.Table
    users: pa.Table | None = None
    visible: pa.Table | None = None
    members: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """Ids of its subjects."""
        if self.members:
            return list(self.members)
        rows = self.items if self.users is None else self.users
        found: list[str] = rows[ENTITIES[SIDE_OF[self.kind]][1]].to_pylist()
        return found


def cut_into_shards(workspace: Workspace, mode: Mode) -> list[Shard]:
    """All subjects, cut into shards; equal kinds stand together.

    Args:
        workspace: Holds the tables of stages ingest and, for collective knowledge, cluster.
        mode: One prompt per cluster (REKI-C), one per id (REKI-I), or both.

    Raises:
        DataError: A table is missing or damaged.
    """
    found: list[Shard] = []
    if mode != "collective":
        found += [*_row_groups(workspace, "item"), *_row_groups(workspace, "user")]
    if mode != "individual":
        found += [
            *_cluster_groups(workspace, "item_cluster"),
            *_cluster_groups(workspace, "user_cluster"),
        ]
    return found


def load(workspace: Workspace, shard: Shard) -> ShardRows:
    """Read what the prompts of a shard show.

    Raises:
        DataError: A table is missing or damaged.
    """
    side = SIDE_OF[shard.kind]
    table, key = ENTITIES[side]
    members: dict[str, list[str]] = {}
    if shard.clusters:
        members = _members(workspace, side, shard.clusters)
        ids = pa.array(sorted({one for ids in members.values() for one in ids}), pa.string())
        rows = rows_of(workspace, table, key, ids)
    else:
        rows = read_row_group(workspace, table, RowGroup(shard.path, shard.row_group))
    if side == "items":
        return ShardRows(shard.kind, rows, members=members)
    visible = visible_to_prompts(workspace, rows[USER_ID].combine_chunks())
    return ShardRows(
        shard.kind, visible.items, users=rows, visible=visible.interactions, members=members
    )


def _row_groups(workspace: Workspace, kind: SubjectKind) -> list[Shard]:
    table, _ = ENTITIES[SIDE_OF[kind]]
    return [Shard(kind, group.path, group.number) for group in row_groups(workspace, table)]


def _cluster_groups(workspace: Workspace, kind: SubjectKind) -> list[Shard]:
    rows = workspace.read_table(schema.CLUSTERS[SIDE_OF[kind]], columns=[CLUSTER_ID])
    ids = sorted(pc.unique(rows[CLUSTER_ID]).to_pylist())
    starts = range(0, len(ids), _CLUSTERS_A_SHARD)
    return [Shard(kind, clusters=tuple(ids[at : at + _CLUSTERS_A_SHARD])) for at in starts]


def _members(workspace: Workspace, side: Side, clusters: tuple[str, ...]) -> dict[str, list[str]]:
    """Cluster id -> member ids, nearest to the centre first, ties by id."""
    rows = workspace.read_table(schema.CLUSTERS[side], columns=[ID, CLUSTER_ID, SIMILARITY])
    wanted = pc.is_in(rows[CLUSTER_ID], value_set=pa.array(clusters, pa.string()))
    rows = rows.filter(wanted).sort_by(
        [(CLUSTER_ID, "ascending"), (SIMILARITY, "descending"), (ID, "ascending")]
    )
    members: dict[str, list[str]] = {}
    for cluster, member in zip(rows[CLUSTER_ID].to_pylist(), rows[ID].to_pylist(), strict=True):
        members.setdefault(cluster, []).append(member)
    return members
