"""What every clustering algorithm offers."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np

NOISE: Final = -1
"""Label of a row that the algorithm puts into no cluster."""


class Clusterer(Protocol):
    """A clustering algorithm; it may leave rows as noise, `assignment` places them."""

    method: str
    """Name of the algorithm, as in the configuration."""
    order_independent: bool
    """Whether another order of the rows gives the same groups."""

    def fit(self, vectors: np.ndarray) -> np.ndarray:
        """Group rows.

        Args:
            vectors: (N, d) finite.

        Returns:
            (N,) int64: a label >= 0 for each row, or `NOISE`. Equal input gives equal output.
        """
        ...
