"""How good a clustering is, in figures that the report shows."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import silhouette_score

from reki_ray.clustering.assignment import Assignment
from reki_ray.clustering.protocol import NOISE

_SAMPLE = 2000
"""Rows in the silhouette sample: its cost is quadratic."""


def describe(vectors: np.ndarray, raw: np.ndarray, assignment: Assignment) -> dict[str, Any]:
    """JSON-ready figures of one side.

    Args:
        vectors: (N, d) what was clustered.
        raw: (N,) labels as the algorithm gave them, with noise.
        assignment: The total assignment made of them.

    Returns:
        clusters; noise_share, the share of rows that the algorithm put into no cluster;
        mean_similarity, the mean cosine of rows and their centres; sizes with min, median, max;
        size_list, ascending; silhouette by cosine in [-1, 1] on a sample, None where undefined.
    """
    sizes = np.sort(np.bincount(assignment.labels))
    return {
        "clusters": len(sizes),
        "noise_share": round(float((raw == NOISE).mean()), 4),
        "mean_similarity": round(float(assignment.similarities.mean()), 4),
        "sizes": {
            "min": int(sizes[0]),
            "median": float(np.median(sizes)),
            "max": int(sizes[-1]),
        },
        "silhouette": silhouette(vectors, assignment.labels),
        "size_list": sizes.tolist(),
    }


def silhouette(vectors: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean silhouette by cosine on at most 2,000 rows.

    Returns:
        In [-1, 1]; None with fewer than two clusters in the sample, or as many as rows.
    """
    rows = np.arange(len(vectors))
    if len(rows) > _SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(rows, _SAMPLE, replace=False))
    found = len(np.unique(labels[rows]))
    if not 2 <= found < len(rows):
        return None
    return round(float(silhouette_score(vectors[rows], labels[rows], metric="cosine")), 4)
