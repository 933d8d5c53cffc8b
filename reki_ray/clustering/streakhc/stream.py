"""A stream of points and its hierarchy: insert and cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from reki_ray.clustering.assignment import nearest
from reki_ray.clustering.base import Clusterer
from reki_ray.clustering.pca import Projection, is_one_point
from reki_ray.clustering.streakhc.cut import flat_cut
from reki_ray.clustering.streakhc.tree import NONE, ROOT, empty_tree, insert
from reki_ray.config import StreaKhcConfig


@dataclass(frozen=True)
class StreaKhcClusterer(Clusterer):
    """StreaKHC over all rows, then the nearest centre of a flat cut."""

    method = "streakhc"
    order_independent = False

    clusters: int
    min_size: int
    config: StreaKhcConfig

    @override
    def fit(self, vectors: np.ndarray) -> np.ndarray:
        if is_one_point(vectors):
            return np.zeros(len(vectors), dtype=np.int64)
        config = self.config
        points = Projection.fitted(vectors, config.dimensions, config.seed)(vectors)
        drawn = config.subsamples, config.subsample_points, config.seed
        kernel = IsolationKernel.drawn(points, *drawn)
        stream = StreaKHC(kernel, config.max_leaves)
        stream.insert(points)
        # Evicted rows are missing from the tree: scale the smallest cluster down accordingly.
        min_size = max(1, round(self.min_size * stream.points / len(points)))
        return nearest(points, stream.cut(self.clusters, min_size))[0]


class StreaKHC:
    """Hierarchical clustering of a stream in constant memory.

    The same points in the same order, with the same kernel, give the same tree.

    Args:
        kernel: Maps points; never changes.
        max_leaves: Capacity, at least 2; the oldest leaf is evicted when full. Memory is
            4 max_leaves t psi bytes.
    """

    def __init__(self, kernel: IsolationKernel, max_leaves: int) -> None:
        t, psi, dimension = kernel.samples.shape
        self._kernel = kernel
        self._tree = empty_tree(max_leaves, t, psi, dimension)

    @property
    def points(self) -> int:
        """Points in the tree, without those of evicted leaves."""
        root = self._tree.state[ROOT]
        return 0 if root == NONE else int(self._tree.points[root])

    def insert(self, vectors: np.ndarray) -> None:
        """Insert points (N, d), rows of unit length, one after the other."""
        points = np.ascontiguousarray(vectors, dtype=np.float32)
        insert(self._tree, points, self._kernel.maps(points))

    def cut(self, clusters: int, min_size: int) -> np.ndarray:
        """Centres (K, d) of a flat clustering of the current tree; see `flat_cut`."""
        return flat_cut(self._tree, clusters, min_size)


_CHUNK_BYTES = 64 * 2**20
"""Bound of the matrix of distances in memory."""


class IsolationKernel:
    """Maps a point to the index of its nearest sample in each of t random subsamples.

    The similarity of two points is the share of subsamples in which they map to the same sample;
    samples are dense where data are, so the kernel adapts to density.

    Args:
        samples: (t, psi, d) float32 subsamples, psi at most 65,536.
    """

    def __init__(self, samples: np.ndarray) -> None:
        self.samples = np.ascontiguousarray(samples, dtype=np.float32)
        t, psi, dimension = self.samples.shape
        self._flat = self.samples.reshape(t * psi, dimension)
        # |x - s|^2 is least where x.s - |s|^2 / 2 is greatest.
        self._half_norms = 0.5 * np.einsum("sd,sd->s", self._flat, self._flat)

    @classmethod
    def drawn(cls, vectors: np.ndarray, t: int, psi: int, seed: int) -> IsolationKernel:
        """Draw t subsamples of at most psi of the N >= 1 points (N, d), without replacement."""
        random = np.random.default_rng(seed)
        size = min(psi, len(vectors))
        rows = np.stack([random.choice(len(vectors), size, replace=False) for _ in range(t)])
        return cls(vectors[rows])

    def maps(self, vectors: np.ndarray) -> np.ndarray:
        """Map points (N, d): (N, t) uint16, the lowest index on a tie."""
        t, psi, _ = self.samples.shape
        nearest = np.empty((len(vectors), t), dtype=np.uint16)
        rows = max(1, _CHUNK_BYTES // (4 * t * psi))
        for start in range(0, len(vectors), rows):
            chunk = np.asarray(vectors[start : start + rows], dtype=np.float32)
            nearness = chunk @ self._flat.T - self._half_norms  # (chunk, t * psi)
            nearest[start : start + rows] = nearness.reshape(-1, t, psi).argmax(axis=2)
        return nearest
