"""Stages cluster and encode on a real Ray, over a small synthetic workspace."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from reki_ray import schema
from reki_ray.clustering import stage as cluster
from reki_ray.config import RekiConfig
from reki_ray.data import stage as ingest
from reki_ray.encoding import stage as encode
from reki_ray.encoding.encoder import TextEncoder
from reki_ray.errors import DataError
from reki_ray.extraction.ledger import PLAN, Ledger
from reki_ray.progress import Reporter
from reki_ray.schema import (
    CLUSTER_ID,
    ENGINE,
    FACTOR,
    FINISH_REASON,
    GENERATED_TOKENS,
    ID,
    MODEL,
    PROMPT_HASH,
    PROMPT_TOKENS,
    REVISION,
    SIDES,
    SIMILARITY,
    SOURCE,
    SUBJECT_ID,
    SUBJECT_KIND,
    TEXT,
    Side,
)
from reki_ray.vectors import normalise, read_vectors
from reki_ray.workspace import Workspace

pytestmark = pytest.mark.usefixtures("ray_local")

IDS: Mapping[Side, tuple[schema.Table, str]] = {
    "users": (schema.USERS, schema.USER_ID),
    "items": (schema.ITEMS, schema.ITEM_ID),
}


@pytest.fixture(scope="module")
def stash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves the output of stages ingest and cluster for the others."""
    return tmp_path_factory.mktemp("stash") / "workspace"


@pytest.fixture
def config(
    tiny_config: Callable[..., RekiConfig], workspace: Workspace, reporter: Reporter, stash: Path
) -> RekiConfig:
    """A configuration whose stages ingest and cluster are done."""
    made = tiny_config()
    if not stash.exists():
        ingest.run(made, workspace, reporter)
        cluster.run(made, workspace, reporter)
        shutil.copytree(workspace.root, stash)
    shutil.copytree(stash, workspace.root, dirs_exist_ok=True)
    return made


def ids_of(workspace: Workspace, side: Side) -> list[str]:
    table, column = IDS[side]
    ids: list[str] = workspace.read_table(table)[column].to_pylist()
    return ids


def clusters_of(workspace: Workspace, side: Side) -> dict[str, str]:
    rows = workspace.read_table(schema.CLUSTERS[side])
    return dict(zip(rows[ID].to_pylist(), rows[CLUSTER_ID].to_pylist(), strict=True))


def answer(workspace: Workspace, texts: Mapping[tuple[str, str], str]) -> None:
    """A plan and a ledger in which each subject has the given answer."""
    ledger = Ledger(workspace)
    rows = [
        {SUBJECT_KIND: kind, SUBJECT_ID: key, PROMPT_HASH: f"{kind}/{key}"} for kind, key in texts
    ]
    ledger.write_plan(pa.Table.from_pylist(rows, schema=PLAN.schema))
    rest = {FACTOR: "*", MODEL: "m", REVISION: "1", ENGINE: "scripted", FINISH_REASON: "stop"}
    counts = {PROMPT_TOKENS: 1, GENERATED_TOKENS: 1}
    answers = [
        {**row, **rest, **counts, TEXT: text}
        for row, text in zip(rows, texts.values(), strict=True)
    ]
    ledger.append(answers, [])


def test_every_id_is_in_one_cluster_of_the_minimum_size_and_again_in_the_same(
    config: RekiConfig, workspace: Workspace, reporter: Reporter
) -> None:
    before = {side: clusters_of(workspace, side) for side in SIDES}
    result = cluster.run(config, workspace, reporter)
    assert result.rows_in == result.rows_out == 100
    for side in SIDES:
        rows = workspace.read_table(schema.CLUSTERS[side])
        assert rows[ID].to_pylist() == ids_of(workspace, side)
        sizes = rows[CLUSTER_ID].value_counts().to_pylist()
        assert min(entry["counts"] for entry in sizes) >= 4
        assert len(sizes) == result.details[side]["clusters"] > 1
        assert min(rows[SIMILARITY].to_pylist()) > 0
        ids, vectors = read_vectors(workspace.read_table(schema.CLUSTER_VECTORS[side]))
        assert ids == rows[ID].to_pylist()
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
        assert clusters_of(workspace, side) == before[side]


def test_members_share_the_answer_of_their_cluster_and_a_dead_one_falls_back(
    config: RekiConfig, workspace: Workspace, reporter: Reporter
) -> None:
    clusters = {side: clusters_of(workspace, side) for side in SIDES}
    dead = {"users": "u0001", "items": "i0001"}
    texts = {
        (f"{side.removesuffix('s')}_cluster", name): "  " if name == dead[side] else f"Likes {name}"
        for side in SIDES
        for name in sorted(set(clusters[side].values()))
    }
    answer(workspace, texts)
    result = encode.run(config, workspace, reporter)
    assert result.rows_in == result.rows_out == 100
    encoder = TextEncoder(config.encode.model, "main", "cpu", 64)
    for side in SIDES:
        rows = workspace.read_table(schema.REPRESENTATIONS[side])
        ids, vectors = read_vectors(rows)
        assert ids == ids_of(workspace, side)
        names = [clusters[side][key] for key in ids]
        alive = np.array([name != dead[side] for name in names])
        expected = ["cluster" if there else "fallback" for there in alive]
        assert rows[SOURCE].to_pylist() == expected
        direct = encoder.encode([f"Likes {name}" for name in names])
        np.testing.assert_allclose(vectors[alive], direct[alive], atol=1e-5)
        fallback = normalise(direct[alive].mean(axis=0, keepdims=True))[0]
        np.testing.assert_allclose(vectors[~alive], np.tile(fallback, (sum(~alive), 1)), atol=1e-5)
        counts = {"cluster": int(alive.sum()), "fallback": int((~alive).sum())}
        assert result.details["sources"][side] == counts


def test_individual_answers_and_source_texts(
    config: RekiConfig, workspace: Workspace, reporter: Reporter
) -> None:
    texts = {
        (side.removesuffix("s"), key): f"About {key}"
        for side in SIDES
        for key in ids_of(workspace, side)[:-1]
    }
    answer(workspace, texts)
    result = encode.run(config, workspace, reporter)
    assert result.details["sources"]["users"] == {"individual": 39, "fallback": 1}
    assert result.details["sources"]["items"] == {"individual": 59, "fallback": 1}
    assert result.details["dimension"] == 384
    for side in SIDES:
        rows = workspace.read_table(schema.TEXT_REPRESENTATIONS[side])
        ids, vectors = read_vectors(rows)
        assert ids == ids_of(workspace, side)
        assert set(rows[SOURCE].to_pylist()) == {"individual"}
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    _, plain = read_vectors(workspace.read_table(schema.TEXT_REPRESENTATIONS["items"]))
    _, known = read_vectors(workspace.read_table(schema.CLUSTER_VECTORS["items"]))
    # The same item texts as in stage cluster, in other batches.
    np.testing.assert_allclose(plain, known, atol=1e-5)


def test_a_side_without_any_answer_is_refused(
    config: RekiConfig, workspace: Workspace, reporter: Reporter
) -> None:
    answer(workspace, {("item", "m0"): "About m0"})
    with pytest.raises(DataError, match="any of the 40 users"):
        encode.run(config, workspace, reporter)
    assert not workspace.exists("encode")
