"""NDCG and average precision at k against scikit-learn and against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, ndcg_score

from reki_ray.metrics.ranking import (
    CUTOFFS,
    Metric,
    average_precision,
    gains,
    means_at_cutoffs,
    ndcg,
    ranked,
)

METRICS: tuple[Metric, ...] = ("ndcg", "map")
GENERATOR = np.random.default_rng(0)
LABELS = (GENERATOR.random((50, 10)) < 0.3).astype(np.float32)
LABELS[:, 4] = 1
SCORES = GENERATOR.normal(size=LABELS.shape).astype(np.float32)


@pytest.mark.parametrize("k", CUTOFFS)
def test_ndcg_is_that_of_scikit_learn(k: int) -> None:
    found = ndcg(ranked(LABELS, SCORES), k)
    for row in range(len(LABELS)):
        expected = ndcg_score(LABELS[row : row + 1], SCORES[row : row + 1], k=k)
        assert found[row] == pytest.approx(expected)


def test_average_precision_of_a_whole_list_is_that_of_scikit_learn() -> None:
    found = average_precision(ranked(LABELS, SCORES), 10)
    for row in range(len(LABELS)):
        assert found[row] == pytest.approx(average_precision_score(LABELS[row], SCORES[row]))


lists = hnp.arrays(np.int8, st.tuples(st.just(1), st.integers(1, 12)), elements=st.integers(0, 1))


@given(lists, st.integers(1, 12))
def test_both_follow_their_definitions(relevance: np.ndarray, k: int) -> None:
    labels = relevance[0].tolist()
    found = relevance.astype(np.float64)
    if not any(labels):
        assert np.isnan(ndcg(found, k)).all()
        assert np.isnan(average_precision(found, k)).all()
        return
    dcg, precisions = 0.0, 0.0
    for place, label in enumerate(labels[:k], 1):
        if label:
            dcg += 1 / math.log2(place + 1)
            precisions += sum(labels[:place]) / place
    best = sum(1 / math.log2(place + 1) for place in range(1, min(sum(labels), k) + 1))
    assert ndcg(found, k)[0] == pytest.approx(dcg / best)
    assert average_precision(found, k)[0] == pytest.approx(precisions / min(sum(labels), k))


def test_padding_takes_no_place_whatever_its_score() -> None:
    labels = np.array([[0, 1, -1, -1], [1, 0, 0, -1]], dtype=np.float32)
    scores = np.array([[0.1, 0.2, 9.0, 9.0], [-5.0, -6.0, -7.0, 0.0]], dtype=np.float32)
    assert ranked(labels, scores)[:, 0].tolist() == [1.0, 1.0]
    for by_cutoff in means_at_cutoffs(labels, scores).values():
        assert list(by_cutoff.values()) == [1.0] * len(CUTOFFS)


def test_equal_scores_keep_the_initial_order() -> None:
    labels = np.array([[0, 1, 0]], dtype=np.float32)
    assert ranked(labels, np.zeros((1, 3)))[0].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("k", CUTOFFS)
def test_what_candidates_add_is_the_value_of_their_list(k: int) -> None:
    relevance = ranked(LABELS, SCORES)
    values = {"ndcg": ndcg(relevance, k), "map": average_precision(relevance, k)}
    for metric in METRICS:
        added = gains(LABELS, SCORES, metric, k)
        assert added.sum(axis=1) == pytest.approx(values[metric])
        assert not added[LABELS == 0].any()
