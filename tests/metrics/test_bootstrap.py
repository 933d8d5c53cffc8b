"""Intervals over users, items and seeds: against brute force, and how often they are wrong."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from reki_ray.config import Arm, EvaluateConfig
from reki_ray.evaluation.comparison import Comparison, SeedScores, shared_seeds
from reki_ray.metrics.bootstrap import JointBootstrap, Ratio, is_apart
from reki_ray.training.dataset import Samples

Floats = npt.NDArray[np.float32]

GENERATOR = np.random.default_rng(0)
USERS = np.repeat(np.arange(60), 40)
ITEMS = GENERATOR.integers(0, 90, len(USERS))
LABELS = GENERATOR.integers(0, 2, len(USERS)).astype(np.float32)
SHIFT = 0.9
SCORES = (LABELS * SHIFT + GENERATOR.normal(size=len(USERS))).astype(np.float32)
ALL = {"all": np.ones(len(USERS), dtype=bool)}


def samples(
    labels: Floats = LABELS,
    users: npt.NDArray[np.int64] = USERS,
    items: npt.NDArray[np.int64] = ITEMS,
) -> Samples:
    return Samples(users, items, np.zeros(len(users), dtype=np.int64), labels)


def compared(scores: Mapping[Arm, SeedScores], given: Samples | None = None) -> Comparison:
    given = given or samples()
    everywhere = {"all": np.ones(len(given), dtype=bool)}
    return Comparison(given, everywhere, scores, EvaluateConfig(bootstrap=200))


# --- draws ---------------------------------------------------------------------------------------


def test_a_sample_counts_as_often_as_its_user_and_its_item_were_drawn() -> None:
    values = GENERATOR.normal(size=len(USERS))
    residuals = (values - values.mean()).astype(np.float32)[:, None]
    ratio = Ratio(np.arange(len(USERS)), residuals, np.ones(len(USERS)))
    means = {"mean": np.array([values.mean()])}
    bootstrap = JointBootstrap(USERS, ITEMS, means, [ratio], 70, 0.95)
    places = np.unique(ITEMS, return_inverse=True)[1]
    drawn = [
        np.repeat(values, users[USERS, column].astype(int) * items[places, column])
        for _, users, items in bootstrap._draws()
        for column in range(users.shape[1])
    ]
    assert len(drawn) == 70
    found = bootstrap._deviations[:, 0] + values.mean()
    assert found == pytest.approx([one.mean() for one in drawn], abs=1e-5)


def test_variance_is_that_of_two_way_clustering_and_of_the_draws() -> None:
    users, items = USERS[::20], ITEMS[::20]
    users = np.append(users, users[0])  # one pair twice
    items = np.append(items, items[0])
    residuals = GENERATOR.normal(size=(len(users), 1)).astype(np.float32)
    residuals -= residuals.mean()
    ratio = Ratio(np.arange(len(users)), residuals, np.ones(len(users)))
    bootstrap = JointBootstrap(users, items, {"mean": np.zeros(1)}, [ratio], 4000, 0.95)
    influence = residuals[:, 0].astype(np.float64) / len(users)
    products = np.outer(influence, influence)
    same_user, same_item = users[:, None] == users, items[:, None] == items
    wanted = products[same_user | same_item].sum()
    drawn = products[same_user].sum() + products[same_item].sum()
    drawn += products[same_user & same_item].sum()
    least = max(wanted, products[same_user].sum(), products[same_item].sum())
    assert bootstrap._variances(0, None) == pytest.approx((least, drawn), rel=1e-6)
    assert bootstrap._deviations.var() == pytest.approx(drawn, rel=0.15)


def test_expansion_follows_the_auc_of_repeated_samples() -> None:
    scores = np.round(SCORES, 1)  # ties
    comparison = compared({"fair_base": {0: scores}})
    bootstrap = comparison._measured["all"]
    places = np.unique(ITEMS, return_inverse=True)[1]
    exact = [
        roc_auc_score(
            LABELS, scores, sample_weight=users[USERS, column].astype(float) * items[places, column]
        )
        for _, users, items in bootstrap._draws()
        for column in range(users.shape[1])
    ]
    found = bootstrap._deviations[:, 0] + roc_auc_score(LABELS, scores)
    assert np.corrcoef(found, exact)[0, 1] > 0.99
    assert found.std() == pytest.approx(np.std(exact), rel=0.1)


def test_draws_of_a_million_users_and_items_stay_small() -> None:
    many = np.arange(1_000_000)
    ratio = Ratio(many, np.zeros((len(many), 1), dtype=np.float32), np.ones(len(many)))
    bootstrap = JointBootstrap(many, many, {"mean": np.zeros(1)}, [ratio], 1000, 0.95)
    _, users, items = next(bootstrap._draws())
    assert users.nbytes + items.nbytes <= 64 * 2**20


# --- intervals -----------------------------------------------------------------------------------


def test_interval_covers_the_known_auc() -> None:
    truth = norm.cdf(SHIFT / np.sqrt(2))
    low, high = compared({"fair_base": {0: SCORES}}).entry("fair_base", "din")["auc_ci"]
    assert low < truth < high
    assert high - low < 0.1


@pytest.mark.parametrize("seeds", [1, 3])
def test_arms_that_differ_by_chance_are_seldom_told_apart(seeds: int) -> None:
    """The data are new each time, and so are both models with every seed."""
    generator = np.random.default_rng(seeds)
    spread = 0.08 if seeds > 1 else 0.0  # one seed cannot show what another would give
    wrong, runs = 0, 200
    for _ in range(runs):
        labels = (generator.random(len(USERS)) < 0.4).astype(np.float32)
        signal = labels + 0.5 * generator.normal(size=60)[USERS]
        arms: tuple[Arm, ...] = ("fair_base", "reki_c")
        scores = {
            arm: {
                seed: (
                    (0.8 + spread * generator.normal()) * signal
                    + 0.3 * generator.normal(size=60)[USERS]
                    + 0.3 * generator.normal(size=90)[ITEMS]
                    + generator.normal(size=len(USERS))
                ).astype(np.float32)
                for seed in range(seeds)
            }
            for arm in arms
        }
        entry = compared(scores, samples(labels)).entry("reki_c", "din")
        low, high = entry["delta_ci"]
        wrong += not low <= 0 <= high
    assert wrong / runs <= 0.08  # 0.05 and the chance of so many runs


def test_a_gain_of_one_lucky_seed_is_no_gain() -> None:
    base = dict.fromkeys(range(3), SCORES)
    lucky = {**base, 1: (SCORES + 0.5 * LABELS).astype(np.float32)}
    entry = compared({"fair_base": base, "reki_c": lucky}).entry("reki_c", "din")
    assert entry["delta_auc"] > 0.02
    assert not is_apart(entry["delta_ci"], entry["ci_over"])
    alone = compared({"fair_base": {1: SCORES}, "reki_c": {1: lucky[1]}})
    of_one = alone.control("reki_c", "fair_base")
    assert of_one["delta_ci"][0] > 0
    assert of_one["ci_over"] == ["users", "items"]
    assert not of_one["apart"]  # another seed may give another result
    assert entry["ci_over"] == ["users", "items", "seeds"]


def test_a_gain_on_few_items_is_no_gain_on_others() -> None:
    few = np.isin(ITEMS, [1, 2])
    better = (SCORES + few * LABELS * 3.0).astype(np.float32)
    entry = compared({"fair_base": {0: SCORES}, "reki_c": {0: better}}).entry("reki_c", "din")
    low, high = entry["delta_ci"]
    assert high - low > entry["delta_auc"]


def test_paired_difference_is_tighter_than_the_intervals_of_its_terms() -> None:
    better = (SCORES + 0.1 * LABELS).astype(np.float32)
    noise = {seed: 0.01 * GENERATOR.normal(size=len(LABELS)) for seed in (0, 1, 2)}
    comparison = compared(
        {
            "fair_base": {seed: (SCORES + n).astype(np.float32) for seed, n in noise.items()},
            "reki_c": {seed: (better + n).astype(np.float32) for seed, n in noise.items()},
        }
    )
    entry = comparison.entry("reki_c", "din")
    low, high = entry["delta_ci"]
    assert 0 < low < entry["delta_auc"] < high
    assert high - low < 0.5 * (entry["auc_ci"][1] - entry["auc_ci"][0])
    assert [row["seed"] for row in entry["per_seed"]] == [0, 1, 2]
    calibration, per_seed = entry["calibration"], entry["per_seed"]
    assert calibration["error"] == pytest.approx(
        np.mean([row["calibration_error"] for row in per_seed])
    )
    assert calibration["ratio"] == pytest.approx(
        np.mean([row["calibration_ratio"] for row in per_seed])
    )
    assert sum(bin["samples"] for bin in calibration["bins"]) == 3 * len(LABELS)


def test_baseline_differs_from_itself_by_nothing() -> None:
    entry = compared({"fair_base": {0: SCORES, 1: SCORES}}).entry("fair_base", "din")
    assert entry["delta_auc"] == 0.0
    assert entry["delta_ci"] == [0.0, 0.0]


def test_arm_is_apart_from_a_control_only_where_the_interval_leaves_out_zero() -> None:
    better = (SCORES + 0.1 * LABELS).astype(np.float32)
    comparison = Comparison(
        samples(),
        {**ALL, "empty": ~ALL["all"]},
        {
            "fair_base": {0: SCORES, 1: SCORES},
            "reki_c": {0: better, 1: better},
            "reki_c_shuffled": {0: SCORES, 1: SCORES},
            "history_text": {0: better, 1: better},
        },
        EvaluateConfig(bootstrap=200),
    )
    apart = comparison.control("reki_c", "reki_c_shuffled")
    assert apart["apart"]
    assert 0 < apart["delta_ci"][0] < apart["delta_auc"] < apart["delta_ci"][1]
    same = comparison.control("reki_c", "history_text")
    assert not same["apart"]
    assert same["delta_ci"] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert same["slices"]["empty"]["delta_auc"] is None


# --- what is missing -----------------------------------------------------------------------------


def test_slice_without_both_labels_has_no_auc() -> None:
    marks = {**ALL, "empty": ~ALL["all"], "positive": LABELS == 1}
    scores: dict[Arm, SeedScores] = {"fair_base": {0: SCORES}, "reki_c": {0: SCORES}}
    comparison = Comparison(samples(), marks, scores, EvaluateConfig(bootstrap=200))
    slices = comparison.entry("reki_c", "din")["slices"]
    for name in ("empty", "positive"):
        assert slices[name]["auc"] is None
        assert slices[name]["delta_ci"] is None
    assert slices["empty"]["samples"] == 0


@pytest.mark.parametrize("label", [0, 1])
def test_samples_of_a_single_label_have_every_figure_but_those_of_order(label: int) -> None:
    single = samples(np.full(len(USERS), label, dtype=np.float32))
    scores = {seed: np.full(len(USERS), 0.3, dtype=np.float32) for seed in (0, 1)}
    comparison = compared({"fair_base": scores, "reki_c": scores}, single)
    entry = comparison.entry("reki_c", "din")
    for name in ("auc", "auc_ci", "gauc", "delta_auc", "delta_ci"):
        assert entry[name] is None
    assert entry["logloss"] > 0
    assert entry["calibration"]["bins"]
    assert not comparison.control("reki_c", "fair_base")["apart"]


def test_a_seed_that_diverged_is_left_out_of_all_arms() -> None:
    comparison = compared(
        {
            "fair_base": {0: SCORES, 1: SCORES},
            "reki_c": {1: (SCORES + 0.1 * LABELS).astype(np.float32)},
            "title_text": {},
        }
    )
    assert comparison.entry("fair_base", "din")["seeds"] == [1]
    assert comparison.entry("reki_c", "din")["delta_auc"] > 0
    nothing = comparison.entry("title_text", "din")
    assert (nothing["seeds"], nothing["auc"], nothing["logloss"]) == ([], None, None)
    assert nothing["calibration"] == {"error": None, "ratio": None, "bins": []}
    assert comparison.control("reki_c", "title_text")["delta_auc"] is None


def test_arms_with_no_seed_in_common_leave_the_one_with_most() -> None:
    scores: dict[Arm, SeedScores] = {
        "reki_c": {2: SCORES},
        "fair_base": {0: SCORES, 1: SCORES},
        "base": {},
    }
    kept, seeds = shared_seeds(scores)
    assert (list(kept), seeds) == (["fair_base"], [0, 1])
    others: dict[Arm, SeedScores] = {"reki_c": {1: SCORES, 2: SCORES}, "title_text": {1: SCORES}}
    kept, seeds = shared_seeds({"fair_base": {0: SCORES}, **others})
    assert (list(kept), seeds) == (["fair_base"], [0])  # what all are compared with stays
    assert shared_seeds({"fair_base": {}}) == ({}, [])
