"""Rerankers on the lists of the test split, against the fair base model and the initial order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from reki_ray.config import Arm, RekiConfig
from reki_ray.evaluation.bootstrap import UserBootstrap, excludes_zero, interval
from reki_ray.evaluation.comparison import BASELINE, SeedScores, controls_of
from reki_ray.evaluation.metrics import Array
from reki_ray.evaluation.predictions import predict_test
from reki_ray.evaluation.ranking import (
    CUTOFFS,
    HEADLINE,
    Floats,
    at_cutoffs,
    mean_over_lists,
    ranked,
)
from reki_ray.training.dataset import Dataset, Samples
from reki_ray.training.lists import build_lists
from reki_ray.training.runs import planned_rerankers
from reki_ray.workspace import Workspace

INITIAL: Final = "initial_order"
"""Name of the control row: the lists as the rerankers get them."""

_AT: Final = str(HEADLINE)
_DIFFERENCES: Final = (
    "delta_ndcg_7",
    "delta_ci",
    "delta_initial_ndcg_7",
    "delta_initial_ci",
    "delta_map_7",
    "delta_map_7_ci",
)
Values = dict[str, dict[str, Floats]]


@dataclass(frozen=True)
class _Measured:
    """Values (N,) of the lists, mean over seeds, and the means of the resamples at the headline."""

    values: Values
    resampled: dict[str, Floats]


class ListComparison:
    """Measures orders of the same lists on the same resamples of users.

    A figure is the mean over lists; a list's value is the mean over seeds. Lists of a user hang
    together, so users are drawn, and all orders are measured on the same draws.

    Args:
        lists: Lists of the test split.
        resamples: Number of resamples.
        confidence: Level of the intervals.
    """

    def __init__(self, lists: Samples, resamples: int, confidence: float) -> None:
        self._labels = lists.labels
        self._confidence = confidence
        self._bootstrap = UserBootstrap(lists.users, resamples)
        places = np.broadcast_to(np.arange(lists.labels.shape[1]), lists.labels.shape)
        self._initial = self._measure({0: -places.astype(np.float32)})

    def initial(self) -> dict[str, Any]:
        """Row of the initial order."""
        return {
            "reranker": INITIAL,
            "arm": None,
            "seeds": [],
            **self._figures(self._initial),
            **dict.fromkeys(_DIFFERENCES),
            "per_seed": [],
        }

    def rows(
        self, reranker: str, scores: Mapping[Arm, SeedScores]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of a reranker, and of its arms against their controls.

        Args:
            reranker: Its name.
            scores: Scores (N, K) of every arm, by seed; one arm is the fair base model.
        """
        measured = {arm: self._measure(by_seed) for arm, by_seed in scores.items()}
        base = measured[BASELINE]
        rows = [
            {
                "reranker": reranker,
                "arm": arm,
                "seeds": list(scores[arm]),
                **self._figures(found),
                **self._difference(found, base, "delta_ndcg_7", "delta_ci"),
                **self._difference(
                    found, self._initial, "delta_initial_ndcg_7", "delta_initial_ci"
                ),
                **self._difference(found, base, "delta_map_7", "delta_map_7_ci", "map"),
                "per_seed": [
                    {"seed": seed, **_means(self._values(given))}
                    for seed, given in scores[arm].items()
                ],
            }
            for arm, found in measured.items()
        ]
        controls = [
            self._control(reranker, arm, control, measured)
            for arm, control in controls_of(measured)
        ]
        return rows, controls

    def _control(
        self, reranker: str, arm: Arm, control: Arm, measured: Mapping[Arm, _Measured]
    ) -> dict[str, Any]:
        compared = self._difference(measured[arm], measured[control], "delta_ndcg_7", "delta_ci")
        return {
            "reranker": reranker,
            "arm": arm,
            "control": control,
            **compared,
            "apart": excludes_zero(compared["delta_ci"]),
        }

    def _values(self, scores: Array) -> Values:
        return at_cutoffs(ranked(self._labels, scores))

    def _measure(self, scores: SeedScores) -> _Measured:
        found = [self._values(given) for given in scores.values()]
        values = {
            metric: {
                str(k): np.mean([one[metric][str(k)] for one in found], axis=0) for k in CUTOFFS
            }
            for metric in found[0]
        }
        resampled = {metric: self._bootstrap.mean(by[_AT]) for metric, by in values.items()}
        return _Measured(values, resampled)

    def _figures(self, found: _Measured) -> dict[str, Any]:
        return {
            "lists": len(self._labels),
            **_means(found.values),
            "ndcg_7_ci": interval(found.resampled["ndcg"], self._confidence),
            "map_7_ci": interval(found.resampled["map"], self._confidence),
        }

    def _difference(
        self,
        found: _Measured,
        other: _Measured,
        name: str,
        bounds: str,
        metric: str = "ndcg",
    ) -> dict[str, Any]:
        """Difference at the headline and its interval under two names."""
        between = found.values[metric][_AT] - other.values[metric][_AT]
        spread = found.resampled[metric] - other.resampled[metric]
        return {name: mean_over_lists(between), bounds: interval(spread, self._confidence)}


class Reranking:
    """The rerankers of a run on the test split.

    Args:
        config: The run.
        workspace: Holds the trained rerankers.
        dataset: The data set.
    """

    def __init__(self, config: RekiConfig, workspace: Workspace, dataset: Dataset) -> None:
        self._config = config
        self._workspace = workspace
        self._dataset = dataset
        self._runs = planned_rerankers(config.train)
        self.steps = len(self._runs) + len(config.train.rerankers)

    def measure(self, advance: Callable[[], None]) -> dict[str, Any]:
        """Keys `reranking` and `reranking_controls` of the evaluation; empty without rerankers.

        Args:
            advance: Called after each of `steps` steps.

        Raises:
            DataError: No test sample is positive.
            StoreError: A trained run is missing or damaged.
        """
        found: dict[str, Any] = {"reranking": [], "reranking_controls": []}
        train, evaluate = self._config.train, self._config.evaluate
        if not self._runs:
            return found
        lists = build_lists(self._dataset, "test", train.rerank)
        [scores] = predict_test(self._workspace, self._dataset, lists, self._runs, advance)
        comparison = ListComparison(lists, evaluate.bootstrap, evaluate.confidence)
        found["reranking"].append(comparison.initial())
        for reranker in train.rerankers:
            by_arm = {arm: scores[reranker, arm] for arm in train.arms}
            rows, controls = comparison.rows(reranker, by_arm)
            found["reranking"] += rows
            found["reranking_controls"] += controls
            advance()
        return found


def _means(values: Values) -> dict[str, dict[str, float | None]]:
    return {
        metric: {k: mean_over_lists(found) for k, found in by_cutoff.items()}
        for metric, by_cutoff in values.items()
    }
