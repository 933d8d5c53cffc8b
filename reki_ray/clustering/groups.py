"""Clustering of one side from vectors to the finished table: what a Ray task runs.

Apart from the stage, so that a worker loads no encoder to group vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from sklearn.metrics import silhouette_score

from reki_ray.clustering.assignment import Assignment, assign_all, name_clusters, split_until_close
from reki_ray.clustering.base import NOISE, Clusterer
from reki_ray.clustering.hdbscan import HdbscanClusterer, map_here
from reki_ray.clustering.kmeans import KMeansClusterer
from reki_ray.clustering.partition import MapParts
from reki_ray.clustering.streakhc.stream import StreaKhcClusterer
from reki_ray.config import LEAVES_A_CLUSTER, ClusterConfig, SideClusterConfig
from reki_ray.core.vectors import require_finite
from reki_ray.errors import ConfigError
from reki_ray.schema import CLUSTER_ID, CLUSTERS_SCHEMA, ID, METHOD, SIMILARITY

_SAMPLE = 2000

"""Rows in the silhouette sample: its cost is quadratic."""


def describe(vectors: np.ndarray, raw: np.ndarray, assignment: Assignment) -> dict[str, Any]:
    """JSON-ready figures of one side.

    Args:
        vectors: (N, d) what was clustered.
        raw: (N,) labels as the algorithm gave them, with noise.
        assignment: The total assignment made of them.

    Returns:
        clusters; noise_share, the share of rows that the algorithm put into no cluster;
        mean_similarity, the mean cosine of rows and their centres; sizes with min, median, max;
        size_list, ascending; silhouette by cosine in [-1, 1] on a sample, None where undefined.
    """
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
    """Mean silhouette by cosine on at most 2,000 rows.

    Returns:
        In [-1, 1]; None with fewer than two clusters in the sample, or as many as rows.
    """
    rows = np.arange(len(vectors))
    if len(rows) > _SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(rows, _SAMPLE, replace=False))
    found = len(np.unique(labels[rows]))
    if not 2 <= found < len(rows):
        return None
    return round(float(silhouette_score(vectors[rows], labels[rows], metric="cosine")), 4)


_SIZE_TO_SMALLEST = 4

"""Rows a cluster, in units of the smallest cluster, where no number of clusters is given."""


def build_clusterer(
    config: ClusterConfig, side: SideClusterConfig, rows: int, map_parts: MapParts = map_here
) -> Clusterer:
    """Clusterer of one side.

    Args:
        config: Method.
        side: Sizes.
        rows: Number of rows that it will group.
        map_parts: Where parts of many rows are clustered.

    Raises:
        ConfigError: StreaKHC's tree is too small for as many clusters as the rows call for.
    """
    if config.method == "hdbscan":
        return HdbscanClusterer(config, side, map_parts)
    clusters = side.clusters or max(1, rows // (_SIZE_TO_SMALLEST * side.min_cluster_size))
    if config.method == "kmeans":
        return KMeansClusterer(clusters, config.seed)
    most = config.streakhc.most_clusters
    if clusters > most:  # fewer than k-means makes would be no fair comparison
        raise ConfigError(
            f"{rows} ids call for {clusters} clusters, but a tree of {config.streakhc.max_leaves} "
            f"leaves tells at most {most} apart",
            where="cluster.streakhc.max_leaves",
            todo=f"Raise it to {LEAVES_A_CLUSTER * clusters}, which takes more memory, or set "
            f"cluster.users.clusters and cluster.items.clusters to {most} at most, for kmeans too.",
        )
    return StreaKhcClusterer(clusters, side.min_cluster_size, config.streakhc)


PLACED: Final = "+nearest"

"""Ending of `method` for an id that the algorithm left as noise and the nearest centre took."""


class Rules(NamedTuple):
    """What every cluster must keep, whatever the algorithm found.

    Attributes:
        min_size: Smallest cluster, members; below it only where `min_similarity` splits.
        min_similarity: Least cosine of a member and its centre; None asks for none.
    """

    min_size: int
    min_similarity: float | None = None


class Grouping(NamedTuple):
    """Clustering of one side: rows of `CLUSTERS_SCHEMA` and JSON-ready figures."""

    clusters: pa.Table
    figures: dict[str, Any]


def group(
    ids: Sequence[str], vectors: np.ndarray, clusterer: Clusterer, rules: Rules, prefix: str
) -> Grouping:
    """Cluster one side and place every id.

    Args:
        ids: N >= 1 distinct ids.
        vectors: (N, d), rows of unit length.
        clusterer: The algorithm.
        rules: What every cluster must keep.
        prefix: First letter of the cluster ids.

    Raises:
        DataError: A vector is not finite.
    """
    require_finite(ids, vectors, what="vectors to cluster")
    raw = clusterer.fit(vectors)
    assignment = assign_all(vectors, raw, rules.min_size)
    if rules.min_similarity is not None:
        assignment = split_until_close(vectors, assignment, rules.min_similarity)
    names = name_clusters(ids, assignment.labels, prefix)
    methods = [clusterer.method + (PLACED if label == NOISE else "") for label in raw.tolist()]
    table = pa.table(
        {ID: ids, CLUSTER_ID: names, SIMILARITY: assignment.similarities, METHOD: methods},
        schema=CLUSTERS_SCHEMA,
    )
    return Grouping(table, describe(vectors, raw, assignment))
