"""StreaKHC as one of the clusterers: a table of rows is a stream in the order of its rows."""

from __future__ import annotations

import numpy as np

from reki_ray.clustering.assignment import nearest
from reki_ray.clustering.reduction import Projection, is_one_point
from reki_ray.clustering.streakhc.kernel import IsolationKernel
from reki_ray.clustering.streakhc.stream import StreaKHC
from reki_ray.config import StreaKhcConfig


class StreaKhcClusterer:
    """StreaKHC over all rows, then the nearest centre of a flat cut.

    Args:
        clusters: Clusters wanted.
        min_size: Smallest cluster, rows.
        config: Kernel and tree.
    """

    method = "streakhc"
    order_independent = False

    def __init__(self, clusters: int, min_size: int, config: StreaKhcConfig) -> None:
        self._clusters = clusters
        self._min_size = min_size
        self._config = config

    def fit(self, vectors: np.ndarray) -> np.ndarray:
        """Group rows; see `Clusterer.fit`. Leaves no noise."""
        if is_one_point(vectors):
            return np.zeros(len(vectors), dtype=np.int64)
        config = self._config
        points = Projection.fitted(vectors, config.dimensions, config.seed)(vectors)
        kernel = IsolationKernel.drawn(
            points, config.subsamples, config.subsample_points, config.seed
        )
        stream = StreaKHC(kernel, config.max_leaves)
        stream.insert(points)
        # Of as many rows as the smallest cluster has, the tree holds this many.
        least = max(1, round(self._min_size * stream.points / len(points)))
        return nearest(points, stream.cut(self._clusters, least))[0]
