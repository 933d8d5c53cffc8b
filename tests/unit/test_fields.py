"""Vocabularies: time gaps, numbers in buckets."""

from __future__ import annotations

import numpy as np

from reki_ray.models.fields import GAP_BOUNDS, GAP_ROWS, NO_TIME, FeatureSpace, encode_gaps

DAY = 86_400


def test_time_gaps_count_back_from_the_latest_interaction() -> None:
    times = np.array([[NO_TIME, 0, 100 * DAY, 100 * DAY + 30], [5, 6, 7, NO_TIME]])
    passed = [seconds for seconds in GAP_BOUNDS if seconds <= 100 * DAY]
    assert encode_gaps(times).tolist() == [[0, 1 + len(passed), 1, 1], [0, 0, 0, 0]]


def test_gap_longer_than_any_bound_has_the_last_row() -> None:
    assert encode_gaps(np.array([[0, 4000 * DAY]])).tolist() == [[GAP_ROWS - 1, 1]]


def test_numbers_go_into_quantile_buckets() -> None:
    prices = [str(price) for price in (1, 2, 3, 4, 10, 20, 30, 1000)]
    features = FeatureSpace.build(
        items={f"m{k}": {"price": [price]} for k, price in enumerate(prices)},
        users=[],
        ratings=np.zeros(0, dtype=np.float32),
        buckets={"price": 4},
    )
    field = features.item_fields["price"]
    assert field.bounds == (1.0, 3.0, 10.0, 30.0)
    assert field.rows == 2 + 4
    asked = [["0"], ["2.9"], ["3"], ["999999"], ["cheap"], ["nan"], []]
    assert field.encode(asked)[:, 0].tolist() == [2, 2, 3, 5, 0, 0, 0]
    assert FeatureSpace.from_json(features.to_json()) == features
