"""The vector cache: addresses, atomic units, damage; and what tells two encoders apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from reki_ray.config import EncodeConfig
from reki_ray.core.content_store import digest_texts
from reki_ray.core.vectors import vectors_table
from reki_ray.core.workspace import Workspace
from reki_ray.encoding.encoders import EncoderIdentity, identify
from reki_ray.encoding.encoders.feature_hash import HashingEncoder
from reki_ray.encoding.texts import encode_texts
from reki_ray.encoding.vector_cache import VectorCache, unit_name
from reki_ray.errors import DataError, EngineError
from reki_ray.schema import REPRESENTATIONS
from tests.support.vector_tables import encoder_of

HASHING = EncodeConfig(backend="hashing", dimension=64, unit_rows=2)
IDENTITY = EncoderIdentity("sentence_transformers", "m", "1", None, "float32")
TEXTS = [f"text {number}" for number in range(420)]  # one of their hashes ends in a zero byte


def vectors_of(texts: list[str], dimension: int = 3) -> np.ndarray:
    return np.array([[float(text.split()[1])] * dimension for text in texts], dtype=np.float32)


def fill(ledger: VectorCache, texts: list[str], unit: int = 16) -> None:
    for start in range(0, len(texts), unit):
        some = texts[start : start + unit]
        ledger.append(digest_texts(some), vectors_of(some))


def test_vectors_come_back_by_text_in_any_order_and_number(stored: Workspace) -> None:
    ledger = VectorCache(stored, IDENTITY)
    fill(ledger, TEXTS)
    index = ledger.index()
    asked = [*TEXTS[::-3], TEXTS[0], TEXTS[0]]
    np.testing.assert_array_equal(ledger.vectors(index, digest_texts(asked)), vectors_of(asked))
    assert (index.find(digest_texts(["never seen"])) == -1).all()
    assert ledger.dimension(index) == 3


def test_rows_carry_hash_model_and_revision(stored: Workspace) -> None:
    ledger = VectorCache(stored, IDENTITY)
    ledger.append(digest_texts(["text 1"]), vectors_of(["text 1"]))
    (path,) = stored.filesystem.ls(stored.path("encode/ledger", IDENTITY.digest), detail=False)
    with stored.filesystem.open(path) as file:
        (row,) = pq.read_table(file).to_pylist()
    assert row == {
        "text_hash": hashlib.sha256(b"text 1").hexdigest(),
        "model": "m",
        "revision": "1",
        "vector": [1.0, 1.0, 1.0],
    }


def test_an_empty_ledger_finds_nothing(stored: Workspace) -> None:
    ledger = VectorCache(stored, IDENTITY)
    index = ledger.index()
    assert index.find(digest_texts(TEXTS)).tolist() == [-1] * len(TEXTS)
    assert ledger.dimension(index) == 0
    assert ledger.units() == frozenset()


def test_a_unit_that_is_written_twice_is_one_file(stored: Workspace) -> None:
    ledger = VectorCache(stored, IDENTITY)
    digests = digest_texts(TEXTS)
    ledger.append(digests, vectors_of(TEXTS))
    ledger.append(digests[::-1], vectors_of(TEXTS)[::-1])
    assert ledger.units() == {unit_name(digests)}
    np.testing.assert_array_equal(ledger.vectors(ledger.index(), digests), vectors_of(TEXTS))


def test_a_text_in_two_units_counts_once(stored: Workspace) -> None:
    ledger = VectorCache(stored, IDENTITY)
    fill(ledger, TEXTS[:20], unit=20)
    fill(ledger, TEXTS[10:30], unit=20)
    index = ledger.index()
    assert len(index.digests) == 30
    found = ledger.vectors(index, digest_texts(TEXTS[:30]))
    np.testing.assert_array_equal(found, vectors_of(TEXTS[:30]))


def test_two_encoders_never_share_vectors(stored: Workspace) -> None:
    fill(VectorCache(stored, IDENTITY), TEXTS)
    other = EncoderIdentity("sentence_transformers", "m", "2", None, "float32")
    assert not len(VectorCache(stored, other).index().digests)


def test_what_a_killed_writer_left_is_never_read(workspace: Workspace) -> None:
    ledger = VectorCache(workspace, IDENTITY)
    fill(ledger, TEXTS[:16])
    folder = Path(workspace.root, "encode/ledger", IDENTITY.digest)
    (folder / "unit-00.parquet.1234.tmp").write_bytes(b"PAR1 half")
    assert len(ledger.index().digests) == 16


@pytest.mark.parametrize("damage", [b"", b"PAR1 no more", None])
def test_a_damaged_file_says_what_to_do(workspace: Workspace, damage: bytes | None) -> None:
    ledger = VectorCache(workspace, IDENTITY)
    fill(ledger, TEXTS[:16])
    (path,) = Path(workspace.root, "encode/ledger", IDENTITY.digest).iterdir()
    if damage is None:  # another file altogether
        pq.write_table(pq.read_table(path).drop_columns(["text_hash"]), path)
    else:
        path.write_bytes(damage)
    with pytest.raises(DataError, match=rf"{path}.*Delete it and run again"):
        ledger.index()


def test_vectors_of_another_length_are_damage(stored: Workspace) -> None:
    ledger = VectorCache(stored, IDENTITY)
    ledger.append(digest_texts(TEXTS[:2]), vectors_of(TEXTS[:2]))
    ledger.append(digest_texts(TEXTS[2:4]), vectors_of(TEXTS[2:4], dimension=5))
    with pytest.raises(DataError, match="dimensions"):
        ledger.vectors(ledger.index(), digest_texts(TEXTS[:4]))


def test_a_missing_vector_is_an_error(stored: Workspace) -> None:
    ledger = VectorCache(stored, IDENTITY)
    fill(ledger, TEXTS[:16])
    with pytest.raises(DataError, match="lacks the vectors of 1 texts"):
        ledger.vectors(ledger.index(), digest_texts(TEXTS[:17]))


def test_a_full_disk_is_an_engine_error(workspace: Workspace) -> None:
    Path(workspace.root).mkdir()
    Path(workspace.root, "encode").write_text("a file where the folder should be")
    with pytest.raises(EngineError, match="the vector cache cannot be written"):
        VectorCache(workspace, IDENTITY).append(digest_texts(["text 1"]), vectors_of(["text 1"]))


def test_replacing_the_tables_of_encode_keeps_the_ledger(stored: Workspace) -> None:
    ledger = VectorCache(stored, IDENTITY)
    fill(ledger, TEXTS)
    for value in (1.0, 2.0):
        with stored.replacing("encode", list(REPRESENTATIONS.values())) as scratch:
            for table in REPRESENTATIONS.values():
                scratch.write_table(table, vectors_table(["a"], np.array([[value]]), ["cluster"]))
    rows = stored.read_table(REPRESENTATIONS["users"])
    assert rows["vector"].to_pylist() == [[2.0]]
    assert len(ledger.index().digests) == len(TEXTS)


def test_tables_say_which_encoder_they_are_from(stored: Workspace) -> None:
    rows = vectors_table(["a"], np.array([[1.0]]), ["cluster"], {"model": "m", "revision": "1"})
    assert rows.schema.metadata[b"reki.encoder.model"] == b"m"
    stored.write_table(REPRESENTATIONS["users"], rows)
    kept = stored.read_table(REPRESENTATIONS["users"])
    assert encoder_of(kept) == {"model": "m", "revision": "1"}
    assert encoder_of(vectors_table(["a"], np.array([[1.0]]), ["cluster"])) == {}


# --- identity ------------------------------------------------------------------------------------


def digest(**keys: Any) -> str:
    return identify(EncodeConfig.model_validate({"model": "hub/model", **keys})).digest


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "hidden_states"},
        {"model": "hub/other"},
        {"revision": "0123abc"},
        {"window": 128},
        {"dtype": "bfloat16"},
        {"backend": "vllm", "engine_kwargs": {"pooler_config": {"pooling_type": "MEAN"}}},
    ],
)
def test_what_changes_vectors_is_another_encoder(change: dict[str, Any]) -> None:
    assert digest(**change) != digest()
    assert digest(**change) != digest(backend="vllm")


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 1},
        {"unit_rows": 7},
        {"min_replicas": 2, "max_replicas": 9},
        {"restarts": 0},
        {"device": "cuda"},
    ],
)
def test_what_changes_only_speed_is_the_same_encoder(change: dict[str, Any]) -> None:
    assert digest(**change) == digest()


def test_parallelism_of_vllm_is_no_part_of_the_identity() -> None:
    fast = {"tensor_parallel_size": 4, "max_num_seqs": 512}
    assert digest(backend="vllm", engine_kwargs=fast) == digest(backend="vllm")


def test_another_model_in_the_same_folder_is_another_encoder(tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"1" * 3_000_000)
    (weights.parent / "config.json").write_text(json.dumps({"hidden_size": 2}))
    config = EncodeConfig(model=str(weights.parent))
    first = identify(config)
    assert first.revision.startswith("content-")
    assert identify(config) == first
    weights.touch()  # only its time of change is another
    assert identify(config) == first
    weights.write_bytes(b"1" * 2_999_999 + b"2")
    assert identify(config).digest != first.digest


@pytest.mark.parametrize("model", ["/nowhere/model", "./nowhere"])
def test_a_missing_folder_is_no_name_on_the_model_hub(model: str) -> None:
    with pytest.raises(EngineError, match=rf"{model}.*packaged:all-minilm-l6-v2"):
        identify(EncodeConfig(model=model))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"min_replicas": 2}, "max_replicas is below"),
        ({"engine_kwargs": {"max_num_seqs": 1}}, "needs encode.backend vllm"),
        ({"backend": "vllm", "engine_kwargs": {"dtype": "float16"}}, "set encode.model"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        EncodeConfig.model_validate(keys)


# --- encode_texts --------------------------------------------------------------------------------


def test_encode_texts_needs_neither_a_run_nor_a_cache() -> None:
    vectors = encode_texts(["a space opera", "a space western", "a family drama"])
    assert vectors.shape == (3, 2048)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert encode_texts([], HASHING).shape == (0, 64)
    with pytest.raises(DataError, match="text 1 of 2"):
        encode_texts(pa.array(["fine", None]))
    with pytest.raises(ValidationError, match="backend"):
        encode_texts(["fine"], "nothing")


def test_encode_texts_encodes_only_what_the_cache_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = HashingEncoder.encode

    def spy(encoder: HashingEncoder, texts: Sequence[str]) -> np.ndarray:
        encoded.extend(texts)
        return encode(encoder, texts)

    monkeypatch.setattr(HashingEncoder, "encode", spy)
    texts = [f"text {number % 7}" for number in range(20)]
    first = encode_texts(texts, HASHING, cache=tmp_path)
    assert sorted(encoded) == sorted(set(texts))
    assert len(list((tmp_path / "encode/ledger").glob("*/*.parquet"))) == 4  # 2 texts per unit
    encoded.clear()
    second = encode_texts(pa.array([*texts, "new"]), HASHING, cache=tmp_path)
    assert encoded == ["new"]
    np.testing.assert_array_equal(second[:20], first)
    np.testing.assert_array_equal(first, encode_texts(texts, HASHING))
