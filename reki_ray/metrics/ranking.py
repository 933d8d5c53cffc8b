"""Metrics of ranked lists with binary labels: a value per list, and the part each 1 adds to it.

scikit-learn's `ndcg_score` gives the mean over lists and has no average precision at k;
torchmetrics loops over the lists in Python. The tests compare with scikit-learn and plain loops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

import numpy as np

from reki_ray.metrics.classification import Array, Floats, Ints

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
    relevance = np.take_along_axis(labels > 0, _order(labels, scores), axis=1)
    return relevance.astype(np.float64)


def gains(labels: Array, scores: Array, metric: Metric, k: int) -> Floats:
    """Part of its list's value (N, K) that every candidate adds, 0 unless its label is 1.

    Labels and scores as of `ranked`.
    """
    parts = np.empty(labels.shape)
    gained, best = _GAINS[metric](ranked(labels, scores), k)
    np.put_along_axis(parts, _order(labels, scores), gained / best[:, None], axis=1)
    return parts


def ndcg(relevance: Floats, k: int) -> Floats:
    """NDCG at k (N,) of relevance in ranked order (N, K); NaN for a list without a 1.

        DCG@k = sum_{j <= k} rel_j / log2(j + 1);   NDCG@k = DCG@k / DCG@k of the best order

    Normalised discounted cumulative gain (Järvelin & Kekäläinen, ACM TOIS 2002).
    """
    gained, best = _ndcg_gains(relevance, k)
    values: Floats = gained.sum(axis=1) / best
    return values


def average_precision(relevance: Floats, k: int) -> Floats:
    """Average precision at k (N,), as `ndcg`; NaN for a list without a 1.

        AP@k = sum_{j <= k} rel_j (hits among the first j) / j / min(k, number of 1)

    Manning et al., Introduction to Information Retrieval, section 8.4; the denominator is the
    largest number of hits in k places, so that the best order has 1.
    """
    gained, best = _precision_gains(relevance, k)
    values: Floats = gained.sum(axis=1) / best
    return values


def mean_over_lists(values: Floats) -> float | None:
    """Mean of the values that are not NaN; None if all are."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


def means_at_cutoffs(labels: Array, scores: Array) -> dict[str, dict[str, float | None]]:
    """Mean over N lists of both metrics, `ndcg` and `map`, by cutoff; arguments as of `ranked`."""
    relevance = ranked(labels, scores)
    metrics = {"ndcg": ndcg, "map": average_precision}
    return {
        name: {str(k): mean_over_lists(metric(relevance, k)) for k in CUTOFFS}
        for name, metric in metrics.items()
    }


def _order(labels: Array, scores: Array) -> Ints:
    order: Ints = np.argsort(-np.where(labels < 0, -np.inf, scores), axis=1, kind="stable")
    return order


def _ndcg_gains(relevance: Floats, k: int) -> tuple[Floats, Floats]:
    """Gain of each place (N, K), and the largest sum of a list (N,), NaN without a 1."""
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
