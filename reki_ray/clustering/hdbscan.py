"""HDBSCAN on the principal components of the vectors.

Source: Campello, Moulavi, Sander, "Density-based clustering based on hierarchical density
estimates", PAKDD 2013; two implementations, compared in docs/adr/0021-hdbscan-engines.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
from typing_extensions import override

from reki_ray.clustering.base import NOISE, Clusterer
from reki_ray.clustering.partition import MapParts, fit_parts
from reki_ray.clustering.pca import Projection, is_one_point
from reki_ray.config import ClusterConfig, SideClusterConfig
from reki_ray.errors import ConfigError

_FAST_DIMENSIONS: Final = 30
"""fast-hdbscan is exact up to here; beyond, it needs pynndescent for approximate neighbours."""

Selection = Literal["leaf", "eom"]
Engine = Callable[[np.ndarray, SideClusterConfig, Selection], np.ndarray]
"""HDBSCAN of points (N, k): (N,) labels, `NOISE` for rows in no cluster."""


@dataclass(frozen=True)
class HdbscanClusterer(Clusterer):
    """HDBSCAN after PCA, on the unit sphere; part by part if there are too many rows."""

    method = "hdbscan"
    order_independent = True

    config: ClusterConfig
    side: SideClusterConfig
    map_parts: MapParts = map

    @override
    def fit(self, vectors: np.ndarray) -> np.ndarray:
        if len(vectors) > 1 and is_one_point(vectors):
            enough = len(vectors) >= self.side.min_cluster_size
            return np.full(len(vectors), 0 if enough else NOISE, dtype=np.int64)
        points = vectors
        if len(vectors) > 1:
            points = Projection.fitted(vectors, self.config.dimensions)(vectors)
        config, side = self.config, self.side
        engine, selection = config.hdbscan_engine, config.selection
        fit = partial(fit_points, side=side, selection=selection, engine=engine)
        if len(points) <= config.part_rows:
            return fit(points)
        sizes = {"part_rows": config.part_rows, "min_size": side.min_cluster_size}
        return fit_parts(points, fit, **sizes, map_parts=self.map_parts)


def fit_points(
    points: np.ndarray,
    side: SideClusterConfig,
    selection: Selection,
    engine: str = "fast_hdbscan",
) -> np.ndarray:
    """HDBSCAN of one part: (N, k) projected points to (N,) int64 labels, `NOISE` included."""
    # A cluster needs min_cluster_size rows, and a density estimate min_samples neighbours.
    if len(points) < max(side.min_cluster_size, side.min_samples + 1):
        return np.full(len(points), NOISE, dtype=np.int64)
    return ENGINES[engine](points, side, selection).astype(np.int64)


def _fast_hdbscan(points: np.ndarray, side: SideClusterConfig, selection: Selection) -> np.ndarray:
    import fast_hdbscan  # compiles itself once per installation, for half a minute
    import numba

    if points.shape[1] > _FAST_DIMENSIONS:
        raise ConfigError(
            f"fast_hdbscan takes at most {_FAST_DIMENSIONS} dimensions, not {points.shape[1]}",
            where="cluster.dimensions",
            todo=f"Lower it to {_FAST_DIMENSIONS}, or set cluster.hdbscan_engine: hdbscan.",
        )
    most = numba.config.NUMBA_NUM_THREADS
    numba.set_num_threads(min(most, _threads(most)))
    algorithm = fast_hdbscan.HDBSCAN(
        min_cluster_size=side.min_cluster_size,
        min_samples=side.min_samples,
        max_cluster_size=side.max_cluster_size or np.inf,
        cluster_selection_method=selection,
        reproducible=True,
    )
    return np.asarray(algorithm.fit_predict(points))


def _hdbscan(points: np.ndarray, side: SideClusterConfig, selection: Selection) -> np.ndarray:
    import hdbscan

    algorithm = hdbscan.HDBSCAN(
        min_cluster_size=side.min_cluster_size,
        min_samples=side.min_samples,
        max_cluster_size=side.max_cluster_size,
        cluster_selection_method=selection,
        approx_min_span_tree=False,  # exact, as in the other engine
        core_dist_n_jobs=_threads(1),
    )
    return np.asarray(algorithm.fit_predict(points.astype(np.float64)))


ENGINES: Final[dict[str, Engine]] = {"fast_hdbscan": _fast_hdbscan, "hdbscan": _hdbscan}
"""Implementations by their names in `cluster.hdbscan_engine`."""


def _threads(default: int) -> int:
    """Threads of this process; Ray sets this variable to a task's share of the cores."""
    return int(os.environ.get("OMP_NUM_THREADS", default))
