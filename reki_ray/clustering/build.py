"""The clusterer of one side, as the configuration wants it."""

from __future__ import annotations

from reki_ray.clustering.hdbscan import HdbscanClusterer, map_here
from reki_ray.clustering.kmeans import KMeansClusterer
from reki_ray.clustering.partition import MapParts
from reki_ray.clustering.protocol import Clusterer
from reki_ray.clustering.streakhc.clusterer import StreaKhcClusterer
from reki_ray.config import ClusterConfig, SideClusterConfig

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
    """
    if config.method == "hdbscan":
        return HdbscanClusterer(config, side, map_parts)
    clusters = side.clusters or max(1, rows // (_SIZE_TO_SMALLEST * side.min_cluster_size))
    if config.method == "kmeans":
        return KMeansClusterer(clusters, config.seed)
    clusters = min(clusters, config.streakhc.most_clusters)
    return StreaKhcClusterer(clusters, side.min_cluster_size, config.streakhc)
