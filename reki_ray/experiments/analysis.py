"""`reki ab`: compares the variants of an experiment by clicks.

A variant's click-through rate (CTR) is its clicks over the items it showed. A user's answers are
dependent, so variances are over users; and experiments are looked at repeatedly, so intervals and
the sample ratio hold at all looks together, see `confidence_sequences`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel

from reki_ray.errors import ConfigError
from reki_ray.events.log import EventReader
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.shipping import bring_once, share_key
from reki_ray.experiments.attribution import ClickAttribution, Joined
from reki_ray.experiments.confidence_sequences import (
    EFFECT,
    Rate,
    half_width,
    rate_of,
    sample_ratio,
)
from reki_ray.experiments.experiment import Experiment, load_experiment
from reki_ray.experiments.exposures import ExposureReader
from reki_ray.experiments.user_hash import open_hasher

SRM_P: Final = 0.001
"""p-value below which the sample ratio contradicts the shares."""
FEWEST_CLICKS: Final = 10
"""With fewer clicks, a variant's variance is unknown."""

Verdict = Literal["base", "ahead", "behind", "not apart", "too few clicks"]


class VariantResult(BaseModel):
    """Clicks of a variant's users.

    Attributes:
        version: Published version of its users.
        exposures: Items shown, each once per answer.
        ctr: Clicks over exposures; None without exposures.
        lift: CTR over the first variant's, minus 1; None if undefined.
        difference: CTR minus the first variant's.
        verdict: ahead or behind if that interval excludes zero.
    """

    name: str
    version: int
    share: float
    users: int
    exposures: int
    clicks: int
    ctr: float | None
    lift: float | None = None
    lift_interval: list[float] | None = None
    difference: float | None = None
    difference_interval: list[float] | None = None
    verdict: Verdict = "base"


class AbResult(BaseModel):
    """Comparison of an experiment's variants with the first one, the base.

    Attributes:
        since: Time of the first exposure that counts, seconds since the epoch.
        window: Longest time from an exposure to a click that names no request, seconds.
        confidence: Level of each interval over all looks; not corrected for several variants.
        srm_p: p-value of the sample ratio over all looks; None without users.
        srm: Sample ratio mismatch: the p-value is below .001.
        mixed_users: Users excluded because they were shown several variants.
        unmatched_clicks: Clicks of these users on items that the experiment did not show them.
    """

    experiment: str
    since: int
    window: int
    confidence: float
    variants: list[VariantResult]
    srm_p: float | None
    srm: bool
    mixed_users: int
    unmatched_clicks: int
    damaged_lines: int


def ab(
    publish_root: Path | str,
    name: str | None = None,
    *,
    since: int | None = None,
    window: int = 1800,
    clicks: Sequence[str] = ("click",),
    confidence: float = 0.95,
) -> AbResult:
    """Compare the variants of an experiment.

    Args:
        publish_root: Folder of the versions, next to `online`.
        name: A running or ended experiment; None takes the running one.
        since: Time of the first exposure that counts, seconds since the epoch; None is the last
            change of shares, since users under different shares are not comparable.
        window: Longest time from an exposure to a click that names no request, seconds.
        confidence: Level of the intervals over all looks.

    Raises:
        ConfigError: There is no such experiment.
        StoreError: Its file or the key of the hashes is damaged.
    """
    experiment = load_experiment(publish_root, name)
    if experiment is None:
        raise ConfigError(
            "no experiment is running" if name is None else f"there is no experiment {name}",
            where=str(publish_root),
            todo="Start an experiment, or name an ended one.",
        )
    begin = experiment.changed_at if since is None else since
    end = math.inf if experiment.ended_at is None else experiment.ended_at
    folders = OnlineFolders.beside(publish_root)
    bring_once(folders)
    exposures, events = ExposureReader(folders.exposures), EventReader(folders.events)
    attribution = ClickAttribution([variant.name for variant in experiment.variants], window)
    attribution.show(
        exposure
        for exposure in exposures.read()
        if exposure.experiment == experiment.name and begin <= exposure.timestamp <= end
    )
    if len(attribution):  # without users there may be no key, and a reader must not create it
        share_key(folders)
        hasher = open_hasher(folders.key)
        attribution.click((event for event in events.read() if event.event in clicks), hasher)
    joined = attribution.join()
    measured = _measure(experiment, joined, confidence)
    srm_p = sample_ratio([v.users for v in measured], [v.share for v in measured])
    return AbResult(
        experiment=experiment.name,
        since=begin,
        window=window,
        confidence=confidence,
        variants=measured,
        srm_p=srm_p,
        srm=srm_p is not None and srm_p < SRM_P,
        mixed_users=joined.mixed,
        unmatched_clicks=joined.unmatched,
        damaged_lines=exposures.damaged + events.damaged,
    )


def _measure(experiment: Experiment, joined: Joined, confidence: float) -> list[VariantResult]:
    results: list[VariantResult] = []
    base: Rate | None = None
    for code, variant in enumerate(experiment.variants):
        own = joined.variants == code
        exposures = joined.exposures[own].astype(np.float64)
        clicks = joined.clicks[own].astype(np.float64)
        shown, clicked = int(exposures.sum()), int(clicks.sum())
        result = VariantResult(
            name=variant.name,
            version=variant.version,
            share=variant.share,
            users=int(own.sum()),
            exposures=shown,
            clicks=clicked,
            ctr=clicked / shown if shown else None,
        )
        rate = rate_of(exposures, clicks)
        if code == 0:
            base = rate
        else:
            result = compared(result, rate, results[0], base, confidence)
        results.append(result)
    return results


def compared(
    result: VariantResult,
    rate: Rate | None,
    base: VariantResult,
    base_rate: Rate | None,
    confidence: float,
) -> VariantResult:
    """Add the comparison to the base, with a confidence level over all looks, to a result."""
    if rate is None or base_rate is None or min(result.clicks, base.clicks) < FEWEST_CLICKS:
        return result.model_copy(update={"verdict": "too few clicks"})
    difference = rate.value - base_rate.value
    effect = EFFECT * base_rate.value
    half = half_width(rate.variance + base_rate.variance, effect, confidence)
    lift = rate.value / base_rate.value - 1
    # On the logarithm's scale, on which a ratio is a difference.
    spread = rate.variance / rate.value**2 + base_rate.variance / base_rate.value**2
    factor = math.exp(half_width(spread, EFFECT, confidence))
    verdict: Verdict = "not apart"
    if abs(difference) > half:
        verdict = "ahead" if difference > 0 else "behind"
    return result.model_copy(
        update={
            "lift": lift,
            "lift_interval": [(1 + lift) / factor - 1, (1 + lift) * factor - 1],
            "difference": difference,
            "difference_interval": [difference - half, difference + half],
            "verdict": verdict,
        }
    )
