"""A later round over few changes becomes a delta that answers exactly as a full version does."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from reki_ray import schema
from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.models import artifact as bundles
from reki_ray.models.candidate_scorer import HistoryEvent, UserInput
from reki_ray.retrieval.load import open_candidates
from reki_ray.stages import publish
from reki_ray.stages.publish import publish_version
from reki_ray.store import admin, deltas
from reki_ray.store.manifest import MODEL_FOLDER, RERANKER_FOLDER
from reki_ray.store.reranker import open_reranker
from reki_ray.store.tables import Profile
from reki_ray.store.version import StoreVersion
from reki_ray.store.versions import VersionStore
from reki_ray.training.selection import choose_run
from tests.conftest import TinyConfig
from tests.support import store_factory
from tests.support.store_factory import GENRES, REPRESENTATION

USERS = [*store_factory.USER_IDS, *(f"user {number:03d}" for number in range(300))]
ITEMS = [*store_factory.ITEM_IDS, *(f"x{number}" for number in range(80))]


class Round:
    """Tables of one round over a growing catalogue."""

    def __init__(self, number: int) -> None:
        self.users = [*USERS, *(f"new user {k}" for k in range(number))]
        self.items = [*ITEMS, *(f"new item {k}" for k in range(number))]
        self.number = number

    def write(self, tables: Workspace) -> None:
        """Write what publish reads."""
        for side, ids in (("users", self.users), ("items", self.items)):
            self._write_side(tables, "users" if side == "users" else "items", ids)
        tables.write_table(schema.INTERACTIONS, self.history())
        answers = store_factory.ANSWERS_TABLE.to_pylist()
        for row in answers:  # one of the two clusters is asked again
            if row["subject_kind"] == "item_cluster":
                row["text"] = f"Answer {self.number}."
        tables.write_table(
            schema.KNOWLEDGE, pa.Table.from_pylist(answers, schema=schema.KNOWLEDGE_SCHEMA)
        )

    def history(self) -> pa.Table:
        """Two users meet more items with every round, and every new user some."""
        rows = store_factory.INTERACTIONS_TABLE.to_pylist()
        for place, user in enumerate(self.users[4:]):
            items = [ITEMS[(7 * place + k) % len(ITEMS)] for k in range(6)]
            if place in {3, 4}:
                items += self.items[place::30] + self.items[len(ITEMS) :]
            rows += [
                {"user_id": user, "item_id": item, "timestamp": k, "rating": 5.0, "label": 1}
                for k, item in enumerate(items)
            ]
        rows.sort(key=lambda row: (str(row["user_id"]), int(str(row["timestamp"]))))
        return pa.Table.from_pylist(rows, schema=schema.INTERACTIONS_SCHEMA)

    def _write_side(self, tables: Workspace, side: schema.Side, ids: list[str]) -> None:
        r = np.random.default_rng(7).normal(size=(400, REPRESENTATION))[: len(ids)].astype("f4")
        r[5 + self.number] *= -1  # the vector of one known id changes
        r /= np.linalg.norm(r, axis=1, keepdims=True)
        sources = ["cluster"] * (len(ids) - 1) + ["fallback"]
        rows = [
            {"id": name, "factor": "*", "vector": row, "source": source}
            for name, row, source in zip(ids, r, sources, strict=True)
        ]
        tables.write_table(
            schema.REPRESENTATIONS[side],
            pa.Table.from_pylist(rows, schema=schema.vectors_schema(REPRESENTATION)),
        )
        clusters = {
            schema.ID: ids,
            schema.CLUSTER_ID: [
                f"{side[0]}{0 if k == 70 + self.number else k // 60:04d}" for k in range(len(ids))
            ],
            schema.SIMILARITY: np.ones(len(ids), np.float32),
            schema.METHOD: ["hdbscan"] * len(ids),
        }
        tables.write_table(schema.CLUSTERS[side], pa.table(clusters))
        key, attribute = ("user_id", "gender") if side == "users" else ("item_id", "genre")
        values = ["F", "M"] if side == "users" else GENRES
        names: list[dict[str, Any]] = [
            {key: name, "attributes": [(attribute, [values[k % len(values)]])]}
            for k, name in enumerate(ids)
        ]
        if side == "items":
            for k, row in enumerate(names):
                row["title"] = f"Film {k}" + (" (renamed)" if k == 20 + self.number else "")
        kind = schema.USERS_SCHEMA if side == "users" else schema.ITEMS_SCHEMA
        table = schema.USERS if side == "users" else schema.ITEMS
        tables.write_table(table, pa.Table.from_pylist(names, schema=kind))


@pytest.fixture
def run(tmp_path: Path, tiny_config: TinyConfig) -> tuple[RekiConfig, Workspace]:
    """A trained run with a reranker."""
    arms = {"arms": ["fair_base", "reki_c"], "seeds": [0], "rerankers": ["prm"]}
    config = tiny_config(train=arms, publish={"history": 5})
    workspace = Workspace(config.root)
    Round(0).write(workspace)
    store_factory.write_samples(workspace)
    for arm in ("fair_base", "reki_c"):
        folder = f"train/din-{arm}-0"
        workspace.write_json(f"{folder}/metrics.json", {"valid": {"auc": 0.7}})
        bundles.save(workspace.local_path(folder), store_factory.make_bundle())
        folder = f"train/prm-{arm}-0"
        workspace.write_json(f"{folder}/metrics.json", {"valid": {"ndcg": {"10": 0.7, "7": 0.7}}})
        bundles.save(workspace.local_path(folder), store_factory.make_reranker())
    return config, workspace


def later(config: RekiConfig, workspace: Workspace, number: int) -> StoreVersion:
    """Publish a later round."""
    data, tables = Round(number), Workspace(workspace.local_path("live", f"{number:06d}"))
    data.write(tables)
    chosen = choose_run(config, workspace)
    return publish_version(config, workspace, tables, chosen, data.history(), Reporter(quiet=True))


def answers(version: StoreVersion, users: Sequence[str], items: Sequence[str]) -> dict[str, Any]:
    """Everything that a version answers exactly."""
    assert version.users is not None
    assert version.items is not None
    candidates = open_candidates(version)
    profiles = {user: version.profile(user) for user in users}
    return {
        "profiles": profiles,
        "catalogue": {item: version.catalogue.get(item) for item in items},
        "sizes": [len(part) for part in (version.profiles, version.catalogue, version.users)],
        "counts": [version.manifest.users, version.manifest.items],
        "ids": [sorted(version.profiles.ids()), sorted(version.catalogue.ids)],
        "sources": [version.users.sources(users), version.items.sources(items)],
        "knowledge": [
            [(version.cluster_of(side, name), version.knowledge(side, name)) for name in ids]
            for side, ids in zip(schema.SIDES, (users, items), strict=True)
        ],
        "candidates": {
            user: candidates.of(
                user, [] if profile is None else [e[:2] for e in profile.latest(5)], 20
            )
            for user, profile in profiles.items()
        },
        "popular": candidates.of("nobody", [], len(items)),
    }


def numbers(version: StoreVersion, users: Sequence[str], items: Sequence[str]) -> dict[str, Any]:
    """Vectors, scores and reranked orders, which rounding may move."""
    assert version.users is not None
    assert version.items is not None
    vectors = version.users.lookup(users)[0]
    reranker = open_reranker(version)
    assert reranker is not None
    nobody = Profile(None, (), (), ())
    inputs, orders = [], []
    for user, vector in zip(users, vectors, strict=True):
        profile = version.profile(user) or nobody
        events = [HistoryEvent(*event) for event in profile.latest(5)]
        inputs.append((UserInput(profile.attributes, events, vector), items))
        orders.append(reranker.scorer.score(reranker.user_input(user, profile, vector), items[-4:]))
    return {
        "users": vectors,
        "items": version.items.lookup(items)[0],
        "scores": np.stack(version.load_scorer().score_batch(inputs)),
        "reranked": np.stack(orders),
        "fallbacks": np.stack([version.users.fallback, version.items.fallback]),
    }


def require_same(one: StoreVersion, other: StoreVersion, data: Round) -> None:
    """Whether two versions answer alike."""
    users, items = [*data.users, "nobody"], [*data.items, "no item"]
    assert answers(one, users, items) == answers(other, users, items)
    ours, theirs = (numbers(version, users[::40] + users[-4:], items) for version in (one, other))
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], atol=2e-6, err_msg=name)


@pytest.mark.parametrize("settings", [{}, {"prestore": "r", "retrieval": {"kind": "popular"}}])
def test_a_chain_of_deltas_answers_as_full_versions_do(
    run: tuple[RekiConfig, Workspace],
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, workspace = run
    merged = config.publish.model_dump(mode="json") | settings
    config = config.model_copy(update={"publish": type(config.publish)(**merged)})
    publish.run(config, workspace, Reporter(quiet=True))
    root = workspace.local_path("publish")
    shutil.copytree(root, root.with_name("start"))
    layered = [later(config, workspace, number) for number in (1, 2)]
    assert [len(version.layers) for version in layered] == [2, 3]
    root.rename(root.with_name("layered"))
    root.with_name("start").rename(root)
    monkeypatch.setattr(deltas, "DELTA_SHARE", -1.0)
    full = [later(config, workspace, number) for number in (1, 2)]
    assert [len(version.layers) for version in full] == [1, 1]
    store = VersionStore(root.with_name("layered"))
    for number, other in zip((1, 2), full, strict=True):
        require_same(store.open(number + 1), other, Round(number))
    for name in (MODEL_FOLDER, RERANKER_FOLDER):
        assert not list((store.folder(3) / name).glob("model.*"))
    admin.compact(store)
    compacted = store.open()
    assert (compacted.manifest.version, len(compacted.layers)) == (4, 1)
    require_same(compacted, full[-1], Round(2))


def test_a_full_version_is_written_where_much_changed_or_the_chain_is_long(
    run: tuple[RekiConfig, Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workspace = run
    publish.run(config, workspace, Reporter(quiet=True))
    assert len(later(config, workspace, 1).layers) == 2
    monkeypatch.setattr(deltas, "MAX_LAYERS", 2)
    assert len(later(config, workspace, 2).layers) == 1
    assert len(later(config, workspace, 60).layers) == 1
    assert len(later(config, workspace, 61).layers) == 2
    # Ids that are gone cannot be expressed.
    assert len(later(config, workspace, 1).layers) == 1
