from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from reki_ray.clustering.vectors import Weighting, user_vectors, with_embeddings
from reki_ray.data.leak_guard import before_cut
from reki_ray.schema import (
    CUT,
    CUTS_SCHEMA,
    INTERACTIONS_SCHEMA,
    ITEM_ID,
    LABEL,
    POSITION,
    RATING,
    TIMESTAMP,
    USER_ID,
)

WEIGHTING = Weighting(half_life=1.0, rating_min=1.0, rating_max=5.0)
ITEMS = ["a", "b", "c"]
VECTORS = np.eye(3, dtype=np.float32)


def interactions(*rows: tuple[str, str, float | None]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {USER_ID: user, ITEM_ID: item, TIMESTAMP: time, RATING: rating, LABEL: 1}
            for time, (user, item, rating) in enumerate(rows)
        ],
        schema=INTERACTIONS_SCHEMA,
    )


def cuts(**lengths: int) -> pa.Table:
    rows = [{USER_ID: user, CUT: cut} for user, cut in lengths.items()]
    return pa.Table.from_pylist(rows, schema=CUTS_SCHEMA)


def test_only_interactions_before_the_cut_are_visible() -> None:
    rows = interactions(("u", "a", 5), ("u", "b", 5), ("u", "c", 5), ("v", "a", 5), ("w", "b", 5))
    visible = before_cut(rows, cuts(u=2, v=0, w=1))
    assert visible[USER_ID].to_pylist() == ["u", "u", "w"]
    assert visible[ITEM_ID].to_pylist() == ["a", "b", "b"]
    assert visible[POSITION].to_pylist() == [0, 1, 0]


def test_a_user_without_a_cut_row_shows_nothing() -> None:
    assert before_cut(interactions(("u", "a", 5)), cuts()).num_rows == 0


def test_no_interactions_at_all() -> None:
    visible = before_cut(interactions(), cuts(u=3))
    assert visible.num_rows == 0
    assert user_vectors(["u"], visible, ITEMS, VECTORS, WEIGHTING).shape == (1, 3)


def test_weights_fall_with_age_and_rise_with_rating() -> None:
    rows = interactions(("u", "a", 5), ("u", "b", 3), ("u", "c", 1))
    found = user_vectors(["u"], before_cut(rows, cuts(u=3)), ITEMS, VECTORS, WEIGHTING)
    # Age 2, 1, 0 at half-life 1: 1/4, 1/2, 1. Ratings 5, 3, 1 weigh 1, .6, .2.
    expected = np.array([0.25 * 1.0, 0.5 * 0.6, 1.0 * 0.2])
    np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected), rtol=1e-6)


def test_what_lies_behind_the_cut_changes_nothing() -> None:
    first = interactions(("u", "a", 5), ("u", "b", 3))
    longer = interactions(("u", "a", 5), ("u", "b", 3), ("u", "c", 5), ("u", "c", 5))
    one, other = (
        user_vectors(["u"], before_cut(rows, cuts(u=2)), ITEMS, VECTORS, WEIGHTING)
        for rows in (first, longer)
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_clicks_without_rating_count_fully() -> None:
    rows = interactions(("u", "a", None), ("u", "b", None))
    found = user_vectors(["u"], before_cut(rows, cuts(u=2)), ITEMS, VECTORS, WEIGHTING)
    np.testing.assert_allclose(found[0], np.array([1, 2, 0]) / np.sqrt(5), rtol=1e-6)


def test_a_user_without_visible_items_gets_the_mean_of_all_users() -> None:
    rows = interactions(("u", "a", 5), ("v", "b", 5), ("w", "gone", 5))
    visible = before_cut(rows, cuts(u=1, v=1, w=1, x=0))
    found = user_vectors(["u", "v", "w", "x"], visible, ITEMS, VECTORS, WEIGHTING)
    mean = np.array([1, 1, 0]) / np.sqrt(2)
    np.testing.assert_allclose(found, [[1, 0, 0], [0, 1, 0], mean, mean], rtol=1e-6)


@pytest.mark.parametrize("half_life", [0.5, 10.0, 1e6])
def test_vectors_have_unit_length(half_life: float) -> None:
    rows = interactions(*(("u", ITEMS[step % 3], 1 + step % 5) for step in range(30)))
    weighting = Weighting(half_life, 1.0, 5.0)
    found = user_vectors(["u"], before_cut(rows, cuts(u=30)), ITEMS, VECTORS, weighting)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-6)


def test_id_embeddings_share_in_the_cosine_by_their_weight() -> None:
    embeddings = np.array([[2.0, 0.0], [3.0, 0.0]])  # of a and b: alike, of any length
    found = with_embeddings(ITEMS, VECTORS, ["a", "b"], embeddings, weight=0.25)
    assert found.shape == (3, 5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-6)
    assert found[0] @ found[1] == pytest.approx(0.25)  # their texts have nothing in common


def test_an_item_without_an_embedding_keeps_its_text_alone() -> None:
    found = with_embeddings(ITEMS, VECTORS, ["a"], np.ones((1, 2)), weight=0.25)
    np.testing.assert_allclose(found[2], [0, 0, 1, 0, 0])
