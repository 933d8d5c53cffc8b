"""What versions hold for recommendations: retrieval files and a reranker, in layers too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from deployments.parts.item_lists import VersionOrder
from deployments.parts.records import UserRecord
from reki_ray.config import RekiConfig
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError, StoreError
from reki_ray.models.candidate_scorer import CatalogueInputs, HistoryEvent, UserInput
from reki_ray.models.list_scorer import ListScorer
from reki_ray.retrieval.candidates import Candidates
from reki_ray.retrieval.load import PopularItems, open_candidates
from reki_ray.schema import ITEMS_SCHEMA
from reki_ray.stages.publish_vectors import mean_direction
from reki_ray.store.deltas import Delta, NewVectors
from reki_ray.store.reranker import open_reranker
from reki_ray.store.tables import Profile, catalogue_table
from reki_ray.store.version import StoreVersion
from reki_ray.store.versions import VersionStore
from reki_ray.training.selection import choose_reranker
from tests.conftest import TinyConfig
from tests.support import store_factory
from tests.support.store_factory import ITEM_IDS, USER_IDS

LIKED = [("m1", 5.0), ("m7", 4.0), ("m2", 1.0)]
PROFILE = Profile({"gender": ["F"]}, ("m1", "m2"), (4.0, None), (100, 150))
LIST = ["m9", "m3", "unknown", "m5", "m0", "m11", "m4"]


def make(root: Path, **choice: Any) -> VersionStore:
    store = VersionStore(root)
    store.publish(partial(store_factory.fill, retrieval=True, reranker=True, **choice))
    return store


def add_item(store: VersionStore) -> None:
    manifest = store.open().manifest
    vectors = np.random.default_rng(3).normal(size=(1, len(manifest.fallback["items"])))
    rows = [{"item_id": "m new", "title": "New", "attributes": [("genre", ["Drama"])]}]
    delta = Delta(
        manifest.model_fingerprint,
        manifest.dimension,
        prestore=manifest.prestore,
        vectors={"items": NewVectors(["m new"], vectors.astype(np.float32), ["individual"])},
        catalogue=catalogue_table(pa.Table.from_pylist(rows, schema=ITEMS_SCHEMA)),
    )
    store.upsert(delta)


def order_of(version: StoreVersion, user_id: str, items: Sequence[str] = LIST) -> list[int]:
    stored = None
    if version.users is not None:
        stored = version.users.lookup([user_id])[0][0]
    user = UserRecord(PROFILE, stored, "cluster", version.name, user_id)
    return VersionOrder(version).order(user, items)


def test_candidates_of_a_version_are_unseen(tmp_path: Path) -> None:
    found = open_candidates(make(tmp_path).open())
    assert isinstance(found, Candidates)
    assert sorted(found.of("u0", LIKED, 12)) == sorted({*ITEM_IDS[6:]} - {"m7"})
    assert len(found.of("new", LIKED, 4)) == 4
    assert found.of("new", [], 3) == ["m0", "m1", "m2"]


@pytest.mark.parametrize("prestore", ["h", "r"])
def test_an_item_of_a_delta_can_be_retrieved(tmp_path: Path, prestore: str) -> None:
    store = make(tmp_path, prestore=prestore)
    base = open_candidates(store.open()).of("new", LIKED, 20)
    add_item(store)
    layered = open_candidates(store.open())
    found = layered.of("new", LIKED, 20)
    assert [item for item in found if item != "m new"] == base
    assert "m new" in found
    assert layered.of("new", [], 20)[-1] == "m new"
    store.compact()
    assert open_candidates(store.open()).of("new", LIKED, 20) == found


def test_a_version_without_retrieval_files_has_popular_items(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    store.publish(store_factory.fill)
    found = open_candidates(store.open())
    assert isinstance(found, PopularItems)
    assert found.of("u0", [("m0", 1.0)], 3, ["m10"]) == ["m1", "m11", "m2"]  # all equally popular
    assert len(found.of("u0", [], 100)) == len(ITEM_IDS)


@pytest.mark.parametrize("prestore", ["h", "r"])
def test_the_order_of_a_version_is_that_of_its_reranker(tmp_path: Path, prestore: str) -> None:
    version = make(tmp_path, prestore=prestore).open()
    bundle = store_factory.make_reranker()
    r_users, r_items = (store_factory.representations(ids) for ids in (USER_IDS, ITEM_IDS))
    unknown = mean_direction(r_items)
    inputs = CatalogueInputs(
        bundle,
        ITEM_IDS,
        [{"genre": [store_factory.GENRES[k % 3]]} for k in range(len(ITEM_IDS))],
        bundle.augment_items(r_items),
        bundle.augment_items(unknown)[0],
    )
    scorer = ListScorer(bundle, inputs)
    events = [HistoryEvent("m1", 4.0, 100), HistoryEvent("m2", None, 150)]
    strangers = mean_direction(r_users)
    served = open_reranker(version)
    assert served is not None
    assert version.users is not None
    scores = []
    for place, user in enumerate([*USER_IDS, "nobody"]):
        r = r_users[place : place + 1] if user != "nobody" else strangers
        asked = UserInput(PROFILE.attributes, events, bundle.augment_users(r)[0])
        stored = version.users.lookup([user])[0][0]
        scores.append(served.scorer.score(served.user_input(user, PROFILE, stored), LIST))
        np.testing.assert_allclose(scores[-1], scorer.score(asked, LIST), atol=1e-6)
        assert order_of(version, user) == scorer.order(asked, LIST)
    assert len({found.tobytes() for found in scores}) == len(scores)


def test_a_user_whose_vector_is_not_at_hand_is_still_put_in_order(tmp_path: Path) -> None:
    version = make(tmp_path, prestore="r").open()
    order = VersionOrder(version).order(UserRecord(PROFILE, user_id="u0"), LIST)
    assert sorted(order) == list(range(len(LIST)))


def test_an_arm_without_knowledge_recommends_too(tmp_path: Path) -> None:
    version = make(tmp_path, knowledge=False).open()
    assert version.users is None
    assert sorted(order_of(version, "u0")) == list(range(len(LIST)))
    assert order_of(version, "u0") != list(range(len(LIST)))
    assert len(open_candidates(version).of("u0", LIKED, 12)) == 5


def test_lists_stay_as_they_came_without_a_reranker(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    store.publish(store_factory.fill)
    assert open_reranker(store.open()) is None
    assert order_of(store.open(), "u0") == list(range(len(LIST)))


def test_a_delta_has_the_reranker_of_its_base(tmp_path: Path) -> None:
    store = make(tmp_path)
    before = order_of(store.open(), "u1")
    add_item(store)
    assert order_of(store.open(), "u1") == before
    with_new = order_of(store.open(), "u1", ["m3", "m new"])
    store.compact()
    assert order_of(store.open(), "u1") == before
    assert order_of(store.open(), "u1", ["m3", "m new"]) == with_new


def test_another_reranker_than_the_manifest_names_is_refused(tmp_path: Path) -> None:
    version = make(tmp_path).open()
    path = store_factory.writable(version.folder / "reranker" / "model.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "seed": 7}))
    with pytest.raises(StoreError, match="manifest names reranker"):
        open_reranker(version)
    shutil.rmtree(path.parent)
    with pytest.raises(StoreError, match="cannot be read"):
        open_reranker(version)


NDCGS = {("dlcm", 0): 0.5, ("dlcm", 1): 0.7, ("prm", 0): 0.65, ("prm", 1): 0.64}


def rerankers(workspace: Workspace, tiny_config: TinyConfig, wanted: str) -> RekiConfig:
    for (name, seed), value in NDCGS.items():
        metrics = {"valid": {"ndcg": {"7": value}}}
        workspace.write_json(f"train/{name}-reki_c-{seed}/metrics.json", metrics)
    train = {"rerankers": ["prm", "dlcm"], "seeds": [0, 1]}
    return tiny_config(train=train, publish={"reranker": wanted})


@pytest.mark.parametrize(
    ("wanted", "chosen"), [("auto", ("prm", 0)), ("dlcm", ("dlcm", 1)), ("none", None)]
)
def test_the_reranker_best_on_validation_is_chosen(
    workspace: Workspace, tiny_config: TinyConfig, wanted: str, chosen: tuple[str, int] | None
) -> None:
    run = choose_reranker(rerankers(workspace, tiny_config, wanted), workspace, "reki_c")
    assert (run and (run.backbone, run.seed)) == chosen


def test_a_reranker_that_is_not_trained_is_refused(
    workspace: Workspace, tiny_config: TinyConfig
) -> None:
    config = rerankers(workspace, tiny_config, "mir")
    with pytest.raises(ConfigError, match="mir is not trained"):
        choose_reranker(config, workspace, "reki_c")
    assert choose_reranker(tiny_config(), workspace, "reki_c") is None
