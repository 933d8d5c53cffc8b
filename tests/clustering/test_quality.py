from __future__ import annotations

import numpy as np
import pytest

from reki_ray.clustering.assignment import assign_all
from reki_ray.clustering.base import NOISE
from reki_ray.clustering.clusterers import describe, silhouette
from reki_ray.core.vectors import normalise


def test_figures_of_two_clear_clusters() -> None:
    vectors = normalise(np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 2))
    raw = np.array([0, 0, NOISE, 1, 1])
    figures = describe(vectors, raw, assign_all(vectors, raw, min_size=2))
    assert figures == {
        "clusters": 2,
        "noise_share": 0.2,
        "mean_similarity": 1.0,
        "sizes": {"min": 2, "median": 2.5, "max": 3},
        "silhouette": 1.0,
        "size_list": [2, 3],
    }


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_silhouette_is_none_where_it_is_not_defined(labels: list[int]) -> None:
    assert silhouette(np.eye(3), np.array(labels)) is None


def test_silhouette_of_many_rows_is_taken_on_a_fixed_sample() -> None:
    vectors = normalise(np.random.default_rng(0).normal(size=(2500, 4)))
    labels = np.arange(2500) % 3
    assert silhouette(vectors, labels) == silhouette(vectors, labels)
