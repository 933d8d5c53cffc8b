"""Statistics over users: whether they are divided as they should be, and how much a CTR varies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import chisquare

from reki_ray.evaluation.bootstrap import Floats


def sample_ratio(users: Sequence[int], shares: Sequence[float]) -> float | None:
    """p-value of numbers of users under shares, by the chi-square test; None without users."""
    total = sum(users)
    if not total:
        return None
    if any(count and not share for count, share in zip(users, shares, strict=True)):
        return 0.0  # somebody is where nobody should be
    pairs = [(count, share) for count, share in zip(users, shares, strict=True) if share]
    expected = np.array([share for _, share in pairs])
    expected *= total / expected.sum()
    if len(pairs) == 1:
        return 1.0
    return float(chisquare([count for count, _ in pairs], expected).pvalue)


def resampled_ctr(exposures: Floats, clicks: Floats, resamples: int, seed: int) -> Floats:
    """CTR of resamples of users.

    Users with the same numbers are exchangeable, so it is enough to draw how often each pair of
    numbers occurs.

    Args:
        exposures: Of every user (U,).
        clicks: Of every user (U,).
        resamples: Number B of resamples.
        seed: Seed of the draws.

    Returns:
        (B,); NaN where a resample has no exposures.
    """
    pairs, counts = np.unique(np.stack([exposures, clicks], axis=1), axis=0, return_counts=True)
    if not len(pairs):
        return np.full(resamples, np.nan)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(counts.sum(), counts / counts.sum(), size=resamples)
    shown, clicked = (drawn @ pairs).T
    found: Floats = clicked / np.where(shown > 0, shown, np.nan)
    return found
