"""HDBSCAN on the principal components of the vectors.

Source: Campello, Moulavi, Sander, "Density-based clustering based on hierarchical density
estimates", PAKDD 2013; implementation: the package hdbscan.
"""

from __future__ import annotations

import warnings
from typing import Literal

import hdbscan
import numpy as np
from sklearn.decomposition import PCA

from reki_ray.clustering.protocol import NOISE
from reki_ray.config import ClusterConfig, SideClusterConfig
from reki_ray.vectors import normalise

_NO_VARIANCE = 1e-10
"""Variance below which all rows count as one point: rounding of unit vectors in float32."""


class HdbscanClusterer:
    """HDBSCAN after PCA, on the unit sphere.

    Densities mean little in hundreds of dimensions, hence the PCA. Its rows are scaled to unit
    length again: what counts is in which direction a row leaves the mean of all, and rows
    near the mean would otherwise merge into one dense heap.

    Args:
        dimensions: Principal components kept; fewer where the data have fewer.
        selection: `leaf` for many even clusters, `eom` for the most stable ones.
        side: Sizes.
    """

    method = "hdbscan"

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
        if float(vectors.var(axis=0, dtype=np.float64).sum()) < _NO_VARIANCE:
            return np.zeros(count, dtype=np.int64)
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
            labels = algorithm.fit_predict(self._project(vectors))
        return np.asarray(labels, dtype=np.int64)

    def _project(self, vectors: np.ndarray) -> np.ndarray:
        """(N, d) to (N, min(dimensions, d, N - 1)) float64, rows of unit length."""
        components = min(self._dimensions, vectors.shape[1], len(vectors) - 1)
        # The exact solver: the randomised one would need a seed and loses accuracy for nothing.
        pca = PCA(components, svd_solver="full" if len(vectors) < 1000 else "covariance_eigh")
        return normalise(pca.fit_transform(vectors.astype(np.float64))).astype(np.float64)


def build_clusterer(config: ClusterConfig, side: SideClusterConfig) -> HdbscanClusterer:
    """Clusterer of one side as the configuration wants it."""
    return HdbscanClusterer(config.dimensions, config.selection, side)
