"""Files of vectors beyond the contract: colliding hashes, sizes, mapping, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from reki_ray.errors import StoreError
from reki_ray.store import hash_index
from reki_ray.store.hash_index import IndexedTable, hash_keys, write_indexed
from reki_ray.store.vectors import VectorTable, write_vectors

FALLBACK = np.array([9.0, 8.0], dtype=np.float32)
ODD_IDS = ["", " ", "a", "A", "ü", "日本語", "🎬" * 50, "x" * 5000, "a\x00b", "a/b", "\n"]


def _vectors(count: int) -> npt.NDArray[np.float32]:
    return np.arange(2 * count, dtype=np.float32).reshape(count, 2)


@pytest.mark.parametrize("buckets", [1, 2, 3])
def test_colliding_hashes_are_told_apart_by_the_id(
    tmp_path: Path, buckets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def colliding(keys: Sequence[str]) -> npt.NDArray[np.uint64]:
        # The largest hashes too: the search must not run past the end of the index.
        return np.uint64(2**64 - 1) - hash_keys(keys) % np.uint64(buckets)

    monkeypatch.setattr(hash_index, "hash_keys", colliding)
    write_vectors(tmp_path / "v", ODD_IDS, _vectors(len(ODD_IDS)), ["cluster"] * 11)
    table = VectorTable([tmp_path / "v"], FALLBACK)
    found, sources = table.lookup([*ODD_IDS, "unknown"])
    np.testing.assert_array_equal(found[:-1], _vectors(len(ODD_IDS)))
    np.testing.assert_array_equal(found[-1], FALLBACK)
    assert sources == ["cluster"] * 11 + ["fallback"]


def test_half_precision_halves_the_file_and_keeps_its_precision(tmp_path: Path) -> None:
    ids = [f"id{k}" for k in range(500)]
    vectors = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
    for dtype in ("float32", "float16"):
        write_vectors(tmp_path / dtype, ids, vectors, ["cluster"] * 500, dtype=dtype)
    table = VectorTable([tmp_path / "float16"], np.zeros(64, np.float32))
    found, _ = table.lookup(ids)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors.astype(np.float16).astype(np.float32))
    saved = (tmp_path / "float32").stat().st_size - (tmp_path / "float16").stat().st_size
    assert saved == pytest.approx(500 * 64 * 2, rel=0.01)


def test_the_vectors_are_mapped_and_not_copied(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v", ["a", "b"], _vectors(2), ["cluster"] * 2)
    before = pa.total_allocated_bytes()
    table = VectorTable([tmp_path / "v"], FALLBACK)
    assert pa.total_allocated_bytes() == before
    assert not table.vectors[0].flags.writeable


@pytest.mark.parametrize(
    ("ids", "sources", "message"),
    [(["a", "a"], ["cluster"] * 2, "twice"), (["a"], ["cluster"] * 2, "do not fit")],
)
def test_wrong_input_is_refused(
    tmp_path: Path, ids: list[str], sources: list[str], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        write_vectors(tmp_path / "v", ids, _vectors(2), sources)


def test_a_fallback_of_another_length_is_refused(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v", ["a"], _vectors(1), ["cluster"])
    with pytest.raises(StoreError, match="length 2"):
        VectorTable([tmp_path / "v"], np.zeros(3, np.float32))


@pytest.mark.parametrize("content", [None, b"", b"no arrow file at all"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "v").write_bytes(content)
    with pytest.raises(StoreError, match="missing or damaged"):
        VectorTable([tmp_path / "v"], FALLBACK)


def test_a_file_without_index_is_refused(tmp_path: Path) -> None:
    rows = pa.table({"id": ["a"]})
    with pa.OSFile(str(tmp_path / "v"), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as out:
        out.write_table(rows)
    with pytest.raises(StoreError, match="no index"):
        VectorTable([tmp_path / "v"], FALLBACK)


def test_all_rows_of_a_key_come_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pa.table({"key": ["b", "a", "b", "c", "b"], "text": ["1", "2", "3", "4", "5"]})

    def constant(keys: Sequence[str]) -> npt.NDArray[np.uint64]:
        return np.zeros(len(keys), np.uint64)

    for hashing in (hash_keys, constant):
        monkeypatch.setattr(hash_index, "hash_keys", hashing)
        write_indexed(tmp_path / "t", rows, "key")
        table = IndexedTable(tmp_path / "t", "key")
        assert table.find_all("b").column("text").to_pylist() == ["1", "3", "5"]
        assert table.find_all("z").num_rows == 0


def test_the_hash_is_the_same_everywhere() -> None:
    # A published index is read by other machines and later processes.
    assert hash_keys(["", "u1"]).tolist() == [HASH_OF_EMPTY, HASH_OF_U1]


HASH_OF_EMPTY = 13_020_603_013_274_838_756
HASH_OF_U1 = 15_378_189_911_849_802_130
