"""Calibration: predicted probabilities against observed click rates."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from sklearn.calibration import calibration_curve

from reki_ray.metrics.classification import Array

BINS: Final = 10


def reliability(labels: Array, scores: Array, bins: int = BINS) -> list[dict[str, Any]]:
    """Predicted and observed click rate of bins of equally many samples, by rising score.

    Samples of equal score share a bin, so there may be fewer bins of different sizes.

    Args:
        labels: 0 or 1, (N,).
        scores: Probabilities of a 1, (N,).

    Returns:
        {"samples", "predicted", "observed"} per bin; empty without samples.
    """
    if not len(labels):
        return []
    exact = np.clip(np.asarray(scores, dtype=np.float64), 0.0, 1.0)
    observed, predicted = calibration_curve(labels, exact, n_bins=bins, strategy="quantile")
    # scikit-learn does not return the sizes of the bins; these are its bounds.
    bounds = np.percentile(exact, np.linspace(0, 100, bins + 1))[1:-1]
    counts = np.bincount(np.searchsorted(bounds, exact))
    return [
        {"samples": int(count), "predicted": float(p), "observed": float(o)}
        for count, p, o in zip(counts[counts > 0], predicted, observed, strict=True)
    ]


def calibration_error(labels: Array, scores: Array, bins: int = BINS) -> float | None:
    """Expected calibration error, from 0 (best) to 1; None without samples.

    With bins of equally many samples (Nixon et al., CVPR workshops 2019, section 4): bins of equal
    width would put most click probabilities into one bin. Arguments as of `reliability`.
    """
    rows = reliability(labels, scores, bins)
    if not rows:
        return None
    total = sum(row["samples"] * abs(row["predicted"] - row["observed"]) for row in rows)
    return float(total / len(labels))


def calibration_ratio(labels: Array, scores: Array) -> float | None:
    """Mean prediction / click rate, above 1 if clicks are overestimated; None without clicks."""
    clicks = float(np.sum(labels, dtype=np.float64))
    return float(np.sum(scores, dtype=np.float64)) / clicks if clicks else None
