"""One round over new events: every id into the clusters of the round before, and what drifted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from reki_ray import schema
from reki_ray.clustering.assignment import assignment_of
from reki_ray.clustering.clusterers import PLACED
from reki_ray.clustering.drift import ClusterDrift, Earlier, Placement, drift, members_of, place
from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.vectors import read_vectors, vectors_table
from reki_ray.core.workspace import Workspace
from reki_ray.schema import CLUSTER_ID, ID, METHOD, SIDES, SIMILARITY, Side, Source
from reki_ray.stages.cluster import represent, write_clusters
from reki_ray.stages.encode import EncodedSide


@dataclass(frozen=True)
class Regrouped:
    """What a round did to one side.

    Attributes:
        ids: Number of ids.
        new: Ids that the round before did not know.
        moved: Ids that changed their cluster.
        clusters: Drift of every cluster.
        again: Those to ask about again.
    """

    ids: int
    new: int
    moved: int
    clusters: list[ClusterDrift]
    again: list[ClusterDrift]


def regroup(
    config: RekiConfig, earlier: Workspace, workspace: Workspace, reporter: Reporter
) -> dict[Side, Regrouped]:
    """Write the cluster tables of a round, on the Ray cluster that is initialised.

    Args:
        earlier: Of the round before, or of the run itself.
        workspace: Of this round; holds the tables of stage ingest.

    Raises:
        DataError: A table is missing or damaged.
        EngineError: The encoder cannot be loaded.
    """
    sides = represent(config, workspace, reporter)
    found: dict[Side, Regrouped] = {}
    with workspace.replacing("cluster") as scratch:
        for side in SIDES:
            encoded = sides[side]
            was = _read(earlier, side)
            placement = place(encoded.ids, encoded.vectors, was, config.cluster.min_similarity)
            drifts = drift(encoded.ids, placement, was)
            again = [
                one
                for one in drifts
                if one.cluster_id not in was.asked or one.exceeds(config.cluster.drift)
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
            _write_asked(scratch, side, encoded, placement, was, {one.cluster_id for one in again})
            found[side] = Regrouped(len(encoded.ids), placement.new, placement.moved, drifts, again)
    return found


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
        found, labels = np.unique(clusters, return_inverse=True)
        names, centres = found.tolist(), assignment_of(vectors, labels, len(found)).centres
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
