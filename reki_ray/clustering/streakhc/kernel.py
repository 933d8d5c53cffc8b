"""Map of the isolation kernel: which of some sample points is nearest, sample by sample."""

from __future__ import annotations

import numpy as np

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
