"""Map of the isolation kernel: which of some sample points is nearest, sample by sample."""

from __future__ import annotations

import numpy as np

_CHUNK_BYTES = 64 * 2**20
"""Bound of the matrix of distances that is held at a time."""


class IsolationKernel:
    """Maps a point to the index of its nearest sample in each of t random subsamples.

    Two points that fall to the same sample in a share s of the subsamples have similarity s;
    where data are dense, samples are dense as well, so that the kernel adapts to density.

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
        """Draw the subsamples, each without repetition.

        Args:
            vectors: (N, d) with N >= 1, what the subsamples are drawn from.
            t: Number of subsamples.
            psi: Points of each; N where there are fewer.
            seed: Seed of the draw.
        """
        random = np.random.default_rng(seed)
        size = min(psi, len(vectors))
        rows = np.stack([random.choice(len(vectors), size, replace=False) for _ in range(t)])
        return cls(vectors[rows])

    def maps(self, vectors: np.ndarray) -> np.ndarray:
        """Map points.

        Args:
            vectors: (N, d).

        Returns:
            (N, t) uint16; the lower index where two samples are equally near.
        """
        t, psi, _ = self.samples.shape
        found = np.empty((len(vectors), t), dtype=np.uint16)
        rows = max(1, _CHUNK_BYTES // (4 * t * psi))
        for start in range(0, len(vectors), rows):
            chunk = np.asarray(vectors[start : start + rows], dtype=np.float32)
            nearness = chunk @ self._flat.T - self._half_norms  # (chunk, t * psi)
            found[start : start + rows] = nearness.reshape(-1, t, psi).argmax(axis=2)
        return found
