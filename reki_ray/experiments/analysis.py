"""`reki ab`: variants of an experiment compared by what users clicked.

A variant's click-through rate (CTR) is its clicks by the items it showed. A user's answers hang
together, so it is users that vary; and whoever runs an experiment looks at it again and again, so
intervals and the sample ratio hold at all looks together, see `user_statistics`.
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
from reki_ray.experiments.attribution import ClickAttribution, Joined
from reki_ray.experiments.experiment import Experiment, load_experiment
from reki_ray.experiments.exposures import ExposureReader
from reki_ray.experiments.user_hash import open_hasher
from reki_ray.experiments.user_statistics import EFFECT, Rate, half_width, rate_of, sample_ratio

SRM_P: Final = 0.001
"""Below this, the sample ratio is not what the shares say."""
FEWEST_CLICKS: Final = 10
"""With fewer clicks in a variant, its variance is not known."""

Verdict = Literal["base", "ahead", "behind", "not apart", "too few clicks"]


class VariantResult(BaseModel):
    """What a variant's users did.

    Attributes:
        name: Of the variant.
        version: Published version that its users got.
        share: Share of users that it should have.
        users: Users who were shown something.
        exposures: Items shown, each once an answer.
        clicks: Of these, those that were clicked.
        ctr: Clicks by exposures; None without exposures.
        lift: CTR by the first variant's, minus 1; None where that is not defined.
        lift_interval: Of the lift.
        difference: CTR minus the first variant's.
        difference_interval: Of the difference; it decides on the verdict.
        verdict: ahead or behind where that interval excludes zero.
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
    """An experiment's variants, the first being the base.

    Attributes:
        experiment: Its name.
        since: Exposures from this time on count, seconds since the epoch.
        window: Longest time from an exposure to a click that names no request, seconds.
        confidence: Level of each interval over all looks; several variants are not corrected for.
        variants: In the order of the experiment.
        srm_p: p-value of the users' numbers under the shares, over all looks; None without users.
        srm: Sample ratio mismatch: the p-value is below .001.
        mixed_users: Users who were shown several variants, and are left out.
        unmatched_clicks: Clicks of these users on what the experiment did not show them.
        damaged_lines: Lines of the logs that could not be read.
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


def ab(  # all but the first have defaults
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
        publish_root: Folder of the versions; `online` lies beside it.
        name: Of the experiment, running or ended; None takes the running one.
        since: Exposures from this time on count, seconds since the epoch; None is the time of
            the last change of shares: users of different times under different shares do not
            compare.
        window: Longest time from an exposure to a click that names no request, seconds.
        clicks: Types of events that count as clicks.
        confidence: Level of the intervals over all looks.

    Raises:
        ConfigError: There is no such experiment.
        StoreError: Its file or the key of the hashes is damaged.
    """
    experiment = _find(publish_root, name)
    since = experiment.changed_at if since is None else since
    folders = OnlineFolders.beside(publish_root)
    joined, damaged = _join(experiment, folders, since, window, frozenset(clicks))
    measured = _measure(experiment, joined, confidence)
    srm_p = sample_ratio(
        [variant.users for variant in measured], [variant.share for variant in measured]
    )
    return AbResult(
        experiment=experiment.name,
        since=since,
        window=window,
        confidence=confidence,
        variants=measured,
        srm_p=srm_p,
        srm=srm_p is not None and srm_p < SRM_P,
        mixed_users=joined.mixed,
        unmatched_clicks=joined.unmatched,
        damaged_lines=damaged,
    )


def _find(publish_root: Path | str, name: str | None) -> Experiment:
    experiment = load_experiment(publish_root, name)
    if experiment is None:
        raise ConfigError(
            "no experiment is running" if name is None else f"there is no experiment {name}",
            where=str(publish_root),
            todo="Start one, or name one that has ended.",
        )
    return experiment


def _join(
    experiment: Experiment,
    folders: OnlineFolders,
    since: int,
    window: int,
    clicks: frozenset[str],
) -> tuple[Joined, int]:
    exposures, events = ExposureReader(folders.exposures), EventReader(folders.events)
    until = experiment.ended_at
    joiner = ClickAttribution([variant.name for variant in experiment.variants], window)
    joiner.show(
        one
        for one in exposures.read()
        if one.experiment == experiment.name
        and since <= one.timestamp
        and (until is None or one.timestamp <= until)
    )
    if len(joiner):  # else there may be no key, and none is to be drawn by a reader
        hasher = open_hasher(folders.key)
        joiner.click((event for event in events.read() if event.event in clicks), hasher)
    return joiner.join(), exposures.damaged + events.damaged


def _measure(experiment: Experiment, joined: Joined, confidence: float) -> list[VariantResult]:
    found: list[VariantResult] = []
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
            result = compared(result, rate, found[0], base, confidence)
        found.append(result)
    return found


def compared(
    one: VariantResult,
    rate: Rate | None,
    base: VariantResult,
    base_rate: Rate | None,
    confidence: float,
) -> VariantResult:
    """A variant's result with its comparison to the base.

    Args:
        one: What the variant's users did.
        rate: Their click-through rate.
        base: What the base's users did.
        base_rate: Their click-through rate.
        confidence: Level over all looks.
    """
    if rate is None or base_rate is None or min(one.clicks, base.clicks) < FEWEST_CLICKS:
        return one.model_copy(update={"verdict": "too few clicks"})
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
    return one.model_copy(
        update={
            "lift": lift,
            "lift_interval": [(1 + lift) / factor - 1, (1 + lift) * factor - 1],
            "difference": difference,
            "difference_interval": [difference - half, difference + half],
            "verdict": verdict,
        }
    )
