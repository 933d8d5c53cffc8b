"""Search of items: exact and approximate, with rows left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from reki_ray.errors import StoreError
from reki_ray.retrieval.index import ItemIndex, Rows, Vectors, best_rows, build_index

ITEMS, DIMENSION = 3000, 16


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(40, DIMENSION))
    found = centres[generator.integers(0, 40, ITEMS)] + generator.normal(size=(ITEMS, DIMENSION))
    unit: Vectors = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.fixture(scope="module")
def path(vectors: Vectors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("index") / "index.usearch"
    build_index(found, vectors)
    return found


def expected(vectors: Vectors, query: Vectors, count: int, excluded: Rows) -> list[int]:
    order = np.argsort(-(vectors @ query), kind="stable")
    return [row for row in order.tolist() if row not in set(excluded.tolist())][:count]


@given(
    scores=arrays.arrays(
        np.float32, st.integers(1, 40), elements=st.floats(-2, 2, width=16, allow_nan=False)
    ),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_the_best_rows_are_those_of_a_stable_sort(scores: Vectors, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(scores)))
    rows, found = best_rows(scores, count)
    assert rows.tolist() == np.argsort(-scores, kind="stable")[:count].tolist()
    np.testing.assert_array_equal(found, scores[rows])


@pytest.mark.parametrize("count", [1, 100, ITEMS + 5])
def test_a_small_catalogue_is_searched_exactly(vectors: Vectors, count: int) -> None:
    query = vectors[7] + vectors[20]
    excluded = np.array([7, 20, 30])
    rows, scores = ItemIndex(vectors).search(query, count, excluded)
    assert rows.tolist() == expected(vectors, query, count, excluded)
    np.testing.assert_allclose(scores, vectors[rows] @ query, atol=1e-6)


def test_the_index_finds_nearly_what_an_exact_search_finds(vectors: Vectors, path: Path) -> None:
    index = ItemIndex(vectors, path)
    shares = []
    for number in range(50):
        query = vectors[number] + 0.3 * vectors[-number - 1]
        exact = expected(vectors, query, 50, np.array([number]))
        rows, scores = index.search(query, 50, np.array([number]))
        assert len(rows) == 50
        assert number not in rows
        assert (np.diff(scores) <= 1e-6).all()
        shares.append(len(set(exact) & set(rows.tolist())) / 50)
    assert np.mean(shares) > 0.98


def test_many_rows_left_out_still_leave_as_many_as_asked_for(vectors: Vectors, path: Path) -> None:
    query = vectors[0]
    near = np.array(expected(vectors, query, ITEMS - 10, np.zeros(0, np.int64)))
    rows, _ = ItemIndex(vectors, path).search(query, 10, near)
    assert rows.tolist() == expected(vectors, query, 10, near)


def test_the_same_vectors_give_the_same_file(vectors: Vectors, path: Path, tmp_path: Path) -> None:
    build_index(tmp_path / "again", vectors)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_an_index_of_other_vectors_is_refused(vectors: Vectors, path: Path) -> None:
    with pytest.raises(StoreError, match="holds 3000 vectors"):
        ItemIndex(vectors[:-1], path)


def test_a_file_that_is_no_index_is_refused(vectors: Vectors, tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(b"no index" * 100)
    with pytest.raises(StoreError, match="damaged"):
        ItemIndex(vectors, tmp_path / "index")
