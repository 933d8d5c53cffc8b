"""Metrics of ranked lists with binary labels: one value a list, and what each 1 adds to it.

scikit-learn's `ndcg_score` gives the mean over lists, not a value of each, and has no average
precision at k; torchmetrics goes through the lists one by one in Python. The tests compare with
scikit-learn and with plain loops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from reki_ray.metrics.classification import Array

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Metric = Literal["ndcg", "map"]

CUTOFFS: Final = (1, 3, 5, 7, 10)
HEADLINE: Final = 7
"""Cutoff at which models are selected and arms are compared."""


def ranked(labels: Array, scores: Array) -> Floats:
    """Relevance (N, K) of N lists in the order of their scores; equal scores keep their order.

    Args:
        labels: 0 or 1, negative at padding, (N, K).
        scores: Higher for a better place, (N, K).
    """
    found: Floats = np.take_along_axis(labels > 0, _order(labels, scores), axis=1).astype(
        np.float64
    )
    return found


def gains(labels: Array, scores: Array, metric: Metric, k: int) -> Floats:
    """What every candidate adds to its list's value (N, K): nothing but where it is a 1.

    Args:
        labels: 0 or 1, negative at padding, (N, K).
        scores: Higher for a better place, (N, K).
        metric: Which value.
        k: Places that count.
    """
    found = np.empty(labels.shape)
    gained, best = _GAINS[metric](ranked(labels, scores), k)
    np.put_along_axis(found, _order(labels, scores), gained / best[:, None], axis=1)
    return found


def ndcg(relevance: Floats, k: int) -> Floats:
    """Normalised discounted cumulative gain at k (N,); NaN for a list without a 1.

        DCG@k = sum_{j <= k} rel_j / log2(j + 1);   NDCG@k = DCG@k / DCG@k of the best order

    Järvelin & Kekäläinen, ACM TOIS 2002.

    Args:
        relevance: 0 or 1 in ranked order (N, K).
        k: Places that count.
    """
    gained, best = _ndcg_gains(relevance, k)
    found: Floats = gained.sum(axis=1) / best
    return found


def average_precision(relevance: Floats, k: int) -> Floats:
    """Average precision at k (N,); NaN for a list without a 1.

        AP@k = sum_{j <= k} rel_j (hits among the first j) / j / min(k, number of 1)

    Manning et al., Introduction to Information Retrieval, section 8.4; the denominator is the
    largest number of hits that k places can hold, so that the best order has 1.

    Args:
        relevance: 0 or 1 in ranked order (N, K).
        k: Places that count.
    """
    gained, best = _precision_gains(relevance, k)
    found: Floats = gained.sum(axis=1) / best
    return found


def at_cutoffs(relevance: Floats, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, dict[str, Floats]]:
    """Values (N,) of both metrics, `ndcg` and `map`, by cutoff.

    Args:
        relevance: 0 or 1 in ranked order (N, K).
        cutoffs: Numbers of places that count.
    """
    return {
        "ndcg": {str(k): ndcg(relevance, k) for k in cutoffs},
        "map": {str(k): average_precision(relevance, k) for k in cutoffs},
    }


def mean_over_lists(values: Floats) -> float | None:
    """Mean of the defined values; None where there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


def _order(labels: Array, scores: Array) -> Ints:
    order: Ints = np.argsort(-np.where(labels < 0, -np.inf, scores), axis=1, kind="stable")
    return order


def _ndcg_gains(relevance: Floats, k: int) -> tuple[Floats, Floats]:
    """What each place adds (N, K), and the most that a list can have (N,), NaN without a 1."""
    discount = 1 / np.log2(np.arange(2, relevance.shape[1] + 2))
    discount[k:] = 0
    best = np.concatenate([[np.nan], np.cumsum(discount)])
    return relevance * discount, best[relevance.sum(axis=1).astype(np.int64)]


def _precision_gains(relevance: Floats, k: int) -> tuple[Floats, Floats]:
    """As `_ndcg_gains`."""
    gained = relevance * np.cumsum(relevance, axis=1) / np.arange(1, relevance.shape[1] + 1)
    gained[:, k:] = 0
    best = np.minimum(relevance.sum(axis=1), k)
    return gained, np.where(best > 0, best, np.nan)


_GAINS: Final[Mapping[Metric, Callable[[Floats, int], tuple[Floats, Floats]]]] = {
    "ndcg": _ndcg_gains,
    "map": _precision_gains,
}
