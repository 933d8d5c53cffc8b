"""Statistics over users that stay valid however often an experiment is looked at.

An interval of a fixed sample size is wrong more often the more often one looks. A confidence
sequence covers the truth at all looks together with its level: the estimate of a difference of
means is, at the scale of its variance V, a Brownian motion, and mixing its likelihood ratio over
effects ~ N(0, rho) bounds it for all times (Robbins 1970; Johari, Koomen, Pekelis & Walsh, "Always
Valid Inference", Operations Research 2022, arXiv:1512.04922; with variances that are estimated:
Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, "Time-uniform central limit theory and asymptotic
confidence sequences", Annals of Statistics 2024, arXiv:2103.06476).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

Floats = npt.NDArray[np.float64]

EFFECT: Final = 0.1
"""Standard deviation of the effects in the mixture, in units of the base's CTR: intervals are
narrowest for effects of this size, and little wider for a tenth or ten times of it."""

_CONCENTRATION: Final = 100.0
"""Of the Dirichlet mixture of the sample ratio test."""


@dataclass(frozen=True)
class Rate:
    """A click-through rate and its variance over samples of users, by linearisation."""

    value: float
    variance: float


def rate_of(exposures: Floats, clicks: Floats) -> Rate | None:
    """Click-through rate from exposures (U,) and clicks (U,) per user; None if undefined."""
    total, users = exposures.sum(), len(exposures)
    if not total or users < 2:  # one user has no variance
        return None
    value = clicks.sum() / total
    residuals = clicks - value * exposures
    variance = users / (users - 1) * (residuals @ residuals) / total**2
    return Rate(float(value), float(variance))


def half_width(variance: float, effect: float, confidence: float) -> float:
    """Half the width of a confidence sequence, for effects of this standard deviation."""
    expected = effect**2
    if not variance or not expected:
        return 0.0 if not variance else math.inf
    both = variance + expected
    logarithm = math.log(both / variance) - 2 * math.log(1 - confidence)
    return math.sqrt(variance * both / expected * logarithm)


def sample_ratio(users: Sequence[int], shares: Sequence[float]) -> float | None:
    """p-value of users per variant under the configured shares, valid at all looks.

    The inverse of a Bayes factor: the probability of the counts under shares drawn around the
    configured ones over that under these (Lindon & Malek, "Anytime-Valid Inference For Multinomial
    Count Data", NeurIPS 2022). None without users.
    """
    total = sum(users)
    if not total:
        return None
    if any(count and not share for count, share in zip(users, shares, strict=True)):
        return 0.0  # users in a variant without a share
    counts, expected = np.array(
        [(count, share) for count, share in zip(users, shares, strict=True) if share]
    ).T
    expected = expected / expected.sum()
    prior = _CONCENTRATION * expected
    mixed = gammaln(prior + counts).sum() - gammaln(prior).sum()
    mixed += gammaln(prior.sum()) - gammaln(prior.sum() + total)
    return float(min(1.0, np.exp(min(0.0, counts @ np.log(expected) - mixed))))
