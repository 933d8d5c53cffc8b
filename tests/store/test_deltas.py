"""A delta lies over its base, is refused where it does not fit, and compacts to the same."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from reki_ray.errors import StoreError
from reki_ray.models.candidate_scorer import HistoryEvent, UserInput
from reki_ray.schema import ITEMS_SCHEMA, SIDES, USERS_SCHEMA
from reki_ray.store import admin as versions
from reki_ray.store import deltas
from reki_ray.store.deltas import Delta, NewVectors
from reki_ray.store.manifest import MANIFEST, Prestore
from reki_ray.store.tables import catalogue_table, knowledge_table, profiles_table
from reki_ray.store.vectors import DType
from reki_ray.store.version import StoreVersion
from reki_ray.store.versions import VersionStore
from tests.support import store_factory
from tests.support.store_factory import ANSWERS_TABLE, INTERACTIONS_TABLE, ITEM_IDS, USER_IDS

USERS = pa.Table.from_pylist(
    [
        {"user_id": "u0", "attributes": [("gender", ["M"])]},
        {"user_id": "new", "attributes": [("gender", ["F"])]},
    ],
    schema=USERS_SCHEMA,
)
ITEMS = pa.Table.from_pylist(
    [
        {"item_id": "m3", "title": "Renamed", "attributes": [("genre", ["Drama"])]},
        {"item_id": "m new", "title": "New", "attributes": [("genre", ["Action"])]},
    ],
    schema=ITEMS_SCHEMA,
)
ALL_USERS = [*USER_IDS, "new", "nobody"]
ALL_ITEMS = [*ITEM_IDS, "m new", "no item"]


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    store = VersionStore(tmp_path / "publish")
    store.publish(store_factory.fill)
    return store


def _delta(store: VersionStore, seed: int = 0, **changes: Any) -> Delta:
    base = store.open(verify=False).manifest
    manifest = base.model_dump(include={"model_fingerprint", "dimension", "dtype", "prestore"})
    clusters: dict[Any, dict[str, str]] = {"users": {"new": "u0000"}, "items": {"m3": "i9"}}
    delta = Delta(
        **manifest,
        vectors={
            "users": NewVectors(["new", "u0"], _vectors(seed), ["individual", "cluster"]),
            "items": NewVectors(["m3", "m new"], _vectors(seed + 50), ["individual", "fallback"]),
        },
        profiles=profiles_table(USERS, INTERACTIONS_TABLE, 2),
        catalogue=catalogue_table(ITEMS),
        knowledge=knowledge_table(ANSWERS_TABLE.slice(0, 0), clusters),
    )
    return dataclasses.replace(delta, **changes)


def _vectors(seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(2, 8)).astype(np.float32)


def _all_of(version: StoreVersion) -> dict[str, Any]:
    """Everything that a version says of every id."""
    found: dict[str, Any] = {
        "profiles": {name: version.profile(name) for name in ALL_USERS},
        "items": {name: version.catalogue.get(name) for name in ALL_ITEMS},
        "attributes": dict(
            zip(version.catalogue.ids, map(str, version.catalogue.attributes), strict=True)
        ),
        "known": version.catalogue.known(ALL_ITEMS).tolist(),
        "sizes": [len(version.profiles), len(version.catalogue)],
        "user ids": sorted(version.profiles.ids()),
        "counts": [version.manifest.users, version.manifest.items],
    }
    for side, ids in (("users", ALL_USERS), ("items", ALL_ITEMS)):
        named = SIDES[SIDES.index("users" if side == "users" else "items")]
        vectors = version.users if side == "users" else version.items
        assert vectors is not None
        rows, sources = vectors.lookup(ids)
        assert sources == vectors.sources(ids)
        found[side + " vectors"] = [rows.tobytes(), sources, len(vectors)]
        found[side + " texts"] = [version.knowledge(named, name) for name in ids]
        found[side + " clusters"] = [version.cluster_of(named, name) for name in ids]
    return found


def test_an_upsert_changes_its_ids_and_no_other(store: VersionStore) -> None:
    base = store.open()
    assert store.upsert(_delta(store)) == store.current() == 2
    version = store.open()
    assert version.users is not None
    assert base.users is not None
    found, sources = version.users.lookup(["u0", "u1", "new", "nobody"])
    old = base.users.lookup(["u1", "nobody"])[0]
    np.testing.assert_array_equal(found, [_vectors(0)[1], old[0], _vectors(0)[0], old[1]])
    assert sources == ["cluster", "cluster", "individual", "fallback"]
    profile = version.profile("u0")
    assert profile is not None
    assert (profile.attributes, profile.item_ids) == ({"gender": ["M"]}, ("m4", "m5"))
    assert version.profile("u1") == base.profile("u1")
    assert version.profile("new") is not None
    item = version.catalogue.get("m3")
    assert item is not None
    assert item.title == "Renamed"
    assert version.catalogue.known(["m3", "m new", "zz"]).tolist() == [True, True, False]
    assert version.cluster_of("items", "m3") == "i9"
    assert version.knowledge("items", "m3") == []
    assert [e.text for e in version.knowledge("users", "new")] == ["They like action."]
    assert (version.manifest.users, len(version.profiles)) == (5, 5)
    assert (version.manifest.items, len(version.catalogue)) == (13, 13)
    assert sorted(version.catalogue.ids) == sorted([*ITEM_IDS, "m new"])
    assert len(version.profiles.ids(2)) == len(version.catalogue.first(2)) == 2
    assert len(set(version.profiles.ids(4))) == 4
    assert not (version.folder / "model").exists()


def test_the_newest_of_several_layers_decides(store: VersionStore) -> None:
    for seed in (10, 20):
        store.upsert(_delta(store, seed))
    version = store.open()
    assert version.users is not None
    np.testing.assert_array_equal(version.users.lookup(["new", "u0"])[0], _vectors(20))
    assert (len(version.layers), len(version.users), len(version.profiles)) == (3, 5, 5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("prestore", ["h", "r"])
def test_compaction_holds_the_same_for_every_id(
    tmp_path: Path, dtype: DType, prestore: Prestore
) -> None:
    store = VersionStore(tmp_path)
    store.publish(partial(store_factory.fill, dtype=dtype, prestore=prestore))
    store.upsert(_delta(store, 1))
    store.upsert(_delta(store, 2))
    layered = store.open()
    assert versions.compact(store).current == 4
    full = store.open()
    assert (full.manifest.base, len(full.layers), len(layered.layers)) == (None, 1, 3)
    assert _all_of(full) == _all_of(layered)
    assert (full.manifest.dtype, full.prestore) == (dtype, prestore)
    user = UserInput({"gender": ["F"]}, [HistoryEvent("m new", 3.0, 5)], _vectors(1)[0])
    np.testing.assert_allclose(
        layered.load_scorer().score(user, ALL_ITEMS),
        full.load_scorer().score(user, ALL_ITEMS),
        atol=1e-6,
    )
    for number in (1, 2, 3):  # a full version needs none of them
        shutil.rmtree(store.folder(number))
    assert _all_of(store.open()) == _all_of(full)


def test_a_layered_version_scores_its_new_items(store: VersionStore) -> None:
    base = store.open().load_scorer()
    store.upsert(_delta(store))
    layered = store.open().load_scorer()
    user = UserInput({"gender": ["F"]}, [], _vectors(1)[0])
    same = ["m1", "m2"]
    np.testing.assert_allclose(base.score(user, same), layered.score(user, same), atol=1e-6)
    changed = ["m3", "m new"]
    assert (np.abs(base.score(user, changed) - layered.score(user, changed)) > 1e-5).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_fingerprint": "other"}, "model is other"),
        ({"dimension": 9}, "dimension is 9"),
        ({"dtype": "float16"}, "dtype is float16"),
        ({"prestore": "r"}, "prestore mode is r"),
        (
            {"vectors": {"users": NewVectors(["a"], np.zeros((1, 3), np.float32), ["cluster"])}},
            "length 8",
        ),
        (
            {"vectors": {"users": NewVectors(["a"] * 2, _vectors(0), ["cluster"] * 2)}},
            "twice",
        ),
    ],
)
def test_a_delta_that_does_not_fit_is_refused(
    store: VersionStore, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        store.upsert(_delta(store, **changes))
    assert caught.value.todo
    assert (store.versions(), store.current()) == ([1], 1)


def test_an_upsert_has_the_columns_of_its_base(store: VersionStore) -> None:
    nullable = catalogue_table(ITEMS).cast(
        pa.schema([field.with_nullable(True) for field in catalogue_table(ITEMS).schema])
    )
    store.upsert(_delta(store, catalogue=nullable))
    version = store.open()
    assert version.catalogue.known(["m new"]).tolist() == [True]
    assert len(version.catalogue.ids) == len(version.catalogue)
    without_an_id = nullable.set_column(0, "item_id", pa.array(["m3", None], pa.string()))
    with pytest.raises(StoreError, match="do not have the columns of catalogue"):
        store.upsert(_delta(store, catalogue=without_an_id))
    assert store.current() == 2


def test_a_chain_is_bounded(store: VersionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "MAX_LAYERS", 2)
    store.upsert(_delta(store))
    with pytest.raises(StoreError, match="2 layers already") as caught:
        store.upsert(_delta(store))
    assert "reki compact" in caught.value.todo
    store.compact()
    assert store.upsert(_delta(store)) == 4


def _edit(number: int, key: str, value: Any) -> Callable[[VersionStore], None]:
    def edit(store: VersionStore) -> None:
        path = store_factory.writable(store.folder(number) / MANIFEST)
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return edit


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda store: shutil.rmtree(store.folder(1)), "version 1, which version 2 .* is missing"),
        (_edit(1, "created_at", 1), "its manifest differs"),
        (_edit(1, "model_fingerprint", "other"), "model_fingerprint differs"),
        (_edit(2, "dtype", "float16"), "dtype differs"),
        (_edit(2, "base", {"version": 2, "manifest": "x"}), "version 2 was made for"),
        (
            lambda store: store_factory.writable(store.folder(1) / "users.arrow").write_bytes(b"?"),
            "damaged",
        ),
    ],
)
def test_a_base_that_is_gone_or_another_is_refused(
    store: VersionStore, break_it: Callable[[VersionStore], None], message: str
) -> None:
    store.publish(store_factory.fill)  # 2 -> renamed below: the delta must be version 2
    shutil.rmtree(store.folder(2))
    (store.root / "HISTORY").unlink()
    assert store.upsert(_delta_over(store, 1), base=1) == 2
    break_it(store)
    for act in (store.open, store.compact, partial(store.promote, 2)):
        with pytest.raises(StoreError, match=message) as caught:
            act()
        assert caught.value.todo


def _delta_over(store: VersionStore, number: int) -> Delta:
    (store.root / "CURRENT").write_text(f"{number}\n")
    return _delta(store)


def test_a_missing_base_is_shown(store: VersionStore) -> None:
    store.upsert(_delta(store))
    shutil.rmtree(store.folder(1))
    (entry,) = versions.versions(store).versions
    assert "version 1, which version 2 lies over, is missing" in entry.problem


def test_a_version_without_vectors_takes_upserts_too(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    store.publish(partial(store_factory.fill, knowledge=False))
    store.upsert(_delta(store, vectors={}))
    version = store.open()
    assert version.users is None
    assert version.catalogue.known(["m new"]).tolist() == [True]
    store.compact()
    assert store.open().profile("new") == version.profile("new")


def test_two_writers_at_once_lie_over_each_other(store: VersionStore) -> None:
    deltas = [_delta(store), _delta(store, seed=7)]
    with ThreadPoolExecutor(2) as pool:
        numbers = sorted(pool.map(store.upsert, deltas))
    assert numbers == [2, 3]
    bases = [store.open(number, verify=False).manifest.base for number in numbers]
    assert [base.version for base in bases if base is not None] == [1, 2]
