"""Shards: subjects whose prompts one task renders from the rows it needs.

No process holds all subjects. Only interactions before a user's cut are read: no prompt shows what
a sample predicts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from reki_ray import schema
from reki_ray.core.tables import ENTITIES, RowGroup, read_row_group, row_groups, rows_of
from reki_ray.core.workspace import Workspace
from reki_ray.data.leak_guard import visible_to_prompts
from reki_ray.schema import CLUSTER_ID, ID, SIDE_OF, SIMILARITY, USER_ID, Side, SubjectKind

Mode = Literal["collective", "individual", "blend"]

KINDS: Final[tuple[SubjectKind, ...]] = ("item", "user", "item_cluster", "user_cluster")

_CLUSTERS_PER_SHARD = 512


@dataclass(frozen=True)
class Shard:
    """Subjects of one kind: one row group of a table, or some clusters.

    Attributes:
        group: Row group of the ids; None for clusters.
        clusters: Ids of the clusters; empty for single ids.
    """

    kind: SubjectKind
    group: RowGroup | None = None
    clusters: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardRows:
    """Rows behind the prompts of a shard.

    Attributes:
        items: Items in the prompts.
        users: Users of the shard; None for items.
        visible: Interactions of the users, see `leak_guard.before_cut`; None for items.
        members: Cluster id to member ids, nearest to the centre first; empty for single ids.
    """

    kind: SubjectKind
    items: pa.Table
    users: pa.Table | None = None
    visible: pa.Table | None = None
    members: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """Ids of the subjects."""
        if self.members:
            return list(self.members)
        rows = self.items if self.users is None else self.users
        return list(rows[ENTITIES[SIDE_OF[self.kind]][1]].to_pylist())


def cut_into_shards(workspace: Workspace, mode: Mode) -> list[Shard]:
    """Cut all subjects into shards, kind by kind.

    Args:
        mode: One prompt per cluster (REKI-C), one per id (REKI-I), or both.
    """
    shards = [
        Shard(kind, group)
        for kind in (() if mode == "collective" else KINDS[:2])
        for group in row_groups(workspace, ENTITIES[SIDE_OF[kind]][0])
    ]
    for kind in () if mode == "individual" else KINDS[2:]:
        rows = workspace.read_table(schema.CLUSTERS[SIDE_OF[kind]], columns=[CLUSTER_ID])
        ids = sorted(pc.unique(rows[CLUSTER_ID]).to_pylist())
        shards += [
            Shard(kind, clusters=tuple(ids[start : start + _CLUSTERS_PER_SHARD]))
            for start in range(0, len(ids), _CLUSTERS_PER_SHARD)
        ]
    return shards


def load(workspace: Workspace, shard: Shard) -> ShardRows:
    """Read the rows behind the prompts of a shard."""
    side = SIDE_OF[shard.kind]
    table, key = ENTITIES[side]
    members: dict[str, list[str]] = {}
    if shard.group is not None:
        rows = read_row_group(workspace, table, shard.group)
    else:
        members = _members(workspace, side, shard.clusters)
        ids = pa.array(sorted({key for ids in members.values() for key in ids}), pa.string())
        rows = rows_of(workspace, table, key, ids)
    return rows_behind(workspace, shard.kind, rows, members)


def rows_behind(
    workspace: Workspace,
    kind: SubjectKind,
    rows: pa.Table,
    members: dict[str, list[str]] | None = None,
) -> ShardRows:
    """Rows of users or items, with what the prompts of users show of their interactions."""
    if SIDE_OF[kind] == "items":
        return ShardRows(kind, rows, members=members or {})
    visible = visible_to_prompts(workspace, rows[USER_ID].combine_chunks())
    return ShardRows(kind, visible.items, rows, visible.interactions, members or {})


def _members(workspace: Workspace, side: Side, clusters: tuple[str, ...]) -> dict[str, list[str]]:
    """Member ids by cluster id, nearest to the centre first, ties by id."""
    rows = workspace.read_table(schema.CLUSTERS[side], columns=[ID, CLUSTER_ID, SIMILARITY])
    wanted = pc.is_in(rows[CLUSTER_ID], value_set=pa.array(clusters, pa.string()))
    rows = rows.filter(wanted).sort_by(
        [(CLUSTER_ID, "ascending"), (SIMILARITY, "descending"), (ID, "ascending")]
    )
    members: dict[str, list[str]] = {}
    for cluster, member in zip(rows[CLUSTER_ID].to_pylist(), rows[ID].to_pylist(), strict=True):
        members.setdefault(cluster, []).append(member)
    return members
