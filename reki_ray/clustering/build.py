"""The clusterer of one side, as the configuration wants it."""

from __future__ import annotations

from reki_ray.clustering.hdbscan import HdbscanClusterer, map_here
from reki_ray.clustering.kmeans import KMeansClusterer
from reki_ray.clustering.partition import MapParts
from reki_ray.clustering.protocol import Clusterer
from reki_ray.clustering.streakhc.clusterer import StreaKhcClusterer
from reki_ray.config import LEAVES_A_CLUSTER, ClusterConfig, SideClusterConfig
from reki_ray.errors import ConfigError

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
