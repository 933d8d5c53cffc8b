"""HDBSCAN on the principal components of the vectors.

Source: Campello, Moulavi, Sander, "Density-based clustering based on hierarchical density
estimates", PAKDD 2013; implementation: the package fast-hdbscan, which gives the labels of the
package hdbscan in a third of its time on one core.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import numba
import numpy as np

from reki_ray.clustering.base import NOISE
from reki_ray.clustering.partition import MapParts, fit_parts
from reki_ray.clustering.pca import Projection, is_one_point
from reki_ray.config import ClusterConfig, SideClusterConfig

Selection = Literal["leaf", "eom"]


def map_here(
    function: Callable[[np.ndarray], np.ndarray], parts: list[np.ndarray]
) -> Iterable[np.ndarray]:
    """`MapParts` in this process, one part after the other."""
    return map(function, parts)


class HdbscanClusterer:
    """HDBSCAN after PCA, on the unit sphere; part by part where there are too many rows.

    Args:
        config: Dimensions, selection and rows of a part.
        side: Sizes.
        map_parts: Where parts are clustered.
    """

    method = "hdbscan"
    order_independent = True

    def __init__(
        self, config: ClusterConfig, side: SideClusterConfig, map_parts: MapParts = map_here
    ) -> None:
        self._config = config
        self._side = side
        self._map_parts = map_parts

    def fit(self, vectors: np.ndarray) -> np.ndarray:
        """Group rows; see `Clusterer.fit`."""
        if len(vectors) > 1 and is_one_point(vectors):
            enough = len(vectors) >= self._side.min_cluster_size
            return np.full(len(vectors), 0 if enough else NOISE, dtype=np.int64)
        points = vectors
        if len(vectors) > 1:
            points = Projection.fitted(vectors, self._config.dimensions)(vectors)
        fit = partial(fit_points, side=self._side, selection=self._config.selection)
        if len(points) <= self._config.part_rows:
            return fit(points)
        return fit_parts(
            points,
            fit,
            part_rows=self._config.part_rows,
            min_size=self._side.min_cluster_size,
            map_parts=self._map_parts,
        )


def fit_points(points: np.ndarray, side: SideClusterConfig, selection: Selection) -> np.ndarray:
    """HDBSCAN of one part.

    Args:
        points: (N, k), projected.
        side: Sizes.
        selection: `leaf` for many even clusters, `eom` for the most stable ones.

    Returns:
        (N,) int64 labels, `NOISE` for rows in no cluster.
    """
    # A cluster needs min_cluster_size rows, and a density estimate min_samples neighbours.
    if len(points) < max(side.min_cluster_size, side.min_samples + 1):
        return np.full(len(points), NOISE, dtype=np.int64)
    import fast_hdbscan  # compiles itself once an installation, for half a minute

    algorithm = fast_hdbscan.HDBSCAN(
        min_cluster_size=side.min_cluster_size,
        min_samples=side.min_samples,
        max_cluster_size=side.max_cluster_size or np.inf,
        cluster_selection_method=selection,
        reproducible=True,
    )
    numba.set_num_threads(_threads())
    return np.asarray(algorithm.fit_predict(points), dtype=np.int64)


def _threads() -> int:
    """Threads of this process; Ray tells a task its share of the cores in this variable."""
    most: int = numba.config.NUMBA_NUM_THREADS
    return min(most, int(os.environ.get("OMP_NUM_THREADS", most)))
