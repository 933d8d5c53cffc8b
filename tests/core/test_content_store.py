"""The content store under the answer cache and the vector cache; their tests cover the rest."""

from __future__ import annotations

import doctest
import hashlib

import numpy as np
import pyarrow as pa
import pytest

from reki_ray.core import content_store
from reki_ray.core.content_store import ContentStore, digest_bytes, digest_texts, parse_digests
from reki_ray.core.workspace import Workspace
from reki_ray.schema import Table

NUMBERS = Table("notes", pa.schema([("digest", pa.string()), ("number", pa.int32())]))


def rows(*numbers: int) -> pa.Table:
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]
    return pa.table({"digest": digests, "number": pa.array(numbers, pa.int32())})


def test_the_example_runs() -> None:
    assert doctest.testmod(content_store).failed == 0


def test_digests_survive_numpy_with_their_trailing_zeros() -> None:
    texts = [f"text {number}" for number in range(420)]  # one of the hashes ends in a zero byte
    hexadecimal = pa.array([hashlib.sha256(text.encode()).hexdigest() for text in texts])
    np.testing.assert_array_equal(parse_digests(hexadecimal), digest_texts(texts))
    assert [digest.hex() for digest in digest_bytes(digest_texts(texts))] == hexadecimal.to_pylist()


@pytest.mark.parametrize("damaged", ["00", "not hexadecimal", None])
def test_damaged_digests_are_refused(damaged: str | None) -> None:
    with pytest.raises((TypeError, ValueError)):
        parse_digests(pa.array([damaged], pa.string()))


def test_a_second_index_reads_only_new_files(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ContentStore(workspace, NUMBERS, "digest", what="the notes")
    store.append(rows(0, 1))
    store.append(rows(1, 2))
    index = store.index(["number"])
    assert sorted(index.columns["number"].tolist()) == [0, 1, 2]
    loaded: list[str] = []
    load = store._load

    def spy(path: str, columns: list[str] | None) -> pa.Table:
        loaded.append(path)
        return load(path, columns)

    monkeypatch.setattr(store, "_load", spy)
    store.append(rows(3))
    index = store.index(["number"])
    assert len(loaded) == 1
    for number in range(4):
        (entry,) = index.find(digest_texts([str(number)]))
        assert index.columns["number"][entry] == number
        row = store.read(index.files[index.file[entry]]).slice(index.row[entry], 1)
        assert row["number"].to_pylist() == [number]
    for number in range(40):
        store.append(rows(100 + number))
    assert store.compact() == 43
    assert len(store.index(["number"]).digests) == 44
    assert len(store.names()) == 1
