"""One round over new events: every id into the clusters of the round before, and what drifted."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from reki_ray import schema
from reki_ray.clustering.assignment import assignment_of
from reki_ray.clustering.clusterers import PLACED
from reki_ray.clustering.drift import Earlier, Placement, drift, members_of, place
from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.vectors import read_vectors, vectors_table
from reki_ray.core.workspace import Workspace
from reki_ray.schema import CLUSTER_ID, ID, METHOD, SIDES, SIMILARITY, Side, Source
from reki_ray.stages.cluster import represent, write_clusters
from reki_ray.stages.encode import EncodedSide


class SideUpdate(BaseModel):
    """What a round did to users or to items.

    Attributes:
        new: Ids that the round before did not know.
        moved: Ids that changed their cluster.
        asked_again: Clusters that had drifted: `cluster_id`, `size`, `moved_share`,
            `centre_shift`.
        largest_moved_share: Of all clusters.
        largest_centre_shift: Of all clusters.
    """

    ids: int
    new: int
    moved: int
    clusters: int
    asked_again: list[dict[str, Any]]
    largest_moved_share: float
    largest_centre_shift: float


def regroup(
    config: RekiConfig, earlier: Workspace, workspace: Workspace, reporter: Reporter
) -> dict[Side, SideUpdate]:
    """Write the cluster tables of a round, on the Ray cluster that is initialised.

    Args:
        earlier: Of the round before, or of the run itself.
        workspace: Of this round; holds the tables of stage ingest.

    Raises:
        DataError: A table is missing or damaged.
        EngineError: The encoder cannot be loaded.
    """
    sides = represent(config, workspace, reporter)
    updates: dict[Side, SideUpdate] = {}
    with workspace.replacing("cluster") as scratch:
        for side in SIDES:
            encoded = sides[side]
            was = _read(earlier, side)
            placement = place(encoded.ids, encoded.vectors, was, config.cluster.min_similarity)
            drifts = drift(encoded.ids, placement, was)
            again = [
                cluster
                for cluster in drifts
                if cluster.cluster_id not in was.asked or cluster.exceeds(config.cluster.drift)
            ]
            methods = _methods(earlier, side, encoded.ids, placement)
            clusters = pa.table(
                {
                    ID: encoded.ids,
                    CLUSTER_ID: placement.clusters,
                    SIMILARITY: placement.similarities,
                    METHOD: methods,
                },
                schema=schema.CLUSTERS_SCHEMA,
            )
            write_clusters(scratch, side, encoded, clusters)
            _write_asked(
                scratch, side, encoded, placement, was, {cluster.cluster_id for cluster in again}
            )
            updates[side] = SideUpdate(
                ids=len(encoded.ids),
                new=placement.new,
                moved=placement.moved,
                clusters=len(drifts),
                asked_again=[dataclasses.asdict(cluster) for cluster in again],
                largest_moved_share=max(cluster.moved_share for cluster in drifts),
                largest_centre_shift=max(cluster.centre_shift for cluster in drifts),
            )
    return updates


def _read(workspace: Workspace, side: Side) -> Earlier:
    ids, vectors = read_vectors(workspace.read_table(schema.CLUSTER_VECTORS[side]))
    rows = workspace.read_table(schema.CLUSTERS[side])
    cluster_of = dict(zip(*_pairs(rows), strict=True))
    clusters = [cluster_of[key] for key in ids]
    if workspace.has_table(schema.ASKED_CLUSTERS[side]):
        asked = members_of(*_pairs(workspace.read_table(schema.ASKED_CLUSTERS[side])))
        names, centres = read_vectors(workspace.read_table(schema.ASKED_CENTRES[side]))
    else:  # the run itself asked about the clusters as they are
        asked = members_of(ids, clusters)
        distinct, labels = np.unique(clusters, return_inverse=True)
        names, centres = distinct.tolist(), assignment_of(vectors, labels, len(distinct)).centres
    return Earlier(ids, vectors, clusters, asked, dict(zip(names, centres, strict=True)))


def _pairs(rows: pa.Table) -> tuple[list[str], list[str]]:
    return rows[ID].to_pylist(), rows[CLUSTER_ID].to_pylist()


def _methods(earlier: Workspace, side: Side, ids: list[str], placement: Placement) -> list[str]:
    """How each id came into its cluster: as before, or by the nearest centre."""
    rows = earlier.read_table(schema.CLUSTERS[side], columns=[ID, METHOD])
    before = dict(zip(rows[ID].to_pylist(), rows[METHOD].to_pylist(), strict=True))
    algorithm = next(iter(before.values())).removesuffix(PLACED)
    return [
        algorithm + PLACED if placed else before[key]
        for key, placed in zip(ids, placement.placed.tolist(), strict=True)
    ]


def _write_asked(
    scratch: Workspace,
    side: Side,
    encoded: EncodedSide,
    placement: Placement,
    was: Earlier,
    again: set[str],
) -> None:
    """What each cluster is when it was last asked about, this round's asking included."""
    now = members_of(encoded.ids, placement.clusters)
    asked = {name: now[name] if name in again else was.asked[name] for name in sorted(now)}
    pairs = [(key, name) for name, members in asked.items() for key in sorted(members)]
    ids, clusters = zip(*pairs, strict=True)
    rows = pa.table({ID: ids, CLUSTER_ID: clusters}, schema=schema.ASKED_CLUSTERS_SCHEMA)
    scratch.write_table(schema.ASKED_CLUSTERS[side], rows)
    centres = [(placement if name in again else was).centres[name] for name in asked]
    sources: list[Source] = ["cluster"] * len(asked)
    table = vectors_table(list(asked), np.stack(centres), sources, encoded.encoder)
    scratch.write_table(schema.ASKED_CENTRES[side], table)
