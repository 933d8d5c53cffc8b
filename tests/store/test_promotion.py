"""Promotion moves the pointer to what was checked, and its history leads back."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from rich.console import Console

from reki_ray.cli.views.published import versions_table
from reki_ray.errors import StoreError
from reki_ray.models import artifact as bundles
from reki_ray.store import admin as commands
from reki_ray.store import promotions, versions
from reki_ray.store.deltas import Delta, write_compacted
from reki_ray.store.manifest import MANIFEST, MODEL_FOLDER, VERIFIED, Description, checksum
from reki_ray.store.promotions import CURRENT, HISTORY, Promotion
from reki_ray.store.vectors import write_vectors
from reki_ray.store.version import StoreVersion
from reki_ray.store.versions import VersionStore
from tests.support import store_factory


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    """Versions 1 and 2 were promoted, 3 was not."""
    store = VersionStore(tmp_path / "publish")
    store.publish(store_factory.fill)
    store.publish(partial(store_factory.fill, seed=1))
    assert store.publish(store_factory.fill, promote=False) == 3
    return store


def test_what_is_not_promoted_is_not_served(store: VersionStore) -> None:
    assert store.current() == 2
    assert [one.version for one in store.history()] == [1, 2]


def test_promotion_and_the_way_back(store: VersionStore) -> None:
    store.promote(3)
    assert store.current() == 3
    assert store.rollback() == store.current() == 2
    assert store.rollback() == store.current() == 1
    with pytest.raises(StoreError, match="no version was promoted before") as caught:
        store.rollback()
    assert "reki promote" in caught.value.todo
    store.promote(3)
    assert store.rollback() == 1
    lines = (store.root / HISTORY).read_text().splitlines()
    assert [json.loads(line)["version"] for line in lines] == [1, 2, 3, 2, 1, 3, 1]


def _flip(store: VersionStore) -> None:
    path = store_factory.writable(store.folder(3) / "users.arrow")
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def _rewrite(store: VersionStore, name: str) -> None:
    """Make a manifest agree with a changed file, as a faulty builder would."""
    path = store_factory.writable(store.folder(3) / MANIFEST)
    manifest = json.loads(path.read_text())
    manifest["files"][name] = checksum(store.folder(3) / name)
    path.write_text(json.dumps(manifest))


def _other_model(store: VersionStore) -> None:
    folder = store_factory.writable(store.folder(3) / MODEL_FOLDER)
    bundles.save(folder, store_factory.make_bundle(seed=7))
    for name in (bundles.WEIGHTS, bundles.DESCRIPTION):
        _rewrite(store, f"{MODEL_FOLDER}/{name}")


def _other_dimension(store: VersionStore) -> None:
    path = store_factory.writable(store.folder(3) / "items.arrow")
    write_vectors(path, ["m0"], np.zeros((1, 8 + 1), np.float32), ["cluster"])
    _rewrite(store, "items.arrow")


def _other_type(store: VersionStore) -> None:
    path = store_factory.writable(store.folder(3) / "items.arrow")
    write_vectors(path, ["m0"], np.zeros((1, 8), np.float32), ["cluster"], dtype="float16")
    _rewrite(store, "items.arrow")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (_flip, "damaged"),
        (_other_model, "belong to model"),
        (_other_dimension, "length 9"),
        (_other_type, "float16"),
        (lambda store: (store.folder(3) / "profiles.arrow").unlink(), "missing"),
        (lambda store: shutil.rmtree(store.folder(3)), "no such version"),
    ],
)
def test_what_is_wrong_is_not_promoted_and_the_old_version_stays(
    store: VersionStore, break_it: Callable[[VersionStore], None], message: str
) -> None:
    break_it(store)
    before = (store.root / HISTORY).read_bytes()
    with pytest.raises(StoreError, match=message) as caught:
        store.promote(3)
    assert caught.value.todo
    assert store.current() == 2
    assert (store.root / HISTORY).read_bytes() == before


def test_replicas_compare_no_checksums_of_what_a_promotion_has_compared(
    store: VersionStore, compared: list[str]
) -> None:
    store.open_served()
    assert compared == []  # published with a promotion
    store.open_served(3)
    assert compared == ["v3"]  # nobody has promoted it
    store.promote(3)
    assert compared == ["v3", "v3"]
    store.open_served(3)
    assert compared == ["v3", "v3"]


def test_a_copy_of_the_versions_is_compared_once_where_it_is(
    store: VersionStore, compared: list[str], tmp_path: Path
) -> None:
    copy = VersionStore(shutil.copytree(store.root, tmp_path / "other node"))
    for _ in range(3):
        assert copy.open_served().name == "v2"
    assert compared == ["v2"]
    path = copy.folder(2) / "users.arrow"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(StoreError, match="damaged"):
            copy.open_served()
    assert compared == ["v2"] * 3


def test_versions_that_cannot_be_written_to_are_served(
    store: VersionStore, compared: list[str]
) -> None:
    (store.root / VERIFIED).mkdir()
    assert [store.open_served(3).name for _ in range(2)] == ["v3", "v3"]
    assert compared == ["v3", "v3"]


def test_a_pointer_written_by_hand_spares_no_checksums(
    store: VersionStore, compared: list[str]
) -> None:
    _flip(store)
    (store.root / CURRENT).write_text("3\n")
    with pytest.raises(StoreError, match="damaged"):
        store.open_served()
    assert compared == ["v3"]


@pytest.mark.parametrize("break_it", [_flip, _other_model, _other_dimension])
def test_what_was_written_to_after_its_promotion_is_refused_by_replicas(
    store: VersionStore, break_it: Callable[[VersionStore], None]
) -> None:
    store.promote(3)
    store.open_served(3)
    break_it(store)
    with pytest.raises(StoreError):
        store.open_served(3).load_model()


def test_a_damaged_history_costs_checksums_and_no_version(
    store: VersionStore, compared: list[str]
) -> None:
    path = store.root / HISTORY
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    assert store.open_served(2).name == "v2"
    assert compared == ["v2"]


def test_a_delta_over_what_nobody_has_compared_is_compared(
    store: VersionStore, compared: list[str]
) -> None:
    manifest = store.open(3, verify=False).manifest
    fitting = {
        name: getattr(manifest, name)
        for name in ("model_fingerprint", "dimension", "dtype", "prestore")
    }
    store.upsert(Delta(**fitting), base=3)
    store.open_served()
    assert compared == ["v4", "v3"]
    store.upsert(Delta(**fitting), base=1)
    store.open_served()
    assert compared == ["v4", "v3"]


def test_a_way_back_to_a_damaged_version_is_refused(store: VersionStore) -> None:
    (store.folder(1) / "items.arrow").unlink()
    with pytest.raises(StoreError, match="missing"):
        store.rollback()
    assert store.current() == 2


@pytest.mark.parametrize("torn", [b'{"version": 3, "a', b'{"version":2,"at":5,"rollback":false}'])
def test_a_torn_last_line_harms_nothing(store: VersionStore, torn: bytes) -> None:
    with (store.root / HISTORY).open("ab") as file:
        file.write(torn)
    assert [one.version for one in store.history()][:2] == [1, 2]
    store.promote(3)
    assert [one.version for one in store.history()][-2:] == [2, 3]
    assert store.rollback() == 2


def test_a_damaged_line_in_the_middle_is_told(store: VersionStore) -> None:
    path = store.root / HISTORY
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    with pytest.raises(StoreError, match="line 1 is damaged"):
        store.rollback()
    assert store.current() == 2


def test_a_crash_before_the_history_still_leads_back(store: VersionStore) -> None:
    (store.root / CURRENT).write_text("3\n")
    assert store.rollback() == 2


def test_a_way_back_waits_for_no_version_that_is_being_built(store: VersionStore) -> None:
    building, go_on = threading.Event(), threading.Event()

    def slow(folder: Path) -> Description:
        building.set()
        go_on.wait(60)
        return store_factory.fill(folder)

    with ThreadPoolExecutor(1) as pool:
        published = pool.submit(store.publish, slow, promote=False)
        try:
            assert building.wait(20)
            assert store.rollback() == 1
            store.promote(2)
            assert not published.done()
        finally:
            go_on.set()
        assert published.result() == 4
    assert store.current() == 2


def test_who_cannot_get_the_pointer_is_told_in_time(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotions, "_POINTER_SECONDS", 0.01)
    held = FileLock(store.root / ".pointer.lock")
    with held, pytest.raises(StoreError, match="another process is moving the pointer"):
        store.rollback()
    assert store.current() == 2
    assert store.rollback() == 1


@pytest.mark.parametrize("expected", [1, 3])
def test_nothing_moves_where_another_version_is_expected(
    store: VersionStore, expected: int
) -> None:
    for move in (partial(store.promote, 3), store.rollback):
        with pytest.raises(StoreError, match=f"version 2 is current, not {expected}"):
            move(expected=expected)
    assert [one.version for one in store.history()] == [1, 2]
    assert store.rollback(expected=2) == 1
    store.promote(3, expected=1)
    assert store.current() == 3


def test_who_moves_the_pointer_meanwhile_has_the_last_word(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, compacting = VersionStore.open, write_compacted
    store.promote(3)

    def promoted_meanwhile(self: VersionStore, *args: Any, **more: Any) -> StoreVersion:
        found = opening(self, *args, **more)
        monkeypatch.setattr(VersionStore, "open", opening)
        store.promote(1)
        return found

    monkeypatch.setattr(VersionStore, "open", promoted_meanwhile)
    with pytest.raises(StoreError, match="version 1 is current, not 3"):
        store.rollback()
    assert store.current() == 1
    _empty_delta(store)

    def compacted(*args: Any) -> Description:
        store.promote(2)
        return compacting(*args)

    monkeypatch.setattr(versions, "write_compacted", compacted)
    with pytest.raises(
        StoreError, match="5 is built, but not promoted: version 2 is current"
    ) as told:
        store.compact()
    assert "reki promote 5" in told.value.todo
    assert store.current() == 2


def _empty_delta(store: VersionStore) -> None:
    manifest = store.open(verify=False).manifest
    names = ("model_fingerprint", "dimension", "dtype", "prestore")
    store.upsert(Delta(**{name: getattr(manifest, name) for name in names}))


@pytest.mark.parametrize("back", [False, True])
def test_a_full_disk_moves_nothing_and_says_so(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = [one.version for one in store.history()]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            StoreError, match="is not promoted, version 2 is still served: No space"
        ):
            store.rollback() if back else store.promote(3)
    assert store.current() == 2
    assert [one.version for one in store.history()] == before
    assert not list(store.root.glob(".tmp-*"))


@pytest.mark.parametrize("back", [False, True])
def test_what_was_not_noted_is_known_all_the_same(
    store: VersionStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    back: bool,
) -> None:
    rename = Path.replace

    def broken(self: Path, target: Path) -> Path:
        if target.name == HISTORY:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    store.promote(3)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", broken)
        moved = store.rollback() if back else store.publish(store_factory.fill)
    assert store.current() == moved
    assert "is served, but not noted as promoted: [Errno 5]" in caplog.text
    assert store.rollback() == (1 if back else 3)


def test_the_next_promotion_notes_what_was_not(store: VersionStore) -> None:
    (store.root / CURRENT).write_text("1\n")  # a way back that a kill kept out of the history
    store.promote(3)
    assert [one.version for one in store.history()] == [1, 2, 1, 3]
    assert store.rollback() == 1
    (store.root / CURRENT).write_text("2\n")
    store.promote(3)
    assert store.rollback() == 2


def test_what_is_published_cannot_be_written_to_but_removed(store: VersionStore) -> None:
    _empty_delta(store)
    numbers = [*store.versions(), store.compact()]
    for number in numbers:
        folder = store.folder(number)
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o444}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755
        store.open(number).load_model()
    shutil.rmtree(store.folder(3))
    assert 3 not in store.versions()


def test_ways_back_are_undone_and_not_counted() -> None:
    def told(*moves: int) -> list[Promotion]:
        return [Promotion(version=abs(m), at=0, rollback=m < 0) for m in moves]

    assert promotions.before(told(1, 2, 3), 3) == 2
    assert promotions.before(told(1, 2, 3, -2), 2) == 1
    assert promotions.before(told(1, 2, -1, 3), 3) == 1
    assert promotions.before(told(1, 2, 2), 2) == 1
    assert promotions.before(told(1), 1) is None
    assert promotions.before([], 4) is None


def test_a_number_is_never_used_twice(store: VersionStore) -> None:
    store.promote(3)
    shutil.rmtree(store.folder(3))
    assert store.publish(store_factory.fill) == 4


def test_the_commands_tell_of_every_version(store: VersionStore) -> None:
    found = commands.versions(store)
    assert (found.current, [one.version for one in found.versions]) == (2, [1, 2, 3])
    assert [one.promoted_at is None for one in found.versions] == [False, False, True]
    assert commands.promote(store, 3).current == 3
    assert commands.rollback(store).current == 2
    assert commands.compact(store).done == "version v2 is full already"
    (store.folder(1) / MANIFEST).unlink()
    shutil.rmtree(store.folder(2))
    found = commands.versions(store)
    text = _text(found)
    assert "v1" in text
    assert "does not open: there is no such version" in text
    assert "version 2 is current, but missing" in text


def test_an_empty_store_is_shown_as_one(tmp_path: Path) -> None:
    found = commands.versions(VersionStore(tmp_path))
    assert (found.current, found.versions) == (None, [])
    assert "nothing is published" in _text(found)


def _text(found: commands.Versions) -> str:
    console = Console(width=400)
    with console.capture() as capture:
        console.print(versions_table(found))
    return capture.get()


def unreadable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that does not give a file back, whoever asks."""
    read, opened = Path.read_bytes, Path.open

    def refuse(self: Path) -> None:
        if self == path:
            raise OSError(5, "Input/output error", str(path))

    def read_bytes(self: Path) -> bytes:
        refuse(self)
        return read(self)

    def open_file(self: Path, *args: Any, **kwargs: Any) -> Any:
        refuse(self)
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(Path, "open", open_file)


def folder_in_place_of(path: Path, _: pytest.MonkeyPatch) -> None:
    path.unlink()
    path.mkdir()


def damaged(path: Path, _: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"xx\n" + path.read_bytes())


@pytest.mark.parametrize("spoil", [unreadable, folder_in_place_of, damaged])
def test_a_history_that_cannot_be_read_stops_neither_replicas_nor_publications(
    store: VersionStore,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    spoil(store.root / HISTORY, monkeypatch)
    for number in (1, 2, 3):
        assert store.open_served(number).manifest.version == number
    assert store.publish(store_factory.fill, promote=False) == 4
    with pytest.raises(StoreError, match=r"damaged|cannot be read"):
        store.rollback()


@pytest.mark.parametrize("name", [CURRENT, f"v2/{MANIFEST}", "v2/users.arrow"])
@pytest.mark.parametrize("spoil", [unreadable, folder_in_place_of])
def test_what_cannot_be_read_is_an_error_of_the_store(
    store: VersionStore,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    spoil: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    spoil(store.root / name, monkeypatch)
    calls: list[Callable[[], object]] = [store.open, partial(store.promote, 2, expected=2)]
    if not name.endswith(".arrow"):  # a sealed version's files are mapped, not read
        calls.append(store.open_served)
    for call in calls:
        with pytest.raises(StoreError) as caught:
            call()
        assert caught.value.todo
    if name != CURRENT:
        assert store.open_served(1).manifest.version == 1


@pytest.mark.parametrize("content", ["1_0", "+1", "-1", "0", "01", "9" * 400, "\u0661", "", "1\n2"])
def test_only_the_number_of_a_version_is_a_pointer(store: VersionStore, content: str) -> None:
    (store.root / CURRENT).write_text(content, encoding="utf-8")
    (store.root / f"v{content[:50]}".replace("\n", "-")).mkdir(exist_ok=True)
    with pytest.raises(StoreError, match="no version number"):
        store.current()
    assert store.versions() == [1, 2, 3]
    store.promote(3)
    assert store.current() == 3


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_another_user_may_open_a_version_and_move_the_pointer(tmp_path: Path, umask: int) -> None:
    tmp_path.chmod(0o755)
    before = os.umask(umask)
    try:
        store = VersionStore(tmp_path)
        store.publish(partial(store_factory.fill, retrieval=True, reranker=True))
    finally:
        os.umask(before)
    for path in (tmp_path, *tmp_path.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        needed = 0o555 if path.is_dir() else 0o666 if path.suffix == ".lock" else 0o444
        if path.name in (".lock", ".pointer.lock"):
            needed = 0o666
        assert mode & needed == needed, path
