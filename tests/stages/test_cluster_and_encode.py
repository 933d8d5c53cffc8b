"""Stages cluster and encode on a real Ray, over a small synthetic workspace."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reki_ray import schema
from reki_ray.clustering.hdbscan import HdbscanClusterer
from reki_ray.config import ClusterConfig, EncodeConfig, RekiConfig, SideClusterConfig
from reki_ray.core.content_store import digest_texts
from reki_ray.core.progress import Reporter
from reki_ray.core.vectors import normalise, read_factor_vectors, read_vectors
from reki_ray.core.workspace import Workspace
from reki_ray.encoding.encoders import Encoder, build_encoder
from reki_ray.encoding.vector_cache import VectorCache
from reki_ray.errors import DataError
from reki_ray.schema import (
    CLUSTER_ID,
    CREATED_AT,
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
from reki_ray.stages import cluster, encode, ingest
from reki_ray.stages.cluster import map_on_cluster
from reki_ray.stages.encode import encode_source_texts
from tests.support.vector_tables import encoder_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

IDS: Mapping[Side, tuple[schema.Table, str]] = {
    "users": (schema.USERS, schema.USER_ID),
    "items": (schema.ITEMS, schema.ITEM_ID),
}


@pytest.fixture(scope="module")
def stash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves ingest, cluster and encoded user texts for the others."""
    return tmp_path_factory.mktemp("stash") / "workspace"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder(EncodeConfig())


@pytest.fixture
def config(
    tiny_config: Callable[..., RekiConfig], workspace: Workspace, reporter: Reporter, stash: Path
) -> RekiConfig:
    """A configuration whose stages ingest and cluster are done, and all source texts encoded."""
    made = tiny_config()
    if not stash.exists():
        ingest.run(made, workspace, reporter)
        cluster.run(made, workspace, reporter)
        encode_source_texts(made, workspace, "users", reporter, "test: encoding users")
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


def answer(workspace: Workspace, texts: Mapping[tuple[str, str, str], str]) -> None:
    """The output of stage extract: text by kind, subject and factor."""
    rest = {MODEL: "m", REVISION: "1", ENGINE: "scripted", FINISH_REASON: "stop"}
    counts = {PROMPT_TOKENS: 1, GENERATED_TOKENS: 1, CREATED_AT: 0}
    rows = [
        {SUBJECT_KIND: kind, SUBJECT_ID: key, FACTOR: factor, TEXT: text, PROMPT_HASH: key}
        | rest
        | counts
        for (kind, key, factor), text in texts.items()
    ]
    table = pa.Table.from_pylist(rows, schema=schema.KNOWLEDGE_SCHEMA)
    workspace.write_table(schema.KNOWLEDGE, table)


def answer_and_encode(
    workspace: Workspace, encoder: Encoder, texts: Mapping[tuple[str, str, str], str]
) -> None:
    """The same, with the answers encoded here: the stage finds them and starts no actor."""
    answer(workspace, texts)
    distinct = sorted({text for text in texts.values() if text.strip()})
    ledger = VectorCache(workspace, encoder.identity)
    ledger.append(digest_texts(distinct), encoder.encode(distinct))


def ledger_texts(workspace: Workspace) -> int:
    """Rows of the ledger of vectors."""
    files = Path(workspace.root, "encode/ledger").glob("*/*.parquet")
    return sum(pq.read_metadata(path).num_rows for path in files)


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
    config: RekiConfig, workspace: Workspace, reporter: Reporter, encoder: Encoder
) -> None:
    clusters = {side: clusters_of(workspace, side) for side in SIDES}
    dead = {"users": "u0001", "items": "i0001"}
    texts = {
        (f"{side.removesuffix('s')}_cluster", name, "*"): "  "
        if name == dead[side]
        else f"Likes {name}"
        for side in SIDES
        for name in sorted(set(clusters[side].values()))
    }
    answer_and_encode(workspace, encoder, texts)
    result = encode.run(config, workspace, reporter)
    assert result.rows_in == result.rows_out == 100
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
    config: RekiConfig, workspace: Workspace, reporter: Reporter, encoder: Encoder
) -> None:
    texts = {
        (side.removesuffix("s"), key, "*"): f"About {key}"
        for side in SIDES
        for key in ids_of(workspace, side)[:-1]
    }
    answer_and_encode(workspace, encoder, texts)
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
    answer(workspace, {("item", "m0", "*"): "About m0"})
    with pytest.raises(DataError, match="any of the 40 users"):
        encode.run(config, workspace, reporter)
    assert not workspace.has_table(schema.REPRESENTATIONS["users"])
    assert not workspace.exists(".scratch-texts")


def test_the_answer_of_a_subject_counts_before_that_of_its_cluster_and_factors_are_joined(
    config: RekiConfig, workspace: Workspace, reporter: Reporter, encoder: Encoder
) -> None:
    users, items = (clusters_of(workspace, side) for side in SIDES)
    answer_and_encode(
        workspace,
        encoder,
        {
            # The name of a cluster is no user, whoever is called like it.
            ("user", users["u0"], "*"): "about nobody",
            ("user_cluster", users["u0"], "*"): "about the cluster",
            ("user", "u0", "taste"): "slow films",
            ("user", "u0", "era"): "the seventies",
            ("item_cluster", items["m0"], "*"): "about films",
        },
    )
    joined = "the seventies\nslow films"
    VectorCache(workspace, encoder.identity).append(
        digest_texts([joined]), encoder.encode([joined])
    )
    encode.run(config, workspace, reporter)
    rows = workspace.read_table(schema.REPRESENTATIONS["users"])
    ids, vectors = read_vectors(rows)
    found = dict(zip(ids, vectors, strict=True))
    own, shared = encoder.encode([joined, "about the cluster"])
    np.testing.assert_allclose(found["u0"], own, atol=1e-5)
    neighbour = next(key for key, name in users.items() if name == users["u0"] and key != "u0")
    np.testing.assert_allclose(found[neighbour], shared, atol=1e-5)
    assert rows[SOURCE].to_pylist()[ids.index("u0")] == "individual"


def test_factors_of_an_answer_are_kept_apart_where_that_is_asked_for(
    config: RekiConfig, workspace: Workspace, reporter: Reporter, encoder: Encoder
) -> None:
    divided = config.model_copy(update={"encode": EncodeConfig(by_factor=True)})
    users, items = (clusters_of(workspace, side) for side in SIDES)
    answer_and_encode(
        workspace,
        encoder,
        {
            ("user", "u0", "taste"): "slow films",
            ("user", "u0", "era"): "the seventies",
            ("user_cluster", users["u1"], "era"): "the nineties",
            ("item_cluster", items["m0"], "*"): "about films",
        },
    )
    encode.run(divided, workspace, reporter)
    found = read_factor_vectors(workspace.read_table(schema.REPRESENTATIONS["users"]))
    assert found.factors == ("era", "taste")
    vectors = dict(zip(found.ids, found.vectors.reshape(len(found.ids), 2, -1), strict=True))
    seventies, slow, nineties = encoder.encode(["the seventies", "slow films", "the nineties"])
    np.testing.assert_allclose(vectors["u0"], [seventies, slow], atol=1e-5)
    shared = next(key for key, name in users.items() if name == users["u1"] and key != "u0")
    np.testing.assert_allclose(vectors[shared], [nineties, 0 * nineties], atol=1e-5)
    of_items = read_factor_vectors(workspace.read_table(schema.REPRESENTATIONS["items"]))
    assert of_items.factors == ("*",)


@pytest.mark.slow
def test_texts_are_encoded_once_a_workspace_and_tables_say_by_what(
    config: RekiConfig, workspace: Workspace, reporter: Reporter
) -> None:
    # Stage cluster has encoded the item texts, the fixture those of users.
    assert ledger_texts(workspace) == 100
    kinds = {
        "user_cluster": clusters_of(workspace, "users"),
        "item_cluster": clusters_of(workspace, "items"),
    }
    texts = {
        (kind, name, "*"): f"Likes {name}"
        for kind, names in kinds.items()
        for name in sorted(set(names.values()))
    }
    answer(workspace, texts)
    details = encode.run(config, workspace, reporter).details
    assert (details["texts_found"], details["texts_encoded"]) == (100, len(texts))
    assert details["texts"] == 100 + len(texts) == ledger_texts(workspace)
    expected = {"backend": "sentence_transformers", "model": "packaged:all-minilm-l6-v2"}
    assert expected.items() <= details.items()
    for tables in (schema.REPRESENTATIONS, schema.TEXT_REPRESENTATIONS, schema.CLUSTER_VECTORS):
        for table in tables.values():
            said = encoder_of(workspace.read_table(table))
            assert said == {
                key: details[key] for key in ("backend", "model", "revision", "identity")
            }
    before = {side: workspace.read_table(schema.REPRESENTATIONS[side]) for side in SIDES}
    # One answer changes: one text is encoded.
    answer(workspace, {**texts, next(iter(texts)): "Changed its mind"})
    details = encode.run(config, workspace, reporter).details
    assert (details["texts_found"], details["texts_encoded"]) == (100 + len(texts) - 1, 1)
    after = {side: workspace.read_table(schema.REPRESENTATIONS[side]) for side in SIDES}
    assert after["items"].equals(before["items"])
    assert not after["users"].equals(before["users"])


def test_a_large_side_is_written_in_parts_that_read_as_one_table(
    config: RekiConfig, workspace: Workspace, reporter: Reporter, encoder: Encoder
) -> None:
    items = workspace.read_table(schema.ITEMS)
    for number, start in enumerate(range(0, 60, 25)):
        workspace.write_table(schema.ITEMS, items.slice(start, 25), part=f"part-{number:05d}")
    clusters = {side: clusters_of(workspace, side) for side in SIDES}
    answer_and_encode(
        workspace,
        encoder,
        {
            ("user_cluster", clusters["users"]["u0"], "*"): "Likes slow films",
            ("item_cluster", clusters["items"]["m0"], "*"): "Is a slow film",
            ("item_cluster", clusters["items"]["m1"], "*"): "Is a fast film",
        },
    )
    encode.run(config, workspace, reporter)
    rows = workspace.read_table(schema.REPRESENTATIONS["items"])
    ids, vectors = read_vectors(rows)
    assert len(workspace.parts(schema.REPRESENTATIONS["items"])) == 3
    assert ids == items[schema.ITEM_ID].to_pylist()
    known = np.array([source == "cluster" for source in rows[SOURCE].to_pylist()])
    assert 0 < known.sum() < 60
    # The mean is that of all parts.
    mean = normalise(vectors[known].mean(axis=0, keepdims=True))[0]
    np.testing.assert_allclose(vectors[~known], np.tile(mean, (sum(~known), 1)), atol=1e-5)


@pytest.mark.slow
def test_another_encoder_of_another_dimension_replaces_the_tables(
    tiny_config: Callable[..., RekiConfig],
    config: RekiConfig,
    workspace: Workspace,
    reporter: Reporter,
    encoder: Encoder,
) -> None:
    clusters = {side: clusters_of(workspace, side) for side in SIDES}
    answer_and_encode(
        workspace,
        encoder,
        {
            ("user_cluster", clusters["users"]["u0"], "*"): "Likes slow films",
            ("item_cluster", clusters["items"]["m0"], "*"): "Is a slow film",
        },
    )
    encode.run(config, workspace, reporter)
    paper = tiny_config(
        encode={"backend": "hidden_states", "model": "packaged:smollm2-135m-instruct"}
    )
    details = encode.run(paper, workspace, reporter).details
    assert (details["dimension"], details["texts_found"]) == (576, 0)
    for tables in (schema.REPRESENTATIONS, schema.TEXT_REPRESENTATIONS):
        for side in SIDES:
            rows = workspace.read_table(tables[side])
            ids, vectors = read_vectors(rows)
            assert ids == ids_of(workspace, side)
            assert vectors.shape[1] == 576
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
            assert encoder_of(rows)["backend"] == "hidden_states"
    # Back again costs nothing: the old vectors are still there.
    assert encode.run(config, workspace, reporter).details["texts_encoded"] == 0


def test_parts_are_clustered_on_the_cluster_as_they_are_here() -> None:
    config = ClusterConfig(part_rows=200)
    random = np.random.default_rng(0)
    vectors = normalise(random.normal(size=(6, 24))[random.integers(0, 6, 1000)])
    vectors = normalise(vectors + random.normal(scale=0.1, size=vectors.shape))
    here, there = (
        HdbscanClusterer(config, SideClusterConfig(), map_parts).fit(vectors)
        for map_parts in (map, map_on_cluster)
    )
    np.testing.assert_array_equal(here, there)
    assert len(np.unique(here)) > 1


def test_own_and_cluster_knowledge_are_blended_by_activity(
    config: RekiConfig, workspace: Workspace, reporter: Reporter, encoder: Encoder
) -> None:
    blend = config.model_copy(
        update={
            "extract": config.extract.model_copy(update={"mode": "blend"}),
            "encode": config.encode.model_copy(update={"blend_events": 2.0}),
        }
    )
    users, items = (clusters_of(workspace, side) for side in SIDES)
    texts = {
        ("user_cluster", users["u0"], "*"): "about the cluster",
        ("user", "u0", "*"): "slow films of the seventies",
        ("item_cluster", items["m0"], "*"): "about films",
    }
    answer_and_encode(workspace, encoder, texts)
    encode.run(blend, workspace, reporter)
    rows = workspace.read_table(schema.REPRESENTATIONS["users"])
    found = dict(zip(*read_vectors(rows), strict=True))
    own, shared = encoder.encode(["slow films of the seventies", "about the cluster"])
    cuts = workspace.read_table(schema.CUTS).to_pylist()
    (seen,) = [row[schema.CUT] for row in cuts if row[schema.USER_ID] == "u0"]
    weight = seen / (seen + 2)
    mixed = normalise((weight * own + (1 - weight) * shared)[None])[0]
    np.testing.assert_allclose(found["u0"], mixed, atol=1e-5)
    neighbour = next(key for key, name in users.items() if name == users["u0"] and key != "u0")
    np.testing.assert_allclose(found[neighbour], shared, atol=1e-5)
    sources = dict(zip(rows[ID].to_pylist(), rows[SOURCE].to_pylist(), strict=True))
    assert (sources["u0"], sources[neighbour]) == ("individual", "cluster")
    assert "fallback" in sources.values()
