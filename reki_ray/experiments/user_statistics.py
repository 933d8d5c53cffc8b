"""Statistics over users that hold at every look: whoever looks again and again is not misled.

An interval of a fixed number of users is wrong more often the more often one looks. A confidence
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
"""Standard deviation of the effects that the mixture expects, in units of the base's CTR: for
effects of this size the intervals are narrowest, and a tenth or ten times of it costs little."""

_CONCENTRATION: Final = 100.0
"""Of the Dirichlet distribution of shares that the sample ratio test mixes over."""


@dataclass(frozen=True)
class Rate:
    """A click-through rate and how much it varies between samples of users.

    Attributes:
        value: Clicks by exposures.
        variance: Of the value, by its linearisation: a user's answers hang together, so users
            vary and not answers.
    """

    value: float
    variance: float


def rate_of(exposures: Floats, clicks: Floats) -> Rate | None:
    """The click-through rate of some users; None without exposures, or of a single user.

    Args:
        exposures: Of every user (U,).
        clicks: Of every user (U,).
    """
    total, users = exposures.sum(), len(exposures)
    if not total or users < 2:  # one user has no variance
        return None
    value = clicks.sum() / total
    residuals = clicks - value * exposures
    variance = users / (users - 1) * (residuals @ residuals) / total**2
    return Rate(float(value), float(variance))


def half_width(variance: float, effect: float, confidence: float) -> float:
    """Half the width of a confidence sequence at one of its looks.

    Args:
        variance: Of the estimate by now.
        effect: Standard deviation of the effects that are expected.
        confidence: Level over all looks, as 0.95.
    """
    expected = effect**2
    if not variance or not expected:
        return 0.0 if not variance else math.inf
    both = variance + expected
    logarithm = math.log(both / variance) - 2 * math.log(1 - confidence)
    return math.sqrt(variance * both / expected * logarithm)


def sample_ratio(users: Sequence[int], shares: Sequence[float]) -> float | None:
    """p-value of numbers of users under shares, valid at all looks; None without users.

    The inverse of a Bayes factor: the numbers' probability under shares drawn around those that
    they should have, by that under these (Lindon & Malek, "Anytime-Valid Inference For Multinomial
    Count Data", NeurIPS 2022).

    Args:
        users: Of every variant.
        shares: That every variant should have.
    """
    total = sum(users)
    if not total:
        return None
    if any(count and not share for count, share in zip(users, shares, strict=True)):
        return 0.0  # somebody is where nobody should be
    counts, expected = np.array(
        [(count, share) for count, share in zip(users, shares, strict=True) if share]
    ).T
    expected = expected / expected.sum()
    prior = _CONCENTRATION * expected
    mixed = gammaln(prior + counts).sum() - gammaln(prior).sum()
    mixed += gammaln(prior.sum()) - gammaln(prior.sum() + total)
    return float(min(1.0, np.exp(min(0.0, counts @ np.log(expected) - mixed))))
