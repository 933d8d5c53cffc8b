"""A stream of points and its hierarchy: insert, cut, save and load."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from typing_extensions import override

from reki_ray.clustering.assignment import nearest
from reki_ray.clustering.base import Clusterer
from reki_ray.clustering.pca import Projection, is_one_point
from reki_ray.clustering.streakhc.cut import flat_cut
from reki_ray.clustering.streakhc.kernel import IsolationKernel
from reki_ray.clustering.streakhc.tree import NONE, ROOT, Tree, empty_tree, insert
from reki_ray.config import StreaKhcConfig
from reki_ray.core import atomic
from reki_ray.errors import DataError


class StreaKhcClusterer(Clusterer):
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

    @override
    def fit(self, vectors: np.ndarray) -> np.ndarray:
        if is_one_point(vectors):
            return np.zeros(len(vectors), dtype=np.int64)
        config = self._config
        points = Projection.fitted(vectors, config.dimensions, config.seed)(vectors)
        kernel = IsolationKernel.drawn(
            points, config.subsamples, config.subsample_points, config.seed
        )
        stream = StreaKHC(kernel, config.max_leaves)
        stream.insert(points)
        # Evicted rows are missing from the tree: scale the smallest cluster down accordingly.
        min_size = max(1, round(self._min_size * stream.points / len(points)))
        return nearest(points, stream.cut(self._clusters, min_size))[0]


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

    def save(self, path: Path) -> None:
        """Write a file for `load`, without pickle."""
        with atomic.writing(path) as file:
            np.savez(file, samples=self._kernel.samples, **self._tree._asdict())

    @classmethod
    def load(cls, path: Path) -> StreaKHC:
        """Read a file of `save`.

        Raises:
            DataError: The file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                kernel = IsolationKernel(arrays["samples"])
                tree = Tree(*(arrays[name] for name in Tree._fields))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise DataError(
                f"a saved stream of StreaKHC is damaged: {error}",
                where=str(path),
                todo="Delete it; the stream is rebuilt from the logged inserts.",
            ) from error
        stream = cls.__new__(cls)
        stream._kernel, stream._tree = kernel, tree
        return stream
