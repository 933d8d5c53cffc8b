"""Confidence intervals by resampling users, paired between arms.

A user's samples hang together, so users are drawn, not samples (Efron & Tibshirani 1993,
chapter 8). All arms are measured on the same resamples: a difference then varies much less
than either of its terms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_CHUNK_CELLS = 2_000_000
"""Resamples times samples that are computed at once: 16 MB an intermediate array."""


class UserBootstrap:
    """Resamples of the users of a test split.

    Args:
        users: User of every sample (N,), integers from 0.
        resamples: Number B of resamples.
        seed: Seed of the draws.
    """

    def __init__(self, users: Array, resamples: int, seed: int = 0) -> None:
        distinct, self._users = np.unique(users, return_inverse=True)
        count = len(distinct)
        generator = np.random.default_rng(seed)
        self._counts = np.zeros((resamples, count), dtype=np.uint16)
        for row in self._counts:
            row[:] = np.bincount(generator.integers(0, max(count, 1), count), minlength=count)

    def auc(self, labels: Array, scores: Array, chosen: Array | None = None) -> Floats:
        """AUC of every resample (B,); NaN where a resample has a single label.

        Sorted once, an AUC with weights is a cumulative sum: every positive counts the weight
        of the negatives below it, and half of that of the negatives with its own score.

        Args:
            labels: 0 or 1, (N,).
            scores: Scores (N,).
            chosen: True at the samples that count (N,); None counts all.
        """
        places = np.arange(len(labels)) if chosen is None else np.flatnonzero(chosen)
        if not len(places):
            return np.full(len(self._counts), np.nan)
        order = places[np.argsort(scores[places], kind="stable")]
        _, starts, groups = np.unique(scores[order], return_index=True, return_inverse=True)
        ends = np.append(starts[1:], len(order))
        positive = labels[order] > 0
        users = self._users[order]
        at_positives = groups[positive]
        found = np.empty(len(self._counts))
        step = max(1, _CHUNK_CELLS // len(order))
        for start in range(0, len(found), step):
            weights = self._counts[start : start + step, users].astype(np.float64)
            below = np.zeros((len(weights), len(order) + 1))
            np.cumsum(np.where(positive, 0.0, weights), axis=1, out=below[:, 1:])
            credit = 0.5 * (below[:, starts] + below[:, ends])  # by distinct score
            won = np.einsum("bp,bp->b", weights[:, positive], credit[:, at_positives])
            pairs = weights[:, positive].sum(axis=1) * below[:, -1]
            with np.errstate(invalid="ignore"):
                found[start : start + step] = won / np.where(pairs > 0, pairs, np.nan)
        return found

    def mean(self, values: Array) -> Floats:
        """Mean of every resample (B,); NaN where it has no defined value.

        Args:
            values: One a sample (N,); NaN where not defined.
        """
        defined = ~np.isnan(values)
        size = self._counts.shape[1]
        users = self._users[defined]
        totals = np.bincount(users, weights=values[defined], minlength=size)
        numbers = np.bincount(users, minlength=size).astype(np.float64)
        weights = self._counts.astype(np.float64)
        drawn = weights @ numbers
        found: Floats = weights @ totals / np.where(drawn > 0, drawn, np.nan)
        return found


def interval(values: Floats, confidence: float) -> list[float] | None:
    """Percentile interval [low, high] of resampled values; None where all are NaN.

    Args:
        values: One value a resample, (B,).
        confidence: Level, as 0.95.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return [float(low), float(high)]


def excludes_zero(bounds: list[float] | None) -> bool:
    """Whether an interval tells a difference from none; no interval tells nothing."""
    return bounds is not None and not bounds[0] <= 0 <= bounds[1]
