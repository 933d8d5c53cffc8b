"""Metrics of click prediction; None if the data do not define them.

Labels are 0 or 1 and scores higher for a likelier 1, (N,) each; those of `logloss` and of the
calibration are probabilities.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, roc_auc_score

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

BINS: Final = 10
"""Bins of a calibration curve."""

_EPS = 1e-7


def auc(labels: Array, scores: Array) -> float | None:
    """Area under the ROC curve; None unless both labels occur."""
    if not _has_both(labels):
        return None
    return float(roc_auc_score(labels, scores))


def logloss(labels: Array, scores: Array) -> float | None:
    """Mean negative log-likelihood, nats per sample; None without samples."""
    if not len(labels):
        return None
    clipped = np.clip(np.asarray(scores, dtype=np.float64), _EPS, 1 - _EPS)
    return float(log_loss(labels, clipped, labels=[0, 1]))


def gauc(labels: Array, scores: Array, users: Array) -> float | None:
    """AUC per user of the samples (N,), averaged by their number; None if no user has both labels.

    Users with a single label have no AUC and are left out (Zhu et al., KDD 2017, section 4.2).
    """
    if not len(labels):
        return None
    _, owners = np.unique(users, return_inverse=True)
    order = np.lexsort((scores, owners))
    positive, owners, sorted_scores = labels[order] > 0, owners[order], scores[order]
    before = np.concatenate([[0], np.cumsum(~positive)])  # negatives before each place
    changes = (np.diff(owners) != 0) | (np.diff(sorted_scores) != 0)
    first, last = _runs(changes)
    # A negative with the score of a positive counts half, one of an earlier user not at all.
    own_first, _ = _runs(np.diff(owners) != 0)
    below = 0.5 * (before[first] + before[last]) - before[own_first]
    won = np.bincount(owners, weights=np.where(positive, below, 0.0))
    samples = np.bincount(owners)
    positives = np.bincount(owners, weights=positive)
    pairs = positives * (samples - positives)
    both = pairs > 0
    if not both.any():
        return None
    return float(np.average(won[both] / pairs[both], weights=samples[both]))


def placements(labels: Array, scores: Array) -> Floats:
    """Share of the other label's samples that each sample is ranked correctly against (N,).

    The AUC is the mean over the samples of either label (DeLong et al., Biometrics 1988, whose
    structural components they are). Equal scores count half; both labels must occur.
    """
    order = np.argsort(scores, kind="stable")
    positive = labels[order] > 0
    negatives = np.concatenate([[0], np.cumsum(~positive)])
    first, last = _runs(np.diff(scores[order]) != 0)
    below = 0.5 * (negatives[first] + negatives[last])  # negatives, of each place
    before = 0.5 * (first + last) - below  # positives
    shares = np.empty(len(order))
    shares[order] = np.where(
        positive, below / negatives[-1], 1 - before / (len(order) - negatives[-1])
    )
    return shares


def reliability(labels: Array, scores: Array, bins: int = BINS) -> list[dict[str, Any]]:
    """Predicted and observed click rate of bins of equally many samples, by rising score.

    Samples of equal score share a bin, so there may be fewer bins of different sizes.

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
    width would put most click probabilities into one bin.
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


def _runs(changes: Array) -> tuple[Ints, Ints]:
    """First place of the run around each place (N,), and the place after its last one."""
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    ends = np.append(starts[1:], len(changes) + 1)
    number = np.concatenate([[0], np.cumsum(changes)])
    return starts[number], ends[number]


def _has_both(labels: Array) -> bool:
    return len(labels) > 0 and bool(np.min(labels) != np.max(labels))
