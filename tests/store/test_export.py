"""Arrow, LMDB and Redis hold the same vectors; a server that fails says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import lmdb
import numpy as np
import pytest
import redis
from hypothesis import example, given
from hypothesis import settings as settings_hypothesis
from hypothesis import strategies as st

from reki_ray.config import AdapterSettings
from reki_ray.errors import ConfigError, StoreError
from reki_ray.models.candidate_scorer import UserInput
from reki_ray.store.kv import (
    Meta,
    ServedVectors,
    VectorsLostError,
    export_side,
    key_of,
    meta_key,
    open_vectors,
    prefix_of,
)
from reki_ray.store.vectors import SOURCES, VectorTable, write_vectors
from reki_ray.store.version import export_vectors
from reki_ray.store.versions import VersionStore
from tests.contracts.store_contract import CONTRACT, FALLBACK, ArrowShelf, ServedShelf, Shelf
from tests.support import store_factory
from tests.support.redis_server import RedisServer, redis_server
from tests.support.store_factory import ITEM_IDS, USER_IDS

Served = Literal["lmdb", "redis"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def settings_of(
    server: RedisServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[[str], AdapterSettings]:
    namespace = f"t{abs(hash(request.node.name))}"

    def make(kind: str) -> AdapterSettings:
        if kind == "lmdb":
            return AdapterSettings(kind="lmdb", url=str(tmp_path / "lmdb"), namespace=namespace)
        return AdapterSettings(
            kind="redis", url=server.url, namespace=namespace, timeout_seconds=20.0
        )

    return make


SettingsOf = Callable[[str], AdapterSettings]


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("kind", ["arrow", "lmdb", "redis"])
def test_contract(kind: str, promise: Callable[[Shelf], None], settings_of: SettingsOf) -> None:
    promise(ArrowShelf() if kind == "arrow" else ServedShelf(settings_of(kind)))


@pytest.fixture
def table(tmp_path: Path) -> VectorTable:
    write_vectors(tmp_path / "v", ["a"], FALLBACK[None], ["cluster"])
    return VectorTable([tmp_path / "v"], FALLBACK)


@pytest.mark.parametrize("kind", ["lmdb", "redis"])
def test_a_version_looks_up_where_it_was_exported_to(
    tmp_path: Path, kind: str, settings_of: SettingsOf
) -> None:
    store = VersionStore(tmp_path / "publish")
    store.publish(store_factory.fill)
    settings = settings_of(kind)
    own = store.open()
    assert (
        export_vectors(own, settings)
        == export_vectors(own, settings)
        == len(USER_IDS) + len(ITEM_IDS)
    )
    served = store.open(vectors=settings)
    for mine, theirs, ids in (
        (own.users, served.users, USER_IDS),
        (own.items, served.items, ITEM_IDS),
    ):
        assert mine is not None
        assert theirs is not None
        asked = [*ids, "nobody"]
        np.testing.assert_array_equal(mine.lookup(asked)[0], theirs.lookup(asked)[0])
        assert mine.sources(asked) == theirs.sources(asked)
    user = UserInput(None, [], own.users.fallback if own.users else None)
    np.testing.assert_array_equal(
        own.load_scorer().score(user, ITEM_IDS), served.load_scorer().score(user, ITEM_IDS)
    )
    served.close()
    assert served.users is not None
    with pytest.raises(StoreError, match="closed") as caught:
        served.users.lookup(["u0"])
    assert caught.value.todo
    assert served.users.lookup([])[1] == []


@pytest.mark.parametrize("kind", ["lmdb", "redis"])
def test_what_was_not_exported_is_refused(
    kind: str, settings_of: SettingsOf, table: VectorTable, tmp_path: Path
) -> None:
    settings = settings_of(kind)
    with pytest.raises(StoreError, match="export") as caught:
        open_vectors(settings, 7, "users", table, "manifest")
    assert "Export" in caught.value.todo
    export_side(settings, 7, "users", table, "manifest")
    with pytest.raises(StoreError, match="another store's"):
        open_vectors(settings, 7, "users", table, "another manifest")
    write_vectors(tmp_path / "shorter", ["a"], FALLBACK[None, :2], ["cluster"])
    shorter = VectorTable([tmp_path / "shorter"], FALLBACK[:2])
    with pytest.raises(StoreError, match="length 3"):
        open_vectors(settings, 7, "users", shorter, "manifest")


@pytest.mark.parametrize("kind", ["lmdb", "redis"])
def test_another_store_is_not_overwritten(
    kind: str, settings_of: SettingsOf, table: VectorTable
) -> None:
    settings = settings_of(kind)
    export_side(settings, 1, "users", table, "manifest")
    with pytest.raises(StoreError, match="another store's"):
        export_side(settings, 1, "users", table, "another manifest")
    found = open_vectors(settings, 1, "users", table, "manifest")
    assert found.sources(["a"]) == ["cluster"]


def test_an_unfinished_export_is_refused_and_can_be_repeated(
    settings_of: SettingsOf, table: VectorTable
) -> None:
    settings = settings_of("redis")
    export_side(settings, 1, "users", table, "manifest")
    prefix = prefix_of(settings.namespace, 1, "users")
    with redis.Redis.from_url(settings.url) as client:
        client.delete(meta_key(prefix))
        with pytest.raises(StoreError, match="no complete export"):
            open_vectors(settings, 1, "users", table, "manifest")
        export_side(settings, 1, "users", table, "manifest")
        client.set(prefix + b"=a", b"short")
    held = open_vectors(settings, 1, "users", table, "manifest")
    with pytest.raises(StoreError, match="not a vector of length 3"):
        held.lookup(["a"])


def test_an_export_to_lmdb_that_fails_leaves_nothing(
    tmp_path: Path, settings_of: SettingsOf, table: VectorTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(StoreError, match="export cannot be written: killed"):
            export_side(settings_of("lmdb"), 1, "users", table, "manifest")
    assert list((tmp_path / "lmdb").iterdir()) == []


def test_a_server_that_dies_and_one_that_never_was_say_what_to_do(
    tmp_path: Path, table: VectorTable
) -> None:
    with redis_server(tmp_path) as running:
        settings = AdapterSettings(kind="redis", url=running.url, timeout_seconds=5.0)
        export_side(settings, 1, "users", table, "manifest")
        held = open_vectors(settings, 1, "users", table, "manifest")
        assert held.sources(["a"]) == ["cluster"]
        running.process.kill()
        running.process.wait()
        calls: tuple[Callable[[], object], ...] = (
            partial(held.lookup, ["a"]),
            partial(held.sources, ["a"]),
            partial(open_vectors, settings, 1, "users", table, "manifest"),
            partial(export_side, settings, 1, "users", table, "manifest"),
        )
        for call in calls:
            with pytest.raises(StoreError, match="does not answer") as caught:
                call()
            assert "Start the server" in caught.value.todo


def test_a_wrong_address_and_a_missing_package_are_mistakes_of_configuration(
    table: VectorTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="none of a server"):
        AdapterSettings(kind="redis", url="no url")
    settings = AdapterSettings(kind="redis", url="redis://host/?no_field=1")
    with pytest.raises(ConfigError, match="not a URL"):
        export_side(settings, 1, "users", table, "manifest")
    with pytest.raises(ValueError, match="needs url"):
        AdapterSettings(kind="redis")
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r"vectors.kind needs redis, which is not installed"):
        open_vectors(settings, 1, "users", table, "manifest")


class Change:
    """Changes one stored key of an export, as a bad disk or another client would."""

    def __init__(self, settings: AdapterSettings, change: Callable[[bytes], bytes | None]) -> None:
        self.settings = settings
        self.change = change

    def __call__(self, key: bytes) -> None:
        if self.settings.kind == "redis":
            with redis.Redis.from_url(self.settings.url) as client:
                self._put(key, cast(bytes, client.get(key)), client.set, client.delete)
            return
        folder = Path(self.settings.url) / f"{self.settings.namespace}-v1-users"
        # In a process of its own: LMDB opens a folder once a process.
        script = (
            "import lmdb, sys\n"
            "with lmdb.open(sys.argv[1], lock=False) as e, e.begin(write=True) as t:\n"
            "    key, value = bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])\n"
            "    t.put(key, value) if value else t.delete(key)\n"
        )
        with (
            lmdb.open(str(folder), readonly=True, lock=False) as there,
            there.begin() as transaction,
        ):
            value = self.change(cast(bytes, transaction.get(key)))
        arguments = [str(folder), key.hex(), (value or b"").hex()]
        subprocess.run([sys.executable, "-c", script, *arguments], check=True)

    def _put(self, key: bytes, value: bytes, put: Any, delete: Any) -> None:
        changed = self.change(value)
        if changed is None:
            delete(key)
        else:
            put(key, changed)


def gone(_: bytes) -> None:
    return None


@pytest.mark.parametrize(
    "change", [gone, lambda value: value[:-1], lambda value: b"\xff" + value[1:]]
)
@pytest.mark.parametrize("key", [b"=a", b"@meta"])
@pytest.mark.parametrize("kind", ["lmdb", "redis"])
def test_an_export_mends_whatever_was_lost_or_damaged(
    kind: str,
    key: bytes,
    change: Callable[[bytes], bytes | None],
    settings_of: SettingsOf,
    table: VectorTable,
) -> None:
    settings = settings_of(kind)
    export_side(settings, 1, "users", table, "manifest")
    expected = table.lookup(["a"])
    Change(settings, change)(prefix_of(settings.namespace, 1, "users") + key)
    with pytest.raises(StoreError):
        open_vectors(settings, 1, "users", table, "manifest").lookup(["a"])
    export_side(settings, 1, "users", table, "manifest")
    mended = open_vectors(settings, 1, "users", table, "manifest").lookup(["a"])
    np.testing.assert_array_equal(mended[0], expected[0])
    assert mended[1] == expected[1]


@pytest.mark.parametrize("is_read", [True, False])
@pytest.mark.parametrize("content", [b"", b"no database", bytes(8192)])
def test_an_export_to_lmdb_that_does_not_open_is_written_again_beside_its_readers(
    content: bytes, is_read: bool, settings_of: SettingsOf, table: VectorTable
) -> None:
    settings = settings_of("lmdb")
    export_side(settings, 1, "users", table, "manifest")
    reader = table if not is_read else open_vectors(settings, 1, "users", table, "manifest")
    folder = Path(settings.url) / f"{settings.namespace}-v1-users"
    (folder / "data.mdb").unlink()  # the reader has the old one mapped
    (folder / "data.mdb").write_bytes(content)
    export_side(settings, 1, "users", table, "manifest")
    assert reader.sources(["a"]) == ["cluster"]
    again = open_vectors(settings, 1, "users", table, "manifest")
    assert again.sources(["a"]) == ["cluster"]
    assert [path.name for path in Path(settings.url).iterdir()] == [folder.name]


def test_another_user_may_read_an_export_to_lmdb(
    settings_of: SettingsOf, table: VectorTable
) -> None:
    settings, before = settings_of("lmdb"), os.umask(0o077)
    try:
        export_side(settings, 1, "users", table, "manifest")
    finally:
        os.umask(before)
    folder = Path(settings.url) / f"{settings.namespace}-v1-users"
    assert folder.stat().st_mode & 0o755 == 0o755
    assert (folder / "data.mdb").stat().st_mode & 0o444 == 0o444


class Held(ServedVectors):
    """A server that answers whatever it holds."""

    def __init__(self, values: Mapping[bytes, bytes]) -> None:
        self.held = values
        with tempfile.TemporaryDirectory() as folder:
            write_vectors(Path(folder) / "v", [], FALLBACK[None, :][:0], [])
            table = VectorTable([Path(folder) / "v"], FALLBACK)
        super().__init__(AdapterSettings(), PREFIX, table, "manifest")

    def connect(self, _: AdapterSettings) -> str:
        return "server"

    @staticmethod
    def export_side(*_: object) -> None:
        raise NotImplementedError

    def fetch(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.held.get(key) for key in keys]

    def close(self) -> None:
        pass


PREFIX = prefix_of("reki", 1, "users")
META = Meta(rows=1, dimension=len(FALLBACK), dtype="float32", manifest="manifest")


@settings_hypothesis(max_examples=200, deadline=None)
@given(st.binary(max_size=2 + 4 * len(FALLBACK)))
@example(b"\xfa" + np.array([1, 0, 2], "<f4").tobytes())
@example(b"\0" + np.array([1, 0, 2], "<f4").tobytes())
def test_any_value_is_a_vector_or_a_damage_that_is_told(value: bytes) -> None:
    held = Held({meta_key(PREFIX): META.model_dump_json().encode(), key_of(PREFIX, "a"): value})
    is_vector = len(value) == 1 + 4 * len(FALLBACK) and value[0] < len(SOURCES)
    for call in (held.lookup, held.sources):
        if is_vector:
            call(["a"])
        else:
            with pytest.raises(VectorsLostError, match="damaged"):
                call(["a"])
