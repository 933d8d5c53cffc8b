from __future__ import annotations

import numpy as np
import pytest

from reki_ray.clustering.assignment import assign_all, name_clusters, nearest
from reki_ray.clustering.base import NOISE
from reki_ray.core.vectors import normalise

EAST, NORTH = [1.0, 0.0], [0.0, 1.0]


def unit(rows: list[list[float]]) -> np.ndarray:
    return normalise(np.array(rows))


def test_noise_goes_to_the_nearest_centre() -> None:
    vectors = unit([EAST, EAST, NORTH, NORTH, [0.9, 0.1], [0.1, 0.9]])
    found = assign_all(vectors, np.array([0, 0, 1, 1, NOISE, NOISE]), min_size=2)
    assert found.labels.tolist() == [0, 0, 1, 1, 0, 1]


def test_similarity_is_the_cosine_to_the_centre_of_all_members() -> None:
    vectors = unit([[1.0, 0.0], [0.6, 0.8]])
    found = assign_all(vectors, np.array([0, 0]), min_size=2)
    # Both lie at half of the angle between them from the centre: cos(a/2) = sqrt((1 + .6) / 2).
    np.testing.assert_allclose(found.similarities, np.sqrt(0.8), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.centres, axis=1), 1.0, rtol=1e-6)


def test_all_noise_becomes_one_cluster() -> None:
    found = assign_all(unit([EAST, NORTH, EAST]), np.full(3, NOISE), min_size=2)
    assert found.labels.tolist() == [0, 0, 0]


def test_one_row_is_a_cluster_of_its_own() -> None:
    found = assign_all(unit([EAST]), np.array([NOISE]), min_size=8)
    assert found.labels.tolist() == [0]
    assert found.similarities == pytest.approx([1.0])


def test_small_clusters_are_dissolved_into_their_neighbours() -> None:
    vectors = unit([EAST] * 3 + [NORTH] * 3 + [[0.8, 0.2]])
    found = assign_all(vectors, np.array([0, 0, 0, 1, 1, 1, 2]), min_size=3)
    assert np.bincount(found.labels).tolist() == [4, 3]
    assert found.labels[6] == found.labels[0]


def test_fewer_rows_than_a_cluster_needs_stay_together() -> None:
    found = assign_all(unit([EAST, NORTH]), np.array([0, 1]), min_size=5)
    assert len(set(found.labels.tolist())) == 1


@pytest.mark.parametrize("seed", range(5))
def test_every_row_ends_in_a_cluster_of_the_minimum_size(seed: int) -> None:
    generator = np.random.default_rng(seed)
    vectors = normalise(generator.normal(size=(200, 6)))
    found = assign_all(vectors, generator.integers(-1, 40, size=200), min_size=7)
    sizes = np.bincount(found.labels)
    assert sizes.sum() == 200
    assert sizes.min() >= 7
    assert len(found.centres) == len(sizes)


def test_nearest_is_the_same_in_chunks_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    vectors = normalise(generator.normal(size=(50, 4)))
    centres = normalise(generator.normal(size=(5, 4)))
    whole = nearest(vectors, centres)
    monkeypatch.setattr("reki_ray.clustering.assignment._CHUNK_BYTES", 7 * 4 * 5)
    for one, other in zip(whole, nearest(vectors, centres), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_names_go_by_size_then_by_first_id() -> None:
    names = name_clusters(["e", "d", "c", "b", "a"], np.array([0, 1, 2, 2, 1]), "u")
    # Labels 1 {d, a} and 2 {c, b} have two members each; 1 holds the smaller id.
    assert names == ["u0003", "u0001", "u0002", "u0002", "u0001"]


def test_names_do_not_depend_on_the_order_of_rows_or_on_label_numbers() -> None:
    ids, labels = ["a", "b", "c", "d", "e", "f"], np.array([0, 0, 1, 1, 1, 2])
    named = dict(zip(ids, name_clusters(ids, labels, "i"), strict=True))
    order = [5, 2, 0, 4, 1, 3]
    renumbered = np.array([2, 0, 1])[labels]
    shuffled = [ids[row] for row in order]
    other = name_clusters(shuffled, renumbered[order], "i")
    assert dict(zip(shuffled, other, strict=True)) == named
