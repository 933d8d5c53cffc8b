"""The clustering methods by name, and one side from vectors to the finished table.

Separate from the stage, so that a worker loads no encoder to group vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import silhouette_score
from typing_extensions import override

from reki_ray.clustering.assignment import Assignment, assign_all, name_clusters, split_until_close
from reki_ray.clustering.base import NOISE, Clusterer
from reki_ray.clustering.hdbscan import HdbscanClusterer
from reki_ray.clustering.partition import MapParts
from reki_ray.clustering.pca import is_one_point
from reki_ray.clustering.streakhc.stream import StreaKhcClusterer
from reki_ray.config import NODES_PER_CLUSTER, ClusterConfig, SideClusterConfig
from reki_ray.core.vectors import require_finite
from reki_ray.errors import ConfigError
from reki_ray.schema import CLUSTER_ID, CLUSTERS_SCHEMA, ID, METHOD, SIMILARITY

PLACED: Final = "+nearest"
"""Suffix of `method` for an id that was noise and joined the nearest centre."""
_SIZE_TO_SMALLEST: Final = 4
"""Mean cluster size over the smallest, if no number of clusters is configured."""
_SILHOUETTE_ROWS: Final = 2000  # its cost is quadratic


@dataclass(frozen=True)
class KMeansClusterer(Clusterer):
    """Mini-batch k-means on the unit sphere: the control that a better method has to beat.

    Source: Sculley, "Web-scale k-means clustering", WWW 2010; implementation: scikit-learn.
    """

    method = "kmeans"
    order_independent = False

    clusters: int
    seed: int

    @override
    def fit(self, vectors: np.ndarray) -> np.ndarray:
        if is_one_point(vectors):
            return np.zeros(len(vectors), dtype=np.int64)
        algorithm = MiniBatchKMeans(
            min(self.clusters, len(vectors)), batch_size=4096, n_init=3, random_state=self.seed
        )
        return np.asarray(algorithm.fit_predict(vectors), dtype=np.int64)


def build_clusterer(
    config: ClusterConfig, side: SideClusterConfig, rows: int, map_parts: MapParts = map
) -> Clusterer:
    """Build the configured clusterer of one side of so many rows."""
    if config.method == "hdbscan":
        return HdbscanClusterer(config, side, map_parts)
    clusters = side.clusters or max(1, rows // (_SIZE_TO_SMALLEST * side.min_cluster_size))
    if config.method == "kmeans":
        return KMeansClusterer(clusters, config.seed)
    most = config.streakhc.most_clusters
    if clusters > most:  # with fewer clusters than k-means makes, the two are not comparable
        raise ConfigError(
            f"{rows} ids call for {clusters} clusters, but a tree of {config.streakhc.max_leaves} "
            f"leaves distinguishes at most {most}",
            where="cluster.streakhc.max_leaves",
            todo=f"Raise it to {NODES_PER_CLUSTER * clusters}, which takes more memory, or set "
            f"cluster.users.clusters and cluster.items.clusters to {most} at most, for kmeans too.",
        )
    return StreaKhcClusterer(clusters, side.min_cluster_size, config.streakhc)


class Grouping(NamedTuple):
    """Clustering of one side: rows of `CLUSTERS_SCHEMA` and JSON-ready figures."""

    clusters: pa.Table
    figures: dict[str, Any]


def group(
    ids: Sequence[str],
    vectors: np.ndarray,
    clusterer: Clusterer,
    prefix: str,
    *,
    min_size: int,
    min_similarity: float | None = None,
) -> Grouping:
    """Cluster N >= 1 distinct ids with vectors (N, d) of unit length, and place every id.

    Args:
        prefix: First letter of the cluster ids.
        min_size: Smallest cluster, members; only `min_similarity` makes smaller ones.
        min_similarity: Lowest cosine of a member to its centre.

    Raises:
        DataError: A vector is not finite.
    """
    require_finite(ids, vectors, what="vectors to cluster")
    raw = clusterer.fit(vectors)
    assignment = assign_all(vectors, raw, min_size)
    if min_similarity is not None:
        assignment = split_until_close(vectors, assignment, min_similarity)
    names = name_clusters(ids, assignment.labels, prefix)
    methods = [clusterer.method + (PLACED if label == NOISE else "") for label in raw.tolist()]
    table = pa.table(
        {ID: ids, CLUSTER_ID: names, SIMILARITY: assignment.similarities, METHOD: methods},
        schema=CLUSTERS_SCHEMA,
    )
    return Grouping(table, describe(vectors, raw, assignment))


def describe(vectors: np.ndarray, raw: np.ndarray, assignment: Assignment) -> dict[str, Any]:
    """Measure the clusters of one side, from (N, d) vectors and (N,) labels with noise."""
    sizes = np.sort(np.bincount(assignment.labels))
    return {
        "clusters": len(sizes),
        "noise_share": round(float((raw == NOISE).mean()), 4),
        "mean_similarity": round(float(assignment.similarities.mean()), 4),
        "sizes": {
            "min": int(sizes[0]),
            "median": float(np.median(sizes)),
            "max": int(sizes[-1]),
        },
        "silhouette": silhouette(vectors, assignment.labels),
        "size_list": sizes.tolist(),
    }


def silhouette(vectors: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean silhouette by cosine on a fixed sample; None with one cluster, or as many as rows."""
    rows = np.arange(len(vectors))
    if len(rows) > _SILHOUETTE_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(rows, _SILHOUETTE_ROWS, replace=False))
    if not 2 <= len(np.unique(labels[rows])) < len(rows):
        return None
    return round(float(silhouette_score(vectors[rows], labels[rows], metric="cosine")), 4)
