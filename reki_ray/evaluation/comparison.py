"""Arms against the fair base model and against their controls: metrics, intervals and slices."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reki_ray.config import Arm, EvaluateConfig
from reki_ray.metrics.bootstrap import JointBootstrap, Ratio, drawn_over, is_apart, measure_seeds
from reki_ray.metrics.classification import (
    Array,
    Floats,
    auc,
    calibration_error,
    calibration_ratio,
    gauc,
    logloss,
    placements,
    reliability,
)
from reki_ray.training.dataset import Dataset, Samples

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
"""Controls of an arm besides the fair base model: a placebo, and encoded texts without an LLM."""

METRICS: Final = "evaluate/metrics.json"
"""The evaluation's file below the workspace."""

Marks = npt.NDArray[np.bool_]
SeedScores = Mapping[int, npt.NDArray[np.float32]]


def controls_of(arms: Collection[Arm]) -> list[tuple[Arm, Arm]]:
    """Pairs of an arm and each of its controls among `arms`."""
    return [(arm, control) for arm in arms for control in CONTROLS.get(arm, ()) if control in arms]


def slices(dataset: Dataset, config: EvaluateConfig) -> dict[str, Marks]:
    """Marks (N,) of the test samples of every slice."""
    test = dataset.samples["test"]
    cold_items = dataset.train.items[test.items] <= config.cold_item_max
    return {
        "cold_items": cold_items,
        "warm_items": ~cold_items,
        "cold_users": test.positions <= config.cold_user_max,
        "sparse_users": dataset.activity[test.users] <= config.sparse_user_max,
        ALL: np.ones(len(test), dtype=bool),
    }


class Comparison:
    """Measures arms on the same test samples and on the same draws of users and items.

    Args:
        slices: Marks (N,) by slice; one is `all`.
        scores: Scores (N,) by arm, then seed; see `shared_seeds`. An arm without seeds has no
            metrics.
    """

    def __init__(
        self,
        samples: Samples,
        slices: Mapping[str, Marks],
        scores: Mapping[Arm, SeedScores],
        config: EvaluateConfig,
    ) -> None:
        self._samples = samples
        self._config = config
        self._sizes = {name: int(marks.sum()) for name, marks in slices.items()}
        self._scores, self._seeds = shared_seeds(scores)
        self._measured = {name: self._measure(marks) for name, marks in slices.items()}

    def entry(self, arm: Arm, backbone: str) -> dict[str, Any]:
        """Entry of an arm in report.json."""
        scores = self._scores.get(arm, {})
        compared = self._compare(arm, BASELINE)
        whole = compared[ALL]
        per_seed = [{"seed": seed, **self._metrics(of_seed)} for seed, of_seed in scores.items()]
        return {
            "arm": arm,
            "backbone": backbone,
            "seeds": list(scores),
            "auc": whole["auc"],
            "auc_ci": self._measured[ALL].interval(arm),
            "logloss": mean([row["logloss"] for row in per_seed]),
            "gauc": mean([row["gauc"] for row in per_seed]),
            "calibration": {
                "error": mean([row["calibration_error"] for row in per_seed]),
                "ratio": mean([row["calibration_ratio"] for row in per_seed]),
                "bins": self._reliability(scores),
            },
            "delta_auc": whole["delta_auc"],
            "delta_ci": whole["delta_ci"],
            "ci_over": drawn_over(len(scores)),
            "slices": compared,
            "per_seed": per_seed,
        }

    def control(self, arm: Arm, control: Arm) -> dict[str, Any]:
        """Entry of `controls` in report.json: an arm minus one of its controls."""
        compared = self._compare(arm, control)
        bounds = compared[ALL]["delta_ci"]
        over = drawn_over(len(self._seeds))
        return {
            "arm": arm,
            "control": control,
            "delta_auc": compared[ALL]["delta_auc"],
            "delta_ci": bounds,
            "ci_over": over,
            "apart": is_apart(bounds, over),
            "slices": compared,
        }

    def _metrics(self, scores: Array) -> dict[str, float | None]:
        labels = self._samples.labels
        return {
            "auc": auc(labels, scores),
            "logloss": logloss(labels, scores),
            "gauc": gauc(labels, scores, self._samples.users),
            "calibration_error": calibration_error(labels, scores),
            "calibration_ratio": calibration_ratio(labels, scores),
        }

    def _reliability(self, scores: SeedScores) -> list[dict[str, Any]]:
        """Bins over the predictions of all seeds together."""
        if not scores:
            return []
        labels = np.tile(self._samples.labels, len(scores))
        return reliability(labels, np.concatenate(list(scores.values())))

    def _measure(self, marks: Marks) -> JointBootstrap:
        """AUC of all arms on one slice; of none if it has a single label."""
        chosen = np.flatnonzero(marks)
        labels = self._samples.labels[chosen]
        by_label = np.flatnonzero(labels > 0), np.flatnonzero(labels <= 0)

        def measure(scores: Array) -> tuple[float, Floats]:
            placed = placements(labels, scores[chosen])
            value = placed[by_label[0]].mean()
            return value, placed - value

        defined = self._scores if all(map(len, by_label)) else {}
        values, residuals = measure_seeds(defined, len(chosen), measure)
        return JointBootstrap(
            self._samples.users[chosen],
            self._samples.items[chosen],
            values,
            [Ratio(rows, residuals[rows], np.ones(len(rows))) for rows in by_label],
            self._config.bootstrap,
            self._config.confidence,
        )

    def _compare(self, arm: Arm, other: Arm) -> dict[str, dict[str, Any]]:
        """AUC of the arm, and its paired difference to the other arm, by slice."""
        return {
            name: {
                "samples": self._sizes[name],
                "auc": measured.value(arm),
                "delta_auc": measured.value(arm, other),
                "delta_ci": measured.interval(arm, other),
            }
            for name, measured in self._measured.items()
        }


def shared_seeds(scores: Mapping[Arm, SeedScores]) -> tuple[dict[Arm, SeedScores], list[int]]:
    """Scores of the arms for the seeds that all of them have, and these seeds.

    A seed that some arm lacks, because its run diverged, is left out of all. Without a common
    seed the arms with the fewest are left out, the baseline last.
    """
    arms = sorted(
        (arm for arm in scores if scores[arm]), key=lambda arm: (arm == BASELINE, len(scores[arm]))
    )
    while arms:
        seeds = [seed for seed in scores[arms[-1]] if all(seed in scores[arm] for arm in arms)]
        if seeds:
            kept = [arm for arm in scores if arm in arms]
            return {arm: {seed: scores[arm][seed] for seed in seeds} for arm in kept}, seeds
        arms.pop(0)
    return {}, []


def mean(values: list[float | None]) -> float | None:
    """Mean of the values that are not None; None without any."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
