from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from reki_ray.metrics.classification import BINS, calibration_error, calibration_ratio, reliability

GENERATOR = np.random.default_rng(0)
SCORES = GENERATOR.beta(2, 5, 2003).astype(np.float32)
LABELS = (GENERATOR.random(2003) < SCORES**0.8).astype(np.float32)


def test_bins_are_those_of_scikit_learn_and_hold_equally_many_samples() -> None:
    rows = reliability(LABELS, SCORES)
    observed, predicted = calibration_curve(LABELS, SCORES, n_bins=BINS, strategy="quantile")
    assert [row["observed"] for row in rows] == pytest.approx(observed)
    assert [row["predicted"] for row in rows] == pytest.approx(predicted, abs=1e-6)
    assert {row["samples"] for row in rows} <= {200, 201}
    assert sum(row["samples"] for row in rows) == len(LABELS)


def test_error_agrees_with_one_calculated_by_sorting() -> None:
    order = np.argsort(SCORES)
    distances = [
        len(part) * abs(float(SCORES[part].mean()) - float(LABELS[part].mean()))
        for part in np.array_split(order, BINS)
    ]
    found = calibration_error(LABELS, SCORES)
    # The one sample that a split by number puts into a neighbouring bin is all that differs.
    assert found == pytest.approx(sum(distances) / len(LABELS), abs=2e-3)


def test_error_and_ratio_calculated_by_hand() -> None:
    labels = np.array([0, 1, 1, 1])
    scores = np.array([0.1, 0.3, 0.5, 0.9])
    # Two bins: predicted .2 and .7, observed .5 and 1.
    assert calibration_error(labels, scores, bins=2) == pytest.approx((2 * 0.3 + 2 * 0.3) / 4)
    assert calibration_ratio(labels, scores) == pytest.approx(1.8 / 3)


def test_samples_of_one_score_share_a_bin() -> None:
    rows = reliability(np.array([0, 1, 0, 1]), np.full(4, 0.5))
    assert rows == [{"samples": 4, "predicted": 0.5, "observed": 0.5}]
    assert calibration_error(np.array([0, 1, 0, 1]), np.full(4, 0.5)) == 0


def test_what_is_not_defined_is_none() -> None:
    nothing = np.array([])
    assert (reliability(nothing, nothing), calibration_error(nothing, nothing)) == ([], None)
    assert calibration_ratio(nothing, nothing) is None
    assert calibration_ratio(np.zeros(3), np.full(3, 0.2)) is None
    assert calibration_error(np.zeros(3), np.full(3, 0.2)) == pytest.approx(0.2)
