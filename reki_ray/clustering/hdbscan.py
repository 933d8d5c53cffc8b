"""HDBSCAN on the principal components of the vectors.

Source: Campello, Moulavi, Sander, "Density-based clustering based on hierarchical density
estimates", PAKDD 2013; implementation: the package hdbscan.
"""

from __future__ import annotations

import warnings
from typing import Literal

import hdbscan
import numpy as np

from reki_ray.clustering.protocol import NOISE
from reki_ray.clustering.reduction import Projection, is_one_point
from reki_ray.config import SideClusterConfig


class HdbscanClusterer:
    """HDBSCAN after PCA, on the unit sphere.

    Args:
        dimensions: Principal components kept; fewer where the data have fewer.
        selection: `leaf` for many even clusters, `eom` for the most stable ones.
        side: Sizes.
    """

    method = "hdbscan"
    order_independent = True

    def __init__(
        self, dimensions: int, selection: Literal["leaf", "eom"], side: SideClusterConfig
    ) -> None:
        self._dimensions = dimensions
        self._selection = selection
        self._side = side

    def fit(self, vectors: np.ndarray) -> np.ndarray:
        """Group rows; see `Clusterer.fit`."""
        count = len(vectors)
        # A cluster needs min_cluster_size rows, and a density estimate min_samples neighbours.
        if count < max(self._side.min_cluster_size, self._side.min_samples + 1):
            return np.full(count, NOISE, dtype=np.int64)
        if is_one_point(vectors):
            return np.zeros(count, dtype=np.int64)
        points = Projection.fitted(vectors, self._dimensions)(vectors)
        algorithm = hdbscan.HDBSCAN(
            min_cluster_size=self._side.min_cluster_size,
            min_samples=self._side.min_samples,
            max_cluster_size=self._side.max_cluster_size,
            cluster_selection_method=self._selection,
            core_dist_n_jobs=1,  # the CPUs belong to Ray's scheduler
        )
        with warnings.catch_warnings():
            # Duplicates have distance 0, so density 1/0: infinite, as it should be.
            warnings.simplefilter("ignore", RuntimeWarning)
            labels = algorithm.fit_predict(points.astype(np.float64))
        return np.asarray(labels, dtype=np.int64)
