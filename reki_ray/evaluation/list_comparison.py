"""Rerankers on the lists of the test split, against the fair base model and the initial order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from reki_ray.config import Arm, RekiConfig
from reki_ray.core.workspace import Workspace
from reki_ray.evaluation.comparison import BASELINE, SeedScores, controls_of, mean, shared_seeds
from reki_ray.evaluation.predictions import predict_test
from reki_ray.metrics.bootstrap import JointBootstrap, Ratio, drawn_over, is_apart, measure_seeds
from reki_ray.metrics.classification import Array, Floats
from reki_ray.metrics.ranking import CUTOFFS, HEADLINE, Metric, gains, means_at_cutoffs
from reki_ray.training.dataset import Dataset, Samples
from reki_ray.training.rerank_lists import build_lists
from reki_ray.training.runs import Run

INITIAL: Final = "initial_order"
"""Name of the control row: the input order of the rerankers."""


class ListComparison:
    """Measures orders of the same lists on the same draws of users and items.

    A metric is the mean over lists, a sum over the parts that their positives add. Draws of users
    and items count the positives; the other candidates stay.
    """

    def __init__(self, lists: Samples, resamples: int, confidence: float) -> None:
        self._lists = lists
        self._resamples = resamples
        self._confidence = confidence
        self._positives = np.nonzero(lists.labels > 0)  # rows and columns
        places = np.broadcast_to(np.arange(lists.labels.shape[1]), lists.labels.shape)
        self._initial = -places.astype(np.float32)

    def initial(self) -> dict[str, Any]:
        """Row of the initial order."""
        by_seed = {0: self._initial}
        return {
            "reranker": INITIAL,
            "arm": None,
            **self._figures(INITIAL, by_seed, self._bootstraps({INITIAL: by_seed})),
            "seeds": [],
            "per_seed": [],
        }

    def rows(
        self, reranker: str, scores: Mapping[Arm, SeedScores]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of a reranker, and of its arms against their controls, from scores (N, K)."""
        shared, seeds = shared_seeds(scores)
        # The initial order is the same with every seed.
        orders: dict[str, SeedScores] = dict(shared.items())
        if seeds:
            orders[INITIAL] = dict.fromkeys(seeds, self._initial)
        bootstraps = self._bootstraps(orders)
        rows = [
            {
                "reranker": reranker,
                "arm": arm,
                **self._figures(arm, shared.get(arm, {}), bootstraps),
            }
            for arm in scores
        ]
        over = drawn_over(len(seeds))
        controls = []
        for arm, control in controls_of(scores):
            bounds = bootstraps["ndcg"].interval(arm, control)
            controls.append(
                {
                    "reranker": reranker,
                    "arm": arm,
                    "control": control,
                    "delta_ndcg_7": bootstraps["ndcg"].value(arm, control),
                    "delta_ci": bounds,
                    "ci_over": over,
                    "apart": is_apart(bounds, over),
                }
            )
        return rows, controls

    def _figures(
        self, name: str, by_seed: SeedScores, bootstraps: Mapping[Metric, JointBootstrap]
    ) -> dict[str, Any]:
        ndcg, precision = bootstraps["ndcg"], bootstraps["map"]
        per_seed = {
            seed: means_at_cutoffs(self._lists.labels, scores) for seed, scores in by_seed.items()
        }
        return {
            "seeds": list(by_seed),
            "lists": len(self._lists),
            **{
                metric: {
                    str(k): mean([means[metric][str(k)] for means in per_seed.values()])
                    for k in CUTOFFS
                }
                for metric in bootstraps
            },
            "ndcg_7_ci": ndcg.interval(name),
            "map_7_ci": precision.interval(name),
            "delta_ndcg_7": ndcg.value(name, BASELINE),
            "delta_ci": ndcg.interval(name, BASELINE),
            "delta_initial_ndcg_7": ndcg.value(name, INITIAL) if name != INITIAL else None,
            "delta_initial_ci": ndcg.interval(name, INITIAL) if name != INITIAL else None,
            "delta_map_7": precision.value(name, BASELINE),
            "delta_map_7_ci": precision.interval(name, BASELINE),
            "ci_over": drawn_over(len(by_seed)),
            "per_seed": [{"seed": seed, **means} for seed, means in per_seed.items()],
        }

    def _bootstraps(self, orders: Mapping[str, SeedScores]) -> dict[Metric, JointBootstrap]:
        """Means over lists at the headline, of orders with the same seeds."""
        rows, columns = self._positives
        shares = 1 / np.bincount(rows)[rows]  # of a list: they add up to 1
        metrics: tuple[Metric, ...] = ("ndcg", "map")
        bootstraps: dict[Metric, JointBootstrap] = {}
        for metric in metrics:

            def measure(scores: Array, metric: Metric = metric) -> tuple[float, Floats]:
                added = gains(self._lists.labels, scores, metric, HEADLINE)[rows, columns]
                value = added.sum() / shares.sum()
                return value, added - value * shares

            values, residuals = measure_seeds(orders, len(rows), measure)
            bootstraps[metric] = JointBootstrap(
                self._lists.users[rows],
                self._lists.items[rows, columns],
                values,
                [Ratio(np.arange(len(rows)), residuals, shares)],
                self._resamples,
                self._confidence,
            )
        return bootstraps


def measure_rerankers(
    config: RekiConfig,
    workspace: Workspace,
    dataset: Dataset,
    runs: Sequence[Run],
    advance: Callable[[], None],
) -> dict[str, Any]:
    """Keys `reranking` and `reranking_controls` of report.json; empty without rerankers.

    Calls `advance` after each of the trained runs and each reranker.

    Raises:
        DataError: No test sample is positive.
        StoreError: A trained run is missing or damaged.
    """
    all_rows: list[dict[str, Any]] = []
    all_controls: list[dict[str, Any]] = []
    if config.train.rerankers:
        lists = build_lists(dataset, "test", config.train.rerank)
        [scores] = predict_test(workspace, dataset, lists, runs, advance)
        comparison = ListComparison(lists, config.evaluate.bootstrap, config.evaluate.confidence)
        all_rows.append(comparison.initial())
        for reranker in config.train.rerankers:
            by_arm = {arm: scores.get((reranker, arm), {}) for arm in config.train.arms}
            rows, controls = comparison.rows(reranker, by_arm)
            all_rows += rows
            all_controls += controls
            advance()
    return {"reranking": all_rows, "reranking_controls": all_controls}
