"""Mini-batch k-means on the unit sphere: the control that a better method has to beat.

Source: Sculley, "Web-scale k-means clustering", WWW 2010; implementation: scikit-learn.
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from reki_ray.clustering.pca import is_one_point

_BATCH = 4096
_STARTS = 3


class KMeansClusterer:
    """Mini-batch k-means.

    Args:
        clusters: Number of clusters; fewer where there are fewer rows.
        seed: Seed of starts and batches.
    """

    method = "kmeans"
    order_independent = False

    def __init__(self, clusters: int, seed: int) -> None:
        self._clusters = clusters
        self._seed = seed

    def fit(self, vectors: np.ndarray) -> np.ndarray:
        """Group rows; see `Clusterer.fit`. Leaves no noise."""
        if is_one_point(vectors):
            return np.zeros(len(vectors), dtype=np.int64)
        algorithm = MiniBatchKMeans(
            min(self._clusters, len(vectors)),
            batch_size=_BATCH,
            n_init=_STARTS,
            random_state=self._seed,
        )
        return np.asarray(algorithm.fit_predict(vectors), dtype=np.int64)
