"""The encoder pool on a real Ray with the real MiniLM: only what is new, and through deaths."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from reki_ray import schema
from reki_ray.config import RekiConfig
from reki_ray.core.content_store import digest_texts
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.encoding.encoders import build_encoder, identify
from reki_ray.encoding.vector_cache import VectorCache
from reki_ray.errors import ConfigError, DataError, EngineError
from reki_ray.stages.encode import EncodedSide, encode_source_texts

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

TITLES = [f"{'a very ' * (7 * i % 5)}long film about topic {i}" for i in range(23)]

Encode = Callable[..., EncodedSide]


def write_items(workspace: Workspace, titles: list[str], part: str = "part-00000") -> None:
    count = len(titles)
    columns = {
        schema.ITEM_ID: [f"{part}-{i}" for i in range(count)],
        schema.TITLE: titles,
        schema.ATTRIBUTES: pa.nulls(count, schema.ITEMS_SCHEMA.field(schema.ATTRIBUTES).type),
        schema.TEXT: pa.nulls(count, pa.string()),
        schema.IMAGE: pa.nulls(count, pa.string()),
    }
    workspace.write_table(schema.ITEMS, pa.table(columns), part=part)


@pytest.fixture
def made(tiny_config: Callable[..., RekiConfig]) -> Callable[..., RekiConfig]:
    def make(**encode: Any) -> RekiConfig:
        keys = {"batch_size": 4, "unit_rows": 4, **encode}
        return tiny_config(encode=keys, prompts={"max_title_chars": 4000})

    return make


@pytest.fixture
def encode(made: Callable[..., RekiConfig], workspace: Workspace, reporter: Reporter) -> Encode:
    def run(**keys: Any) -> EncodedSide:
        return encode_source_texts(made(**keys), workspace, "items", reporter, "test: encoding")

    return run


def ledger_files(workspace: Workspace) -> dict[str, tuple[int, int]]:
    """Files of the ledger, each with what changes when it is written again."""
    files = Path(workspace.root, "encode/ledger").glob("*/*.parquet")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def seed(workspace: Workspace, config: RekiConfig, titles: list[str]) -> np.ndarray:
    """A ledger with vectors that no encoder gives: they are seen only where they are read."""
    ledger = VectorCache(workspace, identify(config.encode))
    vectors = np.zeros((len(titles), 384), dtype=np.float32)
    ledger.append(digest_texts([f"{title}." for title in titles]), vectors)
    return vectors


@pytest.mark.slow
def test_only_what_is_new_is_encoded(
    encode: Encode,
    made: Callable[..., RekiConfig],
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_items(workspace, TITLES)
    write_items(workspace, TITLES[:3], part="part-00001")
    first = encode()
    assert "max_restarts" not in capfd.readouterr().err  # Ray warns of restarts, once a process
    # In the order of the table, and equal texts of two shards once.
    assert first.ids[:2] + first.ids[-1:] == ["part-00000-0", "part-00000-1", "part-00001-2"]
    direct = build_encoder(made().encode).encode([f"{title}." for title in TITLES])
    np.testing.assert_allclose(first.vectors[:23], direct, atol=1e-5)
    np.testing.assert_array_equal(first.vectors[23:], first.vectors[:3])
    assert first.encoder["model"] == "packaged:all-minilm-l6-v2"
    kept = ledger_files(workspace)
    assert len(kept) == 6  # 23 texts in units of 4
    # With other batches and units.
    write_items(workspace, [*TITLES, "a new one"])
    second = encode(batch_size=7, unit_rows=2)
    new = ledger_files(workspace)
    assert {name: new[name] for name in kept} == kept
    assert len(new) == 7
    np.testing.assert_array_equal(second.vectors[:23], first.vectors[:23])

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a pool was started")

    monkeypatch.setattr(ray.data.Dataset, "map_batches", fail)
    np.testing.assert_array_equal(encode().vectors, second.vectors)


def test_another_encoder_never_sees_the_vectors_of_this_one(
    encode: Encode, made: Callable[..., RekiConfig], workspace: Workspace
) -> None:
    write_items(workspace, TITLES[:8])
    old = seed(workspace, made(), TITLES[:8])
    hidden = encode(backend="hidden_states", model="packaged:smollm2-135m-instruct")
    assert hidden.vectors.shape == (8, 576)
    np.testing.assert_allclose(np.linalg.norm(hidden.vectors, axis=1), 1.0, atol=1e-5)
    assert (hidden.encoder["backend"], hidden.encoder["model"]) == (
        "hidden_states",
        "packaged:smollm2-135m-instruct",
    )
    np.testing.assert_array_equal(encode().vectors, old)


def test_a_run_after_a_killed_one_encodes_the_rest(
    encode: Encode, made: Callable[..., RekiConfig], workspace: Workspace
) -> None:
    write_items(workspace, TITLES)
    old = seed(workspace, made(), TITLES[:8])
    Path(workspace.root, ".scratch-texts").mkdir()
    Path(workspace.root, ".scratch-texts", "texts-000000.parquet").write_bytes(b"half")
    # The pool may grow beyond this cluster, and still leaves a CPU free for Ray Data.
    found = encode(max_replicas=8, unit_rows=1)
    np.testing.assert_array_equal(found.vectors[:8], old)
    np.testing.assert_allclose(np.linalg.norm(found.vectors[8:], axis=1), 1.0, atol=1e-5)
    assert not workspace.exists(".scratch-texts")


def test_a_damaged_ledger_is_told_before_an_encoder_starts(
    encode: Encode, made: Callable[..., RekiConfig], workspace: Workspace
) -> None:
    write_items(workspace, TITLES)
    seed(workspace, made(), TITLES)
    path = next(Path(workspace.root, "encode/ledger").glob("*/*.parquet"))
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=rf"{path}.*Delete it and run again"):
        encode()


def test_an_unknown_packaged_model_fails_before_anything_is_read(
    encode: Encode, workspace: Workspace
) -> None:
    with pytest.raises(ConfigError, match="no-such-model"):
        encode(model="packaged:no-such-model")
    assert not workspace.exists("encode")


def test_more_actors_than_cpus_are_refused_instead_of_hanging(
    encode: Encode, workspace: Workspace
) -> None:
    write_items(workspace, TITLES)
    too_many = int(ray.cluster_resources()["CPU"])
    with pytest.raises(EngineError, match=r"encode\.min_replicas"):
        encode(min_replicas=too_many, max_replicas=too_many)


# --- deaths --------------------------------------------------------------------------------------


def encoder_processes() -> set[int]:
    """Process ids of the actors of this test's own Ray."""
    parents: dict[int, int] = {}
    actors: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(status[1])
            if b"EncodingActor" in (folder / "cmdline").read_bytes():
                actors.add(int(folder.name))

    def own(process: int) -> bool:
        while process > 1 and process != os.getpid():
            process = parents.get(process, 0)
        return process == os.getpid()

    return {process for process in actors if own(process)}


@contextlib.contextmanager
def killing(
    when: Callable[[], bool], how: signal.Signals = signal.SIGKILL, *, once: bool
) -> Iterator[list[int]]:
    """Sends encoder actors a signal in the background as soon as `when` holds."""
    killed: list[int] = []
    over = threading.Event()

    def hunt() -> None:
        while not over.wait(0.02):
            if when():
                for process in encoder_processes():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, how)
                        killed.append(process)
                if once and killed:
                    return

    hunter = threading.Thread(target=hunt)
    hunter.start()
    try:
        yield killed
    finally:
        over.set()
        hunter.join()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_actor_loses_and_repeats_no_finished_unit(
    encode: Encode, workspace: Workspace, how: signal.Signals
) -> None:
    titles = [f"film {i} {'the camera follows the ship ' * 60}" for i in range(60)]
    write_items(workspace, titles)
    at_death: dict[str, tuple[int, int]] = {}

    def half_way() -> bool:
        files = ledger_files(workspace)
        if len(files) >= 3:
            at_death.update(files)
        return len(files) >= 3

    with killing(half_way, how, once=True) as killed:
        found = encode()
    assert killed
    assert 3 <= len(at_death) < 15  # it died in mid-work
    files = ledger_files(workspace)
    assert len(files) == 15
    assert {name: files[name] for name in at_death} == at_death
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1.0, atol=1e-5)
    assert len(found.ids) == 60


def test_actors_that_always_die_end_in_an_error_and_what_was_finished_stays(
    encode: Encode, made: Callable[..., RekiConfig], workspace: Workspace
) -> None:
    write_items(workspace, TITLES)
    seed(workspace, made(), TITLES[:8])
    kept = ledger_files(workspace)
    with (
        killing(lambda: True, once=False) as killed,
        pytest.raises(EngineError, match="encoder actors failed 2 times"),
    ):
        encode(restarts=1)
    assert len(killed) >= 2
    assert ledger_files(workspace) == kept


def test_a_model_that_no_actor_can_load_is_an_engine_error_at_once(
    encode: Encode, workspace: Workspace, tmp_path: Path
) -> None:
    write_items(workspace, TITLES)
    seen: set[int] = set()

    def look() -> bool:
        seen.update(encoder_processes())
        return False

    with (
        killing(look, once=True),
        pytest.raises(EngineError, match=rf"cannot load the encoder.*{tmp_path}"),
    ):
        encode(model=str(tmp_path))
    assert len(seen) == 1  # no second actor tried the same
    assert not workspace.exists(".scratch-texts")
