"""Vocabularies: time gaps."""

from __future__ import annotations

import numpy as np

from reki_ray.models.fields import GAP_BOUNDS, GAP_ROWS, NO_TIME, encode_gaps

DAY = 86_400


def test_time_gaps_count_back_from_the_latest_interaction() -> None:
    times = np.array([[NO_TIME, 0, 100 * DAY, 100 * DAY + 30], [5, 6, 7, NO_TIME]])
    passed = [seconds for seconds in GAP_BOUNDS if seconds <= 100 * DAY]
    assert encode_gaps(times).tolist() == [[0, 1 + len(passed), 1, 1], [0, 0, 0, 0]]


def test_gap_longer_than_any_bound_has_the_last_row() -> None:
    assert encode_gaps(np.array([[0, 4000 * DAY]])).tolist() == [[GAP_ROWS - 1, 1]]
