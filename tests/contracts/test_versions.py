"""Versions in a folder and on an S3 server: the same store, whatever is below it."""

from __future__ import annotations

import os
import stat
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import s3fs

from reki_ray.core.storage import Storage
from reki_ray.errors import StoreError
from reki_ray.schema import USER_ID
from reki_ray.store import admin, remote
from reki_ray.store.deltas import Delta
from reki_ray.store.manifest import MANIFEST, PROFILES_FILE, DamagedError, Description
from reki_ray.store.promotions import CURRENT, NotCurrentError
from reki_ray.store.tables import profiles_table
from reki_ray.store.version import StoreVersion
from reki_ray.store.versions import VersionStore
from tests.support import store_factory
from tests.support.s3_server import BUCKET, Fault, FaultProxy


@pytest.fixture
def few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute less for each error that does not pass."""
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache of this node."""
    monkeypatch.setenv("REKI_CACHE", str(tmp_path / "node"))
    return tmp_path / "node"


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, node: Path) -> str:
    """Root of a new store on each kind of storage."""
    if request.param == "s3":
        request.getfixturevalue("proxy")
        return f"s3://{BUCKET}/{uuid.uuid4().hex}/publish"
    return str(tmp_path / "publish")


@pytest.fixture
def s3_root(proxy: FaultProxy, node: Path) -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/publish"


def other_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From here on this process is on a node without any copy."""
    monkeypatch.setenv("REKI_CACHE", str(tmp_path / uuid.uuid4().hex))


def vectors(store: VersionStore, *values: float, promote: bool = True) -> int:
    ids = [f"m{place}" for place in range(len(values))]
    return store.publish_vectors(
        items=(ids, np.array(values, np.float32)[:, None]), promote=promote
    )


def value(opened: StoreVersion) -> float:
    assert opened.items is not None
    return float(opened.items.lookup(["m0"])[0][0, 0])


def delta(store: VersionStore, *users: str) -> Delta:
    """New users."""
    served = store.open().manifest
    table = store_factory.USERS_TABLE.slice(0, 1)
    rows = [table.set_column(0, USER_ID, [[user]]).cast(table.schema) for user in users]
    profiles = profiles_table(
        pa.concat_tables(rows), store_factory.INTERACTIONS_TABLE.slice(0, 0), 5
    )
    return Delta(
        served.model_fingerprint, served.dimension, served.dtype, served.prestore, profiles=profiles
    )


# --- everywhere ------------------------------------------------------------------------------
def test_a_version_is_published_and_opened(
    root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = VersionStore(root)
    assert store.versions() == []
    with pytest.raises(StoreError, match="nothing is published"):
        store.current()
    assert vectors(store, 1.0) == 1
    assert vectors(store, 2.0, promote=False) == 2
    other_node(monkeypatch, tmp_path)
    reader = VersionStore(root)
    assert (reader.versions(), reader.current()) == ([1, 2], 1)
    assert [value(reader.open_served(number)) for number in (None, 2)] == [1.0, 2.0]
    listed = admin.versions(reader)
    assert listed.root == root
    assert [(entry.version, entry.current, entry.problem) for entry in listed.versions] == [
        (1, True, ""),
        (2, False, ""),
    ]
    with pytest.raises(StoreError, match="there is no such version"):
        reader.open(3)


def test_a_version_with_a_model_scores(
    root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    VersionStore(root).publish(store_factory.fill)
    other_node(monkeypatch, tmp_path)
    opened = VersionStore(root).open_served()
    assert opened.load_scorer() is not None
    for path in opened.folder.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_promotions_lead_back(root: str) -> None:
    store = VersionStore(root)
    for number in (1.0, 2.0, 3.0):
        vectors(store, number)
    store.promote(1)
    assert store.rollback() == 3
    assert store.rollback() == 2
    assert VersionStore(root).current() == 2
    moves = [(move.version, move.rollback) for move in store.history()]
    assert moves == [(1, False), (2, False), (3, False), (1, False), (3, True), (2, True)]


def test_the_expected_version_must_be_current(root: str) -> None:
    store = VersionStore(root)
    vectors(store, 1.0)
    vectors(store, 2.0)
    for refused in (lambda: store.promote(1, expected=1), lambda: store.rollback(expected=1)):
        with pytest.raises(NotCurrentError, match="version 2 is current, not 1"):
            refused()
    assert store.current() == 2
    store.promote(1, expected=2)
    assert store.current() == 1


def test_deltas_are_fetched_with_what_they_lie_over_and_compacted(
    root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = VersionStore(root)
    store.publish(store_factory.fill)
    assert store.upsert(delta(store, "new")) == 2
    other_node(monkeypatch, tmp_path)
    store = VersionStore(root)
    assert [manifest.version for manifest in store.manifests(2)] == [2, 1]
    opened = store.open_served()
    assert len(opened.layers) == 2
    assert opened.profile("new") is not None
    assert opened.profile("u0") is not None
    assert store.compact() == 3
    other_node(monkeypatch, tmp_path)
    opened = VersionStore(root).open_served()
    assert (opened.name, len(opened.layers)) == ("v3", 1)
    assert opened.profile("new") is not None


def test_two_publishers_get_numbers_of_their_own(root: str) -> None:
    vectors(VersionStore(root), 0.0)
    with ThreadPoolExecutor(4) as pool:
        numbers = list(
            pool.map(lambda number: vectors(VersionStore(root), float(number)), range(8))
        )
    assert sorted(numbers) == list(range(2, 10))
    store = VersionStore(root)
    assert store.versions() == list(range(1, 10))
    assert [value(store.open(number)) for number in numbers] == list(range(8))
    moves = [move.version for move in store.history()]
    assert sorted(moves) == list(range(1, 10))
    assert store.current() == moves[-1]


def test_of_two_promoters_one_wins(root: str) -> None:
    store = VersionStore(root)
    for number in (1.0, 2.0, 3.0):
        vectors(store, number)

    def promote(number: int) -> bool:
        try:
            VersionStore(root).promote(number, expected=3)
        except NotCurrentError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(promote, (1, 2)))
    assert sorted(won) == [False, True]
    assert store.current() == (1 if won[0] else 2)
    assert len(store.history()) == 4


def test_two_writers_of_deltas_lose_nothing(root: str) -> None:
    store = VersionStore(root)
    store.publish(store_factory.fill)
    deltas = [delta(store, f"new{place}") for place in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda each: VersionStore(root).upsert(each), deltas))
    opened = store.open_served()
    assert all(opened.profile(f"new{place}") is not None for place in range(3))


def test_a_publication_that_fails_changes_nothing(root: str) -> None:
    store = VersionStore(root)
    vectors(store, 1.0)

    def failing(folder: Path) -> Description:
        store_factory.fill(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="cannot be built: No space left"):
        store.publish(failing)
    assert (store.versions(), store.current()) == ([1], 1)


def test_a_damaged_version_is_not_promoted(root: str) -> None:
    store = VersionStore(root)
    vectors(store, 1.0)
    vectors(store, 2.0)
    storage = Storage(root)
    if storage.is_local:
        Path(root, "v1", PROFILES_FILE).chmod(0o600)
    storage.write(f"v1/{PROFILES_FILE}", b"damaged")
    with pytest.raises(DamagedError, match="the file is damaged"):
        store.promote(1)
    assert store.current() == 2


# --- on a storage that every node sees -------------------------------------------------------
def test_a_node_fetches_a_version_once(
    s3_root: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vectors(VersionStore(s3_root), 1.0)
    other_node(monkeypatch, tmp_path)
    proxy.requests.clear()
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: VersionStore(s3_root).open_served(), range(4)))
    assert {value(version) for version in opened} == {1.0}
    gets = [path for method, path, _ in proxy.requests if method == "GET" and ".arrow" in path]
    assert len(gets) == len(set(gets))


def test_a_damaged_copy_is_fetched_again(s3_root: str) -> None:
    store = VersionStore(s3_root)
    vectors(store, 1.0)
    copy = store.open().folder / PROFILES_FILE
    copy.chmod(0o600)
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1] + b"?")
    assert value(store.open_served()) == 1.0
    assert copy.read_bytes() == whole
    (copy.parent / MANIFEST).unlink()  # half of a copy
    assert value(store.open_served()) == 1.0


def test_a_damaged_object_is_refused_and_not_kept(
    s3_root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vectors(VersionStore(s3_root), 1.0)
    other_node(monkeypatch, tmp_path)
    Storage(s3_root).write(f"v1/{PROFILES_FILE}", b"damaged")
    store = VersionStore(s3_root)
    with pytest.raises(DamagedError, match=rf"{s3_root}/v1/{PROFILES_FILE}"):
        store.open_served()
    assert not store.folder(1).exists()


def test_old_copies_are_removed(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "KEPT_COPIES", 2)
    store = VersionStore(s3_root)
    for number in range(4):
        vectors(store, float(number))
        os.utime(store.folder(number + 1), (number, number))
    assert sorted(path.name for path in store.root.glob("v*")) == ["v3", "v4"]
    assert value(store.open(1)) == 0.0


def test_a_promotion_whose_writer_died_before_the_pointer_counts(s3_root: str) -> None:
    store = VersionStore(s3_root)
    vectors(store, 1.0)
    storage = Storage(s3_root)
    before = storage.read_bytes(CURRENT)
    vectors(store, 2.0)
    storage.write(CURRENT, before)  # as if the writer had died between the two
    assert VersionStore(s3_root).current() == 2
    vectors(store, 3.0)
    assert VersionStore(s3_root).current() == 3
    for damaged in (b"", b"4\n"):
        storage.write(CURRENT, damaged)
        assert VersionStore(s3_root).current() == 3
    storage.remove(CURRENT)
    assert VersionStore(s3_root).current() == 3
    assert store.rollback() == 2


def test_a_copy_of_an_earlier_store_at_the_same_url_is_not_served(
    s3_root: str, node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors(VersionStore(s3_root), 1.0)
    Storage(s3_root).remove("")
    other_node(monkeypatch, tmp_path)
    vectors(VersionStore(s3_root), 2.0)
    monkeypatch.setenv("REKI_CACHE", str(node))
    assert value(VersionStore(s3_root).open()) == 2.0
    Storage(s3_root).remove("")
    vectors(VersionStore(s3_root), 3.0)
    assert value(VersionStore(s3_root).open()) == 3.0


def test_a_publisher_that_dies_before_the_manifest_leaves_no_version(
    s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = VersionStore(s3_root)
    vectors(store, 1.0)

    class Killed(BaseException):
        pass

    def kill(storage: Storage, relative: str, content: bytes) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", kill)
        with pytest.raises(Killed):
            vectors(store, 2.0)
    assert Storage(s3_root).exists("v2")
    assert (store.versions(), store.current()) == ([1], 1)
    assert vectors(store, 3.0) == 3
    monkeypatch.setattr(remote, "_ABANDONED_SECONDS", 0.0)
    vectors(store, 4.0)
    assert not Storage(s3_root).exists("v2")


@pytest.mark.parametrize("fault", ["slow", "503", "torn", "cut"])
def test_a_passing_fault_costs_time_alone(
    s3_root: str,
    proxy: FaultProxy,
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    store = VersionStore(s3_root)
    vectors(store, 1.0)
    for path in ("/publish/v", "/publish/numbers", "/publish/promotions", CURRENT):
        proxy.fail(1, fault, path=path)
        number = vectors(store, 2.0)
        assert store.current() == number
    assert len(store.history()) == 5
    other_node(monkeypatch, tmp_path)
    proxy.fail(2, "503" if fault == "torn" else fault, method="GET", path="/publish/v")
    assert value(VersionStore(s3_root).open_served()) == 2.0


@pytest.mark.usefixtures("few_retries")
@pytest.mark.parametrize("fault", ["503", "torn", "cut"])
@pytest.mark.parametrize("path", ["/publish/v", "/publish/numbers"])
def test_a_lasting_fault_leaves_what_is_served(
    s3_root: str, proxy: FaultProxy, fault: Fault, path: str
) -> None:
    store = VersionStore(s3_root)
    vectors(store, 1.0)
    proxy.fail(10_000, fault, path=path)
    with pytest.raises(StoreError):
        vectors(store, 2.0)
    proxy.fail(0, "none")
    assert store.current() == 1
    assert value(store.open_served()) == 1.0
    number = vectors(store, 3.0)
    assert value(store.open_served(number)) == 3.0


def test_a_rollback_by_another_process_leads_back_to_a_model(s3_root: str) -> None:
    store = VersionStore(s3_root)
    store.publish(partial(store_factory.fill, seed=1))
    vectors(store, 1.0)
    done = admin.rollback(VersionStore(s3_root), expected=2)
    assert (done.current, done.done) == (1, "back to version v1")
