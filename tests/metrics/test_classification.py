from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from reki_ray.metrics.classification import auc, gauc, logloss, placements

GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.integers(0, 2, 500)
SCORES = np.round(GENERATOR.random(500), 2)  # rounded, so that scores tie


def test_auc_and_logloss_agree_with_sklearn() -> None:
    assert auc(LABELS, SCORES) == pytest.approx(roc_auc_score(LABELS, SCORES))
    clipped = np.clip(SCORES, 1e-7, 1 - 1e-7)
    assert logloss(LABELS, SCORES) == pytest.approx(log_loss(LABELS, clipped))


def test_gauc_calculated_by_hand() -> None:
    users = np.array([1, 2, 1, 2, 1, 3, 3])
    labels = np.array([1, 1, 0, 0, 0, 1, 1])
    scores = np.array([0.9, 0.1, 0.2, 0.5, 0.95, 0.3, 0.4])
    # user 1: one of two pairs is in order (3 samples); user 2: none of one (2 samples);
    # user 3 has a single label and is left out.
    assert gauc(labels, scores, users) == pytest.approx((3 * 0.5 + 2 * 0.0) / 5)


rows = st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), max_size=40)


@given(rows)
def test_gauc_is_the_mean_of_the_users_aucs(drawn: list[tuple[int, bool, int]]) -> None:
    users, labels, scores = np.array(drawn, dtype=float).reshape(-1, 3).T
    values, counts = [], []
    for user in np.unique(users):
        own = users == user
        value = auc(labels[own], scores[own])
        if value is not None:
            values.append(value)
            counts.append(own.sum())
    expected = pytest.approx(np.average(values, weights=counts)) if values else None
    assert gauc(labels, scores, users) == expected


@given(rows)
def test_placements_are_shares_whose_mean_over_a_label_is_the_auc(
    drawn: list[tuple[int, bool, int]],
) -> None:
    labels = np.array([label for _, label, _ in drawn], dtype=float)
    scores = np.array([score for *_, score in drawn], dtype=float)
    value = auc(labels, scores)
    if value is None:
        return
    found = placements(labels, scores)
    for label in (0, 1):
        assert found[labels == label].mean() == pytest.approx(value)
    one = int(np.flatnonzero(labels)[0])
    others = scores[labels == 0]
    expected = ((others < scores[one]) + 0.5 * (others == scores[one])).mean()
    assert found[one] == pytest.approx(expected)


def test_gauc_takes_users_of_any_type() -> None:
    users = np.array(["b", "a", "b", "a"])
    assert gauc(np.array([1, 0, 0, 1]), np.array([0.9, 0.1, 0.2, 0.8]), users) == 1.0


@pytest.mark.parametrize("labels", [[], [1, 1], [0, 0]])
def test_a_single_label_has_no_auc(labels: list[int]) -> None:
    scores = np.linspace(0.2, 0.8, len(labels))
    assert auc(np.array(labels), scores) is None
    assert gauc(np.array(labels), scores, np.zeros(len(labels))) is None


def test_logloss_is_defined_for_a_single_label_but_not_without_samples() -> None:
    assert logloss(np.array([1, 1]), np.array([0.5, 0.5])) == pytest.approx(np.log(2))
    assert logloss(np.array([]), np.array([])) is None


def test_a_certain_wrong_score_costs_much_but_not_infinitely() -> None:
    value = logloss(np.array([1]), np.array([0.0]))
    assert value is not None
    assert np.isfinite(value)
