from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reki_ray.core.vectors import (
    factors_table,
    normalise,
    read_factor_vectors,
    read_vectors,
    vectors_table,
)
from reki_ray.core.workspace import Workspace
from reki_ray.errors import DataError
from reki_ray.schema import FACTOR, SOURCE, Source, Table, vectors_schema
from tests.support.vector_tables import encoder_of


def test_vectors_survive_the_disk(tmp_path: Path) -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    workspace, table = Workspace(tmp_path), Table("encode/users", None)
    written = vectors_table(["a", "b", "c", "d"], vectors, ["cluster"] * 4)
    assert written.schema.equals(vectors_schema(3))
    workspace.write_table(table, written)
    rows = workspace.read_table(table)
    ids, found = read_vectors(rows)
    assert ids == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(found, vectors)
    assert set(rows[FACTOR].to_pylist()) == {"*"}
    assert set(rows[SOURCE].to_pylist()) == {"cluster"}


def test_a_slice_reads_its_own_rows() -> None:
    table = vectors_table(["a", "b"], np.array([[1.0, 2.0], [3.0, 4.0]]), ["fallback"] * 2)
    np.testing.assert_array_equal(read_vectors(table.slice(1))[1], [[3.0, 4.0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_vector_is_refused_by_its_id(bad: float) -> None:
    with pytest.raises(DataError, match="id b"):
        vectors_table(["a", "b"], np.array([[1.0], [bad]]), ["individual"] * 2)


def test_zero_rows_stay_zero() -> None:
    found = normalise(np.array([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(found, np.array([[0.0, 0.0], [0.6, 0.8]]))


def test_vectors_by_factor_lie_side_by_side_and_what_is_not_known_is_zero() -> None:
    vectors = np.zeros((3, 2, 2), dtype=np.float32)
    vectors[0], vectors[1, 1], vectors[2] = [[1, 2], [3, 4]], [5, 6], [[7, 8], [9, 10]]
    sources: list[Source] = ["individual", "cluster", "fallback"]
    table = factors_table(["b", "a", "c"], ["genre", "mood"], vectors, sources, {"model": "m"})
    assert len(table) == 5
    assert encoder_of(table) == {"model": "m"}
    found = read_factor_vectors(table)
    assert (found.ids, found.factors) == (["b", "a", "c"], ("genre", "mood"))
    np.testing.assert_array_equal(found.vectors, vectors.reshape(3, 4))
    assert found.sources == sources


def test_whole_vectors_are_a_single_factor() -> None:
    table = vectors_table(["a", "b"], np.eye(2, dtype=np.float32), ["fallback"] * 2)
    found = read_factor_vectors(table)
    assert found.factors == ("*",)
    np.testing.assert_array_equal(found.vectors, np.eye(2))


def test_an_id_with_two_vectors_of_one_factor_is_refused() -> None:
    table = vectors_table(["a", "b", "b"], np.eye(3, dtype=np.float32), ["fallback"] * 3)
    with pytest.raises(DataError, match="id b"):
        read_factor_vectors(table)
