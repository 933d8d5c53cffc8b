"""Versions are immutable and numbered; what is damaged or does not fit is refused."""

from __future__ import annotations

import doctest
import json
import shutil
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reki_ray.errors import StoreError
from reki_ray.models import artifact as bundles
from reki_ray.retrieval.load import open_candidates
from reki_ray.store import manifest, versions
from reki_ray.store.hash_index import write_indexed
from reki_ray.store.manifest import Description
from reki_ray.store.vectors import write_vectors
from reki_ray.store.versions import VersionStore
from tests.support import store_factory


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    store = VersionStore(tmp_path / "publish")
    store.publish(store_factory.fill)
    return store


def test_two_publications_make_two_versions(store: VersionStore) -> None:
    assert store.publish(partial(store_factory.fill, seed=1)) == 2
    assert store.versions() == [1, 2]
    assert store.current() == 2
    first, second = store.open(1), store.open()
    assert (first.name, second.name) == ("v1", "v2")
    assert first.manifest.model_fingerprint != second.manifest.model_fingerprint
    assert second.load_model().fingerprint == second.manifest.model_fingerprint


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a defect"), OSError(28, "No space left on device")],
    ids=["defect", "full disk"],
)
def test_a_publication_that_fails_changes_nothing(store: VersionStore, error: Exception) -> None:
    def failing(folder: Path) -> Description:
        store_factory.fill(folder)
        raise error

    expected = RuntimeError if isinstance(error, RuntimeError) else StoreError
    with pytest.raises(expected, match=r"a defect|cannot be built: No space left"):
        store.publish(failing)
    assert store.versions() == [1]
    assert store.current() == 1
    assert _visible(store) == ["CURRENT", "HISTORY", "v1"]


@pytest.mark.parametrize(("number", "in_force"), [(1, 1), (2, 1), (3, 2)])
def test_a_kill_before_a_rename_leaves_the_old_version_or_the_new_one_in_force(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch, number: int, in_force: int
) -> None:
    """The folder of the version is renamed first, then CURRENT, then HISTORY."""
    calls, rename = count(1), Path.replace

    def kill(self: Path, target: Path) -> Path:
        if next(calls) == number:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            store.publish(partial(store_factory.fill, seed=1))
    assert store.current() == in_force
    assert store.open().name == f"v{in_force}"
    # The next publication is not disturbed by what the kill left.
    assert store.publish(store_factory.fill) == store.current() == store.versions()[-1]
    assert store.rollback() == in_force


def test_what_a_killed_publication_left_is_removed(store: VersionStore) -> None:
    (store.root / ".scratch-killed").mkdir()
    store.publish(store_factory.fill)
    assert _visible(store) == ["CURRENT", "HISTORY", "v1", "v2"]
    assert not (store.root / ".scratch-killed").exists()


def test_every_damaged_byte_is_noticed(store: VersionStore) -> None:
    for name in store.open().manifest.files:
        path = store_factory.writable(store.folder(1) / name)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(StoreError, match="damaged") as caught:
            store.open()
        assert caught.value.where == str(path)
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert store.open().name == "v1"


def test_a_missing_file_is_noticed(store: VersionStore) -> None:
    (store.folder(1) / "items.arrow").unlink()
    with pytest.raises(StoreError, match="missing"):
        store.open()


def _change(key: str, value: Any) -> Callable[[VersionStore], None]:
    def change(store: VersionStore) -> None:
        path = store_factory.writable(store.folder(1) / manifest.MANIFEST)
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return change


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (_change("dimension", 16), "length 8, the manifest says 16"),
        (_change("format", 99), "format 99"),
        (_change("version", 2), "version 2"),
        (_change("surprise", 1), "manifest is damaged"),
        (_change("fallback", {"users": [0.0]}), "length 8, the fallback"),
        (lambda store: shutil.rmtree(store.folder(1)), "no such version"),
        (lambda store: (store.root / "CURRENT").write_text("x"), "no version number"),
        (lambda store: (store.root / "CURRENT").unlink(), "nothing is published"),
    ],
)
def test_what_does_not_fit_is_refused(
    store: VersionStore, break_it: Callable[[VersionStore], None], message: str
) -> None:
    break_it(store)
    with pytest.raises(StoreError, match=message) as caught:
        store.open()
    assert caught.value.todo


def test_vectors_of_another_model_are_refused(store: VersionStore) -> None:
    other = store_factory.make_bundle(seed=5)
    bundles.save(store_factory.writable(store.folder(1) / manifest.MODEL_FOLDER), other)
    with pytest.raises(StoreError, match="vectors belong to model"):
        store.open(verify=False).load_model()


def test_vectors_of_another_dimension_are_not_published(store: VersionStore) -> None:
    def wrong(folder: Path) -> Description:
        description = store_factory.fill(folder)
        ids = store_factory.USER_IDS
        write_vectors(
            folder / "users.arrow", ids, np.zeros((len(ids), 3), np.float32), ["cluster"] * len(ids)
        )
        return description

    with pytest.raises(StoreError, match="length 3"):
        store.publish(wrong)
    assert store.versions() == [1]


def test_a_version_without_knowledge_has_no_vectors(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    store.publish(partial(store_factory.fill, knowledge=False))
    version = store.open()
    assert version.users is None
    assert version.items is None
    assert version.manifest.dimension == 0
    assert not version.load_model().uses_knowledge


def test_profiles_hold_the_latest_interactions_oldest_first(store: VersionStore) -> None:
    version = store.open()
    profile = version.profile("ü/2")
    assert profile is not None
    assert profile.attributes == {"gender": ["F"]}
    assert profile.item_ids == ("m2", "m3", "m4", "m5")
    assert profile.ratings == (3.0, 4.0, 5.0, 1.0)
    assert profile.timestamps == (102, 103, 104, 105)
    newcomer = version.profile("u3")
    assert newcomer is not None
    assert newcomer.item_ids == ()
    assert version.profile("nobody") is None


def test_profiles_without_any_interaction(tmp_path: Path) -> None:
    from reki_ray.store.tables import Profiles, profiles_table

    rows = profiles_table(
        store_factory.USERS_TABLE, store_factory.INTERACTIONS_TABLE.slice(0, 0), 4
    )
    write_indexed(tmp_path / "p", rows, "user_id")
    found = Profiles([tmp_path / "p"]).get("u0")
    assert found is not None
    assert found.item_ids == ()


def test_knowledge_is_that_of_the_cluster(store: VersionStore) -> None:
    version = store.open()
    (entry,) = version.knowledge("users", "u0")
    assert (entry.subject_kind, entry.subject_id) == ("user_cluster", "u0000")
    assert entry.text == "They like action."
    assert version.cluster_of("users", "u0") == "u0000"
    assert version.knowledge("items", "m11") == []
    assert version.cluster_of("items", "m11") is None


def test_the_catalogue_knows_titles_and_attributes(store: VersionStore) -> None:
    catalogue = store.open().catalogue
    item = catalogue.get("m4")
    assert item is not None
    assert (item.title, item.attributes) == ("Film 4", {"genre": ["Comedy"]})
    assert catalogue.get("zz") is None
    assert catalogue.known(["zz", "m0"]).tolist() == [False, True]
    assert dict(zip(catalogue.ids, catalogue.attributes, strict=True))["m4"] == item.attributes


def _visible(store: VersionStore) -> list[str]:
    return sorted(path.name for path in store.root.iterdir() if not path.name.endswith(".lock"))


def test_vectors_without_a_model_are_looked_up_but_score_nothing(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    users, items = (["u1", "u2"], rows), (["m1"], np.ones((1, 2), np.float32))
    assert store.publish_vectors(users=users, items=items) == store.current() == 1
    version = store.open_served()
    assert version.users is not None
    assert version.items is not None
    vectors, sources = version.users.lookup(["u2", "u1", "nobody"])
    np.testing.assert_array_equal(vectors, [rows[1], rows[0], rows.mean(axis=0)])
    assert sources == ["individual", "individual", "fallback"]
    np.testing.assert_array_equal(version.items.lookup(["m1"])[0], items[1])
    assert version.profile("u1") is None
    for use in (version.load_scorer, partial(open_candidates, version)):
        with pytest.raises(StoreError, match="version v1 holds vectors without a model") as caught:
            use()
        assert "reki publish" in caught.value.todo
    assert store.publish_vectors(items=items, dtype="float16", promote=False) == 2
    assert store.current() == 1
    assert store.open(2).users is None
    store.promote(2)
    assert store.rollback() == 1
    for ids, wrong, error in (
        (["a", "a"], rows, "twice"),
        (["a"], rows, "do not fit together"),
        (["a", "b"], rows * np.nan, "not all finite"),
    ):
        with pytest.raises(StoreError, match=error):
            store.publish_vectors(users=(ids, wrong))


def test_the_example_of_the_docstring_works() -> None:
    assert doctest.testmod(versions) == doctest.TestResults(failed=0, attempted=5)
