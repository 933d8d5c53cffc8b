from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from reki_ray.config import EvaluateConfig
from reki_ray.evaluation.bootstrap import UserBootstrap, interval
from reki_ray.evaluation.comparison import Comparison

USERS = np.repeat(np.arange(60), 40)
GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.integers(0, 2, len(USERS))
SHIFT = 0.9
SCORES = (LABELS * SHIFT + GENERATOR.normal(size=len(USERS))).astype(np.float32)


def test_every_resample_has_the_auc_of_its_repeated_users() -> None:
    scores = np.round(SCORES, 1)  # ties
    chosen = GENERATOR.random(len(USERS)) < 0.5
    bootstrap = UserBootstrap(USERS, 20)
    found = bootstrap.auc(LABELS, scores, chosen)
    for counts, value in zip(bootstrap._counts, found, strict=True):
        assert counts.sum() == 60
        rows = np.concatenate(
            [np.flatnonzero((user == USERS) & chosen) for user in np.repeat(np.arange(60), counts)]
        )
        assert value == pytest.approx(roc_auc_score(LABELS[rows], scores[rows]))


def test_interval_covers_the_known_auc() -> None:
    truth = norm.cdf(SHIFT / np.sqrt(2))
    found = interval(UserBootstrap(USERS, 500).auc(LABELS, SCORES), 0.95)
    assert found is not None
    assert found[0] < truth < found[1]
    assert found[1] - found[0] < 0.1


def test_resamples_are_reproducible() -> None:
    first, second = (UserBootstrap(USERS, 10, seed=3).auc(LABELS, SCORES) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_single_label_gives_no_interval() -> None:
    ones = np.ones(len(USERS))
    assert interval(UserBootstrap(USERS, 10).auc(ones, SCORES), 0.95) is None
    nobody = np.zeros(len(USERS), dtype=bool)
    assert interval(UserBootstrap(USERS, 10).auc(LABELS, SCORES, nobody), 0.95) is None


@pytest.fixture
def comparison() -> Comparison:
    marks = {
        "all": np.ones(len(USERS), dtype=bool),
        "empty": np.zeros(len(USERS), dtype=bool),
        "positive": LABELS == 1,
    }
    return Comparison(
        LABELS, USERS, marks, {0: SCORES, 1: SCORES + 0.01}, EvaluateConfig(bootstrap=200)
    )


def test_paired_difference_is_tighter_than_the_intervals_of_its_terms(
    comparison: Comparison,
) -> None:
    better = (SCORES + 0.1 * LABELS).astype(np.float32)
    entry = comparison.entry("reki_c", "din", {0: better, 1: better})
    low, high = entry["delta_ci"]
    assert 0 < low < entry["delta_auc"] < high
    assert high - low < 0.5 * (entry["auc_ci"][1] - entry["auc_ci"][0])
    assert [row["seed"] for row in entry["per_seed"]] == [0, 1]
    calibration, per_seed = entry["calibration"], entry["per_seed"]
    assert calibration["error"] == pytest.approx(
        np.mean([row["calibration_error"] for row in per_seed])
    )
    assert calibration["ratio"] == pytest.approx(
        np.mean([row["calibration_ratio"] for row in per_seed])
    )
    assert sum(bin["samples"] for bin in calibration["bins"]) == 2 * len(LABELS)


def test_baseline_differs_from_itself_by_nothing(comparison: Comparison) -> None:
    entry = comparison.entry("fair_base", "din", {0: SCORES, 1: SCORES})
    assert entry["delta_auc"] == 0.0
    assert entry["delta_ci"] == [0.0, 0.0]


def test_arm_is_apart_from_a_control_only_where_the_interval_leaves_out_zero(
    comparison: Comparison,
) -> None:
    better = (SCORES + 0.1 * LABELS).astype(np.float32)
    comparison.entry("reki_c", "din", {0: better})
    comparison.entry("reki_c_shuffled", "din", {0: SCORES})
    comparison.entry("history_text", "din", {0: better})
    apart = comparison.control("reki_c", "reki_c_shuffled")
    assert apart["apart"]
    assert 0 < apart["delta_ci"][0] < apart["delta_auc"] < apart["delta_ci"][1]
    same = comparison.control("reki_c", "history_text")
    assert not same["apart"]
    assert same["delta_ci"] == [0.0, 0.0]
    assert same["slices"]["empty"]["delta_auc"] is None


def test_slice_without_both_labels_has_no_auc(comparison: Comparison) -> None:
    slices = comparison.entry("reki_c", "din", {0: SCORES})["slices"]
    for name in ("empty", "positive"):
        assert slices[name]["auc"] is None
        assert slices[name]["delta_ci"] is None
    assert slices["empty"]["samples"] == 0
