"""New events move ids between clusters that are there, and tell which of them have drifted."""

from __future__ import annotations

import numpy as np
import pytest

from reki_ray.clustering.drift import Earlier, Placement, drift, members_of, place
from reki_ray.config import DriftConfig
from reki_ray.core.vectors import normalise

EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
NEARLY_EAST = [0.95, 0.1]


def unit(rows: list[list[float]]) -> np.ndarray:
    return normalise(np.array(rows))


def earlier(rows: list[list[float]], clusters: list[str]) -> Earlier:
    """Ids a, b, c, ... whose clusters were asked about as they are."""
    ids = [chr(ord("a") + row) for row in range(len(rows))]
    vectors = unit(rows)
    centres = {
        name: normalise(
            vectors[[cluster == name for cluster in clusters]].mean(axis=0, keepdims=True)
        )[0]
        for name in set(clusters)
    }
    return Earlier(ids, vectors, clusters, members_of(ids, clusters), centres)


TWO = earlier([EAST, EAST, NORTH, NORTH], ["u0001", "u0001", "u0002", "u0002"])


def placed(rows: list[list[float]], was: Earlier, floor: float | None = None) -> Placement:
    ids = [*was.ids, *(f"new{row}" for row in range(len(rows) - len(was.ids)))]
    return place(ids, unit(rows), was, floor)


def test_a_new_id_goes_to_the_nearest_cluster_and_the_others_stay() -> None:
    found = placed([EAST, EAST, NORTH, NORTH, NEARLY_EAST], TWO)
    assert found.clusters == ["u0001", "u0001", "u0002", "u0002", "u0001"]
    assert (found.new, found.moved) == (1, 0)
    assert found.placed.tolist() == [False] * 4 + [True]
    assert found.similarities[:2] == pytest.approx(found.similarities[0])


def test_an_id_moves_when_its_nearest_cluster_has_become_another() -> None:
    found = placed([EAST, NORTH, NORTH, NORTH], TWO)
    assert found.clusters == ["u0001", "u0002", "u0002", "u0002"]
    assert (found.new, found.moved) == (0, 1)


def test_an_id_whose_vector_is_the_same_stays_also_beside_a_nearer_centre() -> None:
    # The last row lies on the centre of the first cluster, yet density put it into the second.
    was = earlier([EAST, EAST, NORTH, EAST], ["u0001", "u0001", "u0002", "u0002"])
    found = placed([EAST, EAST, NORTH, EAST], was)
    assert found.clusters == list(was.clusters)
    assert found.moved == 0


def test_an_id_that_turns_towards_its_own_cluster_did_not_move() -> None:
    was = earlier([EAST, EAST, NORTH, NORTH, EAST], ["u0001", "u0001", "u0002", "u0002", "u0002"])
    found = placed([EAST, EAST, NORTH, NORTH, NORTH], was)
    assert found.clusters == list(was.clusters)
    assert found.moved == 0
    assert not found.placed.any()


def test_a_cluster_without_members_is_gone_and_the_others_keep_their_names() -> None:
    found = placed([NORTH, NORTH, NORTH, NORTH], TWO)
    assert set(found.clusters) == {"u0002"}
    assert list(found.centres) == ["u0002"]
    assert [one.cluster_id for one in drift(TWO.ids, found, TWO)] == ["u0002"]


def test_the_floor_splits_a_cluster_under_a_name_never_used() -> None:
    found = placed([EAST, EAST, NORTH, NORTH, WEST], TWO, floor=0.9)
    assert found.clusters[4] == "u0003"
    assert found.similarities.min() >= 0.9
    (new,) = [one for one in drift([*TWO.ids, "new0"], found, TWO) if one.cluster_id == "u0003"]
    assert (new.moved_share, new.centre_shift) == (1.0, 1.0)
    assert new.exceeds(DriftConfig())


def test_nothing_has_drifted_where_nothing_changed() -> None:
    found = placed([EAST, EAST, NORTH, NORTH], TWO)
    for one in drift(TWO.ids, found, TWO):
        assert one.moved_share == 0
        assert one.centre_shift == pytest.approx(0, abs=1e-6)
        assert not one.exceeds(DriftConfig())


def test_members_that_came_and_went_count_against_those_of_both_times() -> None:
    found = placed([EAST, NORTH, NORTH, NORTH, NORTH], TWO)
    first, second = drift([*TWO.ids, "new0"], found, TWO)
    assert (first.size, first.moved_share) == (1, 0.5)  # b left: {a} of {a, b}
    assert (second.size, second.moved_share) == (4, 0.5)  # b and new0 came: {c, d} of four


def test_a_centre_that_turned_is_measured_against_when_it_was_asked_about() -> None:
    found = placed([NEARLY_EAST, NEARLY_EAST, NORTH, NORTH], TWO)
    first, second = drift(TWO.ids, found, TWO)
    cosine = 0.95 / np.hypot(0.95, 0.1)
    assert first.centre_shift == pytest.approx(1 - cosine, abs=1e-6)
    assert second.centre_shift == pytest.approx(0, abs=1e-6)
    assert first.exceeds(DriftConfig(centre_shift=0.001))
    assert not first.exceeds(DriftConfig(centre_shift=0.1))
