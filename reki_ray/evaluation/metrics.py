"""Metrics of click prediction. A metric that the data do not define is None, never a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import log_loss, roc_auc_score

Array = npt.NDArray[Any]

_EPS = 1e-7


def auc(labels: Array, scores: Array) -> float | None:
    """Area under the ROC curve; None unless both labels occur.

    Args:
        labels: 0 or 1, (N,).
        scores: Higher for a likelier 1, (N,).
    """
    if not _has_both(labels):
        return None
    return float(roc_auc_score(labels, scores))


def logloss(labels: Array, scores: Array) -> float | None:
    """Mean negative log-likelihood, nats a sample; None without samples.

    Args:
        labels: 0 or 1, (N,).
        scores: Probabilities of a 1, (N,).
    """
    if not len(labels):
        return None
    clipped = np.clip(np.asarray(scores, dtype=np.float64), _EPS, 1 - _EPS)
    return float(log_loss(labels, clipped, labels=[0, 1]))


def gauc(labels: Array, scores: Array, users: Array) -> float | None:
    """AUC within a user, averaged over users by their number of samples.

    Users with a single label have no AUC and are left out (Zhu et al., KDD 2017, section 4.2).

    Args:
        labels: 0 or 1, (N,).
        scores: Higher for a likelier 1, (N,).
        users: User of every sample, (N,).

    Returns:
        None where no user has both labels.
    """
    order = np.argsort(users, kind="stable")
    _, starts = np.unique(users[order], return_index=True)
    total, weight = 0.0, 0
    for part in np.split(order, starts[1:]):
        value = auc(labels[part], scores[part])
        if value is not None:
            total += value * len(part)
            weight += len(part)
    return total / weight if weight else None


def _has_both(labels: Array) -> bool:
    return len(labels) > 0 and bool(np.min(labels) != np.max(labels))
