"""Promotion moves the pointer to what was checked, and its history leads back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from reki_ray.errors import StoreError
from reki_ray.models import bundle as bundles
from reki_ray.store import commands, history
from reki_ray.store.history import HISTORY, Promotion
from reki_ray.store.manifest import VERIFIED, checksum
from reki_ray.store.upsert import Delta
from reki_ray.store.vectors import write_vectors
from reki_ray.store.versions import CURRENT, MANIFEST, MODEL_FOLDER, VersionStore
from tests import store_factory


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
    path = store.folder(3) / "users.arrow"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def _rewrite(store: VersionStore, name: str) -> None:
    """Make a manifest agree with a changed file, as a faulty builder would."""
    path = store.folder(3) / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"][name] = checksum(store.folder(3) / name)
    path.write_text(json.dumps(manifest))


def _other_model(store: VersionStore) -> None:
    bundles.save(store.folder(3) / MODEL_FOLDER, store_factory.make_bundle(seed=7))
    for name in (bundles.WEIGHTS, bundles.DESCRIPTION):
        _rewrite(store, f"{MODEL_FOLDER}/{name}")


def _other_dimension(store: VersionStore) -> None:
    path = store.folder(3) / "items.arrow"
    write_vectors(path, ["m0"], np.zeros((1, 8 + 1), np.float32), ["cluster"])
    _rewrite(store, "items.arrow")


def _other_type(store: VersionStore) -> None:
    path = store.folder(3) / "items.arrow"
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


def test_ways_back_are_undone_and_not_counted() -> None:
    def told(*moves: int) -> list[Promotion]:
        return [Promotion(version=abs(m), at=0, rollback=m < 0) for m in moves]

    assert history.before(told(1, 2, 3), 3) == 2
    assert history.before(told(1, 2, 3, -2), 2) == 1
    assert history.before(told(1, 2, -1, 3), 3) == 1
    assert history.before(told(1, 2, 2), 2) == 1
    assert history.before(told(1), 1) is None
    assert history.before([], 4) is None


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
        console.print(commands.render(found))
    return capture.get()
