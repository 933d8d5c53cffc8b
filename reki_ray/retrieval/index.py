"""Items with the largest inner products: exact in a small catalogue, approximate in a large one.

The approximate index is an HNSW graph of usearch (https://github.com/unum-cloud/usearch): one
file, memory-mapped by all replicas of a machine, without code in it. One thread builds it, so
that the same vectors give the same file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from usearch.index import Index

from reki_ray.store.hash_index import unusable

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

_BREADTH: Final = 512
"""Vertices that a search keeps in view at least. Of 200,000 vectors in clusters it then finds 99 %
of the 100 nearest to a query beside some of them and 86 % for one amid all, in about 1 ms; a search
of all vectors takes 2.6 ms."""

_EXACT_SHARE: Final = 0.05
"""Share of the catalogue above which searching all of it is cheaper than a search that wide."""


def build_index(path: Path, vectors: Vectors) -> None:
    """Write an index of vectors (I, D), found by their row."""
    index = _new(vectors.shape[1])
    index.add(np.arange(len(vectors)), vectors, threads=1)
    index.save(str(path))


def _new(dimension: int) -> Index:
    return Index(ndim=dimension, metric="ip", dtype="f32", expansion_search=_BREADTH)


class ItemIndex:
    """Finds the rows of item vectors with the largest inner products.

    Args:
        vectors: Item vectors (I, D), memory-mapped.
        path: File of `build_index`; None searches all vectors.

    Raises:
        StoreError: The file is damaged, or holds other vectors.
    """

    def __init__(self, vectors: Vectors, path: Path | None = None) -> None:
        self._vectors = vectors
        self._index: Index | None = None
        if path is None:
            return
        dimension = vectors.shape[1]
        index = _new(dimension)
        try:
            index.view(str(path))
        except (RuntimeError, ValueError) as error:
            raise unusable(f"the index is damaged: {error}", path) from error
        if (len(index), index.ndim) != vectors.shape:
            raise unusable(
                f"the index holds {len(index)} vectors of length {index.ndim}, the file beside it "
                f"{len(vectors)} of length {dimension}",
                path,
            )
        self._index = index

    def search(self, query: Vectors, count: int, excluded: Rows) -> tuple[Rows, Vectors]:
        """Rows of the best items and their inner products, falling; ties by row where exact.

        Args:
            query: (D,).
            excluded: Distinct rows that must not be among them (E,).
        """
        wide = count + len(excluded)
        if self._index is None or wide > _EXACT_SHARE * len(self._vectors):
            scores: Vectors = self._vectors @ query  # (I,)
            scores[excluded] = -np.inf
            return best_rows(scores, min(count, len(scores) - len(excluded)))
        rows = self._index.search(query, wide).keys.astype(np.int64)
        rows = rows[~np.isin(rows, excluded)][:count]
        return rows, self._vectors[rows] @ query


def best_rows(scores: Vectors, count: int) -> tuple[Rows, Vectors]:
    """Places of the largest scores, falling, ties by place; and these scores.

    Args:
        scores: (I,).
        count: How many, at most I.
    """
    if count <= 0:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    # All that reach the last one's score, so that ties at the edge go by place.
    edge = np.partition(scores, len(scores) - count)[len(scores) - count]
    rows = np.flatnonzero(scores >= edge)
    rows = rows[np.argsort(-scores[rows], kind="stable")][:count]
    return rows, scores[rows]
