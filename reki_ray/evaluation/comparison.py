"""Arms against the fair base model and against their controls: metrics, intervals and slices."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reki_ray.config import Arm, EvaluateConfig
from reki_ray.evaluation.bootstrap import Floats, UserBootstrap, excludes_zero, interval
from reki_ray.evaluation.calibration import calibration_error, calibration_ratio, reliability
from reki_ray.evaluation.metrics import Array, auc, gauc, logloss
from reki_ray.training.dataset import Dataset

BASELINE: Final = "fair_base"
ALL = "all"
NEW_USERS = "new_users"
CONTROLS: Final[Mapping[Arm, tuple[Arm, ...]]] = {
    "reki_i": ("title_text", "history_text"),
    "reki_c": ("reki_c_shuffled", "title_text", "history_text"),
    "reki_c_kmeans": ("title_text", "history_text"),
    "reki_blend": ("title_text", "history_text"),
    "imported": ("title_text",),
}
"""What an arm must be compared with besides the fair base model, before its knowledge gets the
credit: a placebo, and encoded texts without an LLM."""

METRICS: Final = "evaluate/metrics.json"
"""The evaluation's file below the workspace."""

Marks = npt.NDArray[np.bool_]
SeedScores = Mapping[int, npt.NDArray[np.float32]]


def controls_of(arms: Collection[Arm]) -> list[tuple[Arm, Arm]]:
    """Arms that are measured, each with its controls among them."""
    return [(arm, control) for arm in arms for control in CONTROLS.get(arm, ()) if control in arms]


def slices(dataset: Dataset, config: EvaluateConfig) -> dict[str, Marks]:
    """Where knowledge should pay: marks (N,) of the test samples of every slice."""
    test = dataset.samples["test"]
    cold_items = dataset.train.items[test.items] <= config.cold_item_max
    return {
        "cold_items": cold_items,
        "warm_items": ~cold_items,
        "cold_users": test.positions <= config.cold_user_max,
        "sparse_users": dataset.activity[test.users] <= config.sparse_user_max,
        ALL: np.ones(len(test), dtype=bool),
    }


@dataclass(frozen=True)
class _Measured:
    """Of one arm on one slice: mean over seeds, and the same in every resample."""

    auc: float | None
    resampled: Floats


class Comparison:
    """Measures arms on the same test samples and the same resamples of users.

    Args:
        labels: 0 or 1, (N,).
        users: User of every sample (N,), integers.
        slices: Marks (N,) by slice; one is `all`.
        baseline: Scores (N,) of the fair base model, by seed.
        config: Number of resamples and level of the intervals.
    """

    def __init__(
        self,
        labels: Array,
        users: Array,
        slices: Mapping[str, Marks],
        baseline: SeedScores,
        config: EvaluateConfig,
    ) -> None:
        self._labels = labels
        self._users = users
        self._slices = slices
        self._confidence = config.confidence
        self._bootstrap = UserBootstrap(users, config.bootstrap)
        self._baseline = {name: self._measure(baseline, name) for name in slices}
        self._measured = {BASELINE: self._baseline}

    def entry(self, arm: str, backbone: str, scores: SeedScores) -> dict[str, Any]:
        """Entry of an arm in report.json.

        Args:
            arm: Name of the arm.
            backbone: Its conventional model.
            scores: Scores (N,) by seed.
        """
        if arm not in self._measured:
            self._measured[arm] = {name: self._measure(scores, name) for name in self._slices}
        parts = self._measured[arm]
        compared = self._compare(arm, BASELINE)
        whole = compared[ALL]
        per_seed = [{"seed": seed, **self._metrics(scores[seed])} for seed in scores]
        return {
            "arm": arm,
            "backbone": backbone,
            "seeds": list(scores),
            "auc": whole["auc"],
            "auc_ci": interval(parts[ALL].resampled, self._confidence),
            "logloss": mean([row["logloss"] for row in per_seed]),
            "gauc": mean([row["gauc"] for row in per_seed]),
            "calibration": {
                "error": mean([row["calibration_error"] for row in per_seed]),
                "ratio": mean([row["calibration_ratio"] for row in per_seed]),
                "bins": self._reliability(scores),
            },
            "delta_auc": whole["delta_auc"],
            "delta_ci": whole["delta_ci"],
            "slices": compared,
            "per_seed": per_seed,
        }

    def _metrics(self, scores: Array) -> dict[str, float | None]:
        return {
            "auc": auc(self._labels, scores),
            "logloss": logloss(self._labels, scores),
            "gauc": gauc(self._labels, scores, self._users),
            "calibration_error": calibration_error(self._labels, scores),
            "calibration_ratio": calibration_ratio(self._labels, scores),
        }

    def _reliability(self, scores: SeedScores) -> list[dict[str, Any]]:
        """Bins over the predictions of all seeds together."""
        labels = np.tile(self._labels, len(scores))
        return reliability(labels, np.concatenate(list(scores.values())))

    def _measure(self, scores: SeedScores, name: str) -> _Measured:
        chosen = self._slices[name]
        labels = self._labels[chosen]
        by_seed = [auc(labels, values[chosen]) for values in scores.values()]
        if mean(by_seed) is None:  # no resample of a single label has both
            return _Measured(None, np.full(1, np.nan))
        resampled = [self._bootstrap.auc(self._labels, v, chosen) for v in scores.values()]
        return _Measured(mean(by_seed), np.mean(resampled, axis=0))

    def control(self, arm: str, control: str) -> dict[str, Any]:
        """Entry of `controls` in report.json: an arm minus one of its controls.

        Args:
            arm: Name of an arm whose entry was made.
            control: Name of another one.
        """
        compared = self._compare(arm, control)
        bounds = compared[ALL]["delta_ci"]
        return {
            "arm": arm,
            "control": control,
            "delta_auc": compared[ALL]["delta_auc"],
            "delta_ci": bounds,
            "apart": excludes_zero(bounds),
            "slices": compared,
        }

    def _compare(self, arm: str, other: str) -> dict[str, dict[str, Any]]:
        """By slice, the arm's AUC and its paired difference to the other's."""
        compared = {}
        for name, part in self._measured[arm].items():
            against = self._measured[other][name]
            delta, delta_interval = None, None
            if part.auc is not None and against.auc is not None:
                delta = part.auc - against.auc
                between = part.resampled - against.resampled
                delta_interval = interval(between, self._confidence)
            compared[name] = {
                "samples": int(self._slices[name].sum()),
                "auc": part.auc,
                "delta_auc": delta,
                "delta_ci": delta_interval,
            }
        return compared


def mean(values: list[float | None]) -> float | None:
    """Mean of the defined values; None where there is none."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
