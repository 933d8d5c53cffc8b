"""Dimension reduction: density means little in hundreds of dimensions, and fewer cost less."""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA

from reki_ray.core.vectors import normalise

_SAMPLE = 50_000
"""Rows that the components are fitted on; their error falls with the root of the number."""
_NO_VARIANCE = 1e-10
"""Variance below which all rows count as one point: rounding of unit vectors in float32."""


def is_one_point(vectors: np.ndarray) -> bool:
    """Whether rows (N, d) of unit length differ by rounding only, so that PCA has no input."""
    return float(vectors.var(axis=0, dtype=np.float64).sum()) < _NO_VARIANCE


class Projection:
    """Principal components, with rows scaled to unit length again.

    Only the direction in which a row leaves the mean counts; rows near the mean would otherwise
    merge into one dense heap.

    Args:
        mean: (d,) of the sample.
        components: (k, d) orthonormal.
    """

    def __init__(self, mean: np.ndarray, components: np.ndarray) -> None:
        self.mean = mean
        self.components = components

    @classmethod
    def fitted(cls, vectors: np.ndarray, dimensions: int, seed: int = 0) -> Projection:
        """Fit at most `dimensions` components on a seeded sample of N >= 2 rows (N, d)."""
        sample = vectors
        if len(vectors) > _SAMPLE:
            rows = np.random.default_rng(seed).choice(len(vectors), _SAMPLE, replace=False)
            sample = vectors[np.sort(rows)]
        count, width = sample.shape
        # Exact solvers: the randomised one would need a seed and loses accuracy for nothing.
        solver = "full" if count < 1000 else "covariance_eigh"
        pca = PCA(min(dimensions, width, count - 1), svd_solver=solver)
        pca.fit(sample.astype(np.float64))
        return cls(pca.mean_, pca.components_)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Project (N, d) to (N, k) float32, rows of unit length."""
        return normalise((vectors - self.mean) @ self.components.T)
