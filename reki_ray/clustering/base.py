"""The interface of clustering algorithms."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np

NOISE: Final = -1
"""Label of a row outside all clusters."""


class Clusterer(Protocol):
    """A clustering algorithm; it may leave rows as noise, which `assign_all` places.

    Attributes:
        method: Name of the algorithm, as in the configuration.
        order_independent: Whether another order of the rows gives the same groups.
    """

    method: str
    order_independent: bool

    def fit(self, vectors: np.ndarray) -> np.ndarray:
        """Group finite rows (N, d): (N,) int64 labels, `NOISE` or >= 0; deterministic."""
