"""Stage publish serves the run that validation chose, with vectors for every id."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from rich.console import Console

from reki_ray import schema
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import StageEntry, Workspace
from reki_ray.errors import ConfigError, DataError
from reki_ray.experiments.experiment import start_experiment
from reki_ray.models import artifact as bundles
from reki_ray.models.artifact import ModelBundle, Origin
from reki_ray.retrieval import builder
from reki_ray.retrieval.load import open_candidates
from reki_ray.stages import publish
from reki_ray.stages.pipeline import fingerprints, run_stages, select
from reki_ray.stages.update import publish_arm
from reki_ray.store.soundness import require_finite_scores
from reki_ray.store.version import StoreVersion
from reki_ray.store.versions import VersionStore
from reki_ray.training import selection
from tests.conftest import TinyConfig
from tests.support import s3_server, store_factory
from tests.support.store_factory import ITEM_IDS, REPRESENTATION, USER_IDS

AUCS = {
    ("fair_base", 0): 0.9,
    ("fair_base", 1): 0.8,
    ("reki_c", 0): 0.70,
    ("reki_c", 1): 0.75,
    ("title_text", 0): 0.7,
    ("title_text", 1): 0.7,
    ("reki_c_shuffled", 0): 0.9,
    ("reki_c_shuffled", 1): 0.9,
}


@pytest.fixture
def trained(workspace: Workspace) -> Workspace:
    """A workspace as the earlier stages leave it."""
    workspace.write_table(schema.USERS, store_factory.USERS_TABLE)
    workspace.write_table(schema.ITEMS, store_factory.ITEMS_TABLE)
    workspace.write_table(schema.INTERACTIONS, store_factory.INTERACTIONS_TABLE)
    workspace.write_table(schema.KNOWLEDGE, store_factory.ANSWERS_TABLE)
    store_factory.write_samples(workspace)
    for side, ids in (("users", USER_IDS), ("items", ITEM_IDS)):
        _write_side(workspace, "users" if side == "users" else "items", ids)
    for (arm, seed), auc in AUCS.items():
        folder = f"train/din-{arm}-{seed}"
        workspace.write_json(f"{folder}/metrics.json", {"valid": {"auc": auc}})
        bundles.save(workspace.local_path(folder), _bundle(arm, seed))
    return workspace


def _write_side(workspace: Workspace, side: schema.Side, ids: list[str]) -> None:
    clusters = {
        schema.ID: ids,
        schema.CLUSTER_ID: [f"{side[0]}0000"] * len(ids),
        schema.SIMILARITY: np.ones(len(ids), np.float32),
        schema.METHOD: ["hdbscan"] * len(ids),
    }
    workspace.write_table(schema.CLUSTERS[side], pa.table(clusters))
    for table in (schema.REPRESENTATIONS[side], schema.TEXT_REPRESENTATIONS[side]):
        # The last id has the fallback: nothing is known of it.
        sources = ["cluster"] * (len(ids) - 1) + ["fallback"]
        workspace.write_table(table, _vectors(ids, sources))


def _vectors(ids: list[str], sources: list[str]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"id": name, "factor": "*", "vector": row, "source": source}
            for name, row, source in zip(ids, _r(len(ids)), sources, strict=True)
        ],
        schema=schema.vectors_schema(REPRESENTATION),
    )


def _r(count: int) -> npt.NDArray[np.float32]:
    r = np.random.default_rng(count).normal(size=(count, REPRESENTATION))
    unit: npt.NDArray[np.float32] = (r / np.linalg.norm(r, axis=1, keepdims=True)).astype("f4")
    return unit


def _bundle(arm: str, seed: int) -> ModelBundle:
    made = store_factory.make_bundle(knowledge=arm != "fair_base", seed=seed)
    tables = {
        "fair_base": ("", ""),
        "title_text": ("", schema.TEXT_REPRESENTATIONS["items"].path),
    }.get(arm, (schema.REPRESENTATIONS["users"].path, schema.REPRESENTATIONS["items"].path))
    origin = Origin(arm, seed, *tables)
    return ModelBundle(made.model, made.architecture, made.features, made.history, origin)


def _train(*arms: str) -> dict[str, Any]:
    return {"arms": ["fair_base", *arms], "seeds": [0, 1]}


def test_a_workspace_on_s3_is_published_to_and_scores_on_a_node_with_an_empty_cache(
    trained: Workspace,
    reporter: Reporter,
    tiny_config: TinyConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with s3_server.s3_server() as address:
        s3_server.use(monkeypatch, address)
        remote = Workspace(f"s3://{s3_server.BUCKET}/run")
        remote.filesystem.put(f"{trained.location}/", f"{remote.path('')}", recursive=True)
        config = tiny_config(train=_train("reki_c", "title_text"))
        result = publish.run(config, remote, reporter)
        monkeypatch.setenv("REKI_CACHE", str(tmp_path / "other node"))
        opened = VersionStore("s3://bucket/run/publish").open_served()
        assert result.details["version"] == opened.manifest.version == 1
        require_finite_scores(opened, opened.load_scorer())  # scores its own users and items
        local = publish.run(config, trained, reporter)
        assert local.details["users"] == result.details["users"]


def test_auto_serves_the_best_seed_of_the_knowledge_arm(
    trained: Workspace, reporter: Reporter, tiny_config: TinyConfig
) -> None:
    result = publish.run(tiny_config(train=_train("reki_c", "title_text")), trained, reporter)
    assert result.rows_in == result.rows_out == len(USER_IDS) + len(ITEM_IDS)
    size = result.details.pop("bytes")
    assert size > 0
    assert result.details == {
        "version": 1,
        "arm": "reki_c",
        "seed": 1,
        "users": len(USER_IDS),
        "items": len(ITEM_IDS),
        "dimension": 8,
        "reranker": None,
        "recall": 1.0,  # of 100 candidates among 12 items
        "popular_recall": 1.0,
        "compared": None,
    }


def test_the_stored_vectors_are_hein_of_the_representations(
    trained: Workspace, reporter: Reporter, tiny_config: TinyConfig
) -> None:
    publish.run(tiny_config(train=_train("reki_c")), trained, reporter)
    version = _store(trained).open()
    assert version.users is not None
    assert version.items is not None
    model = version.load_model()
    vectors, sources = version.users.lookup([*USER_IDS, "nobody"])
    np.testing.assert_allclose(vectors[:-1], model.augment_users(_r(len(USER_IDS))), atol=1e-6)
    assert sources == ["cluster"] * (len(USER_IDS) - 1) + ["fallback", "fallback"]
    known = _r(len(ITEM_IDS))[:-1].mean(axis=0, keepdims=True)
    fallback = model.augment_items(known / np.linalg.norm(known))
    np.testing.assert_allclose(version.items.fallback, fallback[0], atol=1e-6)
    texts = [entry.text for entry in version.knowledge("users", USER_IDS[3])]
    assert texts == ["They like action."]


def test_each_publication_is_a_new_version(
    trained: Workspace, reporter: Reporter, tiny_config: TinyConfig
) -> None:
    config = tiny_config(train=_train("reki_c"), publish={"history": 2})
    assert publish.run(config, trained, reporter).details["version"] == 1
    assert publish.run(config, trained, reporter).details["version"] == 2
    profile = _store(trained).open().profile("u0")
    assert profile is not None
    assert profile.item_ids == ("m4", "m5")


def retrieval_files(version: StoreVersion) -> dict[str, bytes]:
    folder = version.folder / "retrieval"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_new_version_of_the_same_model_takes_over_its_towers(
    trained: Workspace, reporter: Reporter, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(train=_train("reki_c"))
    publish.run(config, trained, reporter)
    first = _store(trained).open()
    (trained.local_path("publish") / "CURRENT").unlink()
    publish.run(config, trained, reporter)  # learned again, as nothing is current
    with monkeypatch.context() as changed:
        changed.setattr(builder, "fit", None)
        publish.run(config, trained, reporter)
    for number in (2, 3):
        assert retrieval_files(_store(trained).open(number)) == retrieval_files(first)
    towers = _store(trained).open().folder / "retrieval" / "towers.safetensors"
    store_factory.writable(towers).write_bytes(b"damaged")
    publish.run(config, trained, reporter)
    assert retrieval_files(_store(trained).open()) == retrieval_files(first)
    other = tiny_config(train=_train("reki_c"), publish={"retrieval": {"epochs": 1}})
    publish.run(other, trained, reporter)
    changed_files = retrieval_files(_store(trained).open())
    assert changed_files["items.arrow"] != retrieval_files(first)["items.arrow"]
    assert changed_files["seen.arrow"] == retrieval_files(first)["seen.arrow"]


@pytest.mark.parametrize(
    ("retrieval", "files"),
    [
        ({"kind": "popular"}, ["items.arrow", "retrieval.json", "seen.arrow"]),
        (
            {"exact_below": 0},
            [
                *("index.usearch", "items.arrow", "retrieval.json"),
                "seen.arrow",
                "towers.safetensors",
            ],
        ),
    ],
)
def test_retrieval_is_as_configured(
    trained: Workspace,
    reporter: Reporter,
    tiny_config: TinyConfig,
    retrieval: dict[str, Any],
    files: list[str],
) -> None:
    config = tiny_config(train=_train("reki_c"), publish={"retrieval": retrieval, "history": 1})
    publish.run(config, trained, reporter)
    version = _store(trained).open()
    assert sorted(retrieval_files(version)) == files
    found = open_candidates(version)
    # Of the latest interaction alone the profile knows; the others are seen all the same.
    assert sorted(found.of("u0", [("m5", 4.0)], 12)) == sorted(ITEM_IDS[6:])


def test_without_positive_samples_candidates_are_popular(
    trained: Workspace, reporter: Reporter, tiny_config: TinyConfig
) -> None:
    samples = trained.read_table(schema.SAMPLES["train"])
    labels = pa.array(np.zeros(len(samples), np.int8))
    samples = samples.drop_columns([schema.LABEL]).append_column(schema.LABEL, labels)
    trained.write_table(schema.SAMPLES["train"], samples.select(schema.SAMPLES_SCHEMA.names))
    publish.run(tiny_config(train=_train("reki_c")), trained, reporter)
    assert "towers.safetensors" not in retrieval_files(_store(trained).open())


def test_an_arm_without_knowledge_has_no_vectors(
    trained: Workspace, reporter: Reporter, tiny_config: TinyConfig
) -> None:
    config = tiny_config(train=_train(), publish={"arm": "fair_base"})
    details = publish.run(config, trained, reporter).details
    assert (details["arm"], details["seed"], details["dimension"]) == ("fair_base", 0, 0)
    version = _store(trained).open()
    assert version.users is None
    assert version.knowledge("users", "u0") == []


def test_an_arm_that_knows_items_alone_gives_every_user_the_zero_vector(
    trained: Workspace, reporter: Reporter, tiny_config: TinyConfig
) -> None:
    config = tiny_config(train=_train("title_text"), publish={"arm": "title_text"})
    publish.run(config, trained, reporter)
    version = _store(trained).open()
    assert version.users is not None
    zero = version.load_model().augment_users(np.zeros((1, REPRESENTATION), np.float32))[0]
    vectors, sources = version.users.lookup(["u0", "nobody"])
    np.testing.assert_allclose(vectors, [zero, zero], atol=1e-6)
    assert sources == ["fallback", "fallback"]
    assert version.knowledge("items", "m0") == []


@pytest.mark.parametrize(
    ("arms", "arm", "message"),
    [
        ((), "auto", "no arm with an LLM's knowledge"),
        (("reki_c",), "title_text", "not trained"),
        (("reki_c_shuffled",), "reki_c_shuffled", "placebo"),
    ],
)
def test_arms_that_cannot_be_served_are_refused(
    trained: Workspace, tiny_config: TinyConfig, arms: tuple[str, ...], arm: str, message: str
) -> None:
    config = tiny_config(train=_train(*arms), publish={"arm": arm})
    with pytest.raises(ConfigError, match=message):
        selection.choose_run(config, trained)


def test_a_second_arm_stands_beside_the_version_of_the_run(
    trained: Workspace, tiny_config: TinyConfig, reporter: Reporter
) -> None:
    config = tiny_config(train=_train("reki_c"))
    trained.record("train", StageEntry(fingerprints(config)["train"]))
    run_stages(config, select(only="publish"), reporter)
    before = trained.stages()
    done = publish_arm(config, trained, reporter, "fair_base", promote=False)
    assert done.done == "arm fair_base is published as v2; what is served stays"
    assert done.current == 1
    assert [one.manifest and one.manifest.arm for one in done.versions] == ["reki_c", "fair_base"]
    assert trained.stages() == before
    assert run_stages(config, select(only="publish"), reporter)["publish"].skipped
    assert _store(trained).versions() == [1, 2]
    started = start_experiment(_store(trained).root, "e", {"base": (2, 0.5), "reki": (1, 0.5)})
    assert [part.version for part in started.variants] == [2, 1]
    assert publish_arm(config, trained, reporter, None, promote=True).current == 3
    assert _store(trained).open().manifest.arm == "reki_c"


def test_the_arm_to_compare_with_is_published_beside_the_served_one(
    trained: Workspace, tiny_config: TinyConfig, reporter: Reporter
) -> None:
    config = tiny_config(train=_train("reki_c"), publish={"compare": "fair_base"})
    details = publish.run(config, trained, reporter).details
    assert (details["version"], details["arm"], details["compared"]) == (1, "reki_c", 2)
    store = _store(trained)
    assert store.current() == 1
    other = store.open(2).manifest
    assert (other.arm, other.seed) == ("fair_base", 0)  # its own best seed


def test_an_arm_that_cannot_be_compared_with_does_not_keep_the_version_from_being_served(
    trained: Workspace, tiny_config: TinyConfig
) -> None:
    (trained.local_path("train/din-fair_base-0") / "model.safetensors").write_bytes(b"damaged")
    said = io.StringIO()
    config = tiny_config(train=_train("reki_c"), publish={"compare": "fair_base"})
    reporter = Reporter(console=Console(file=said))
    details = publish.run(config, trained, reporter).details
    assert (details["version"], details["compared"]) == (1, None)
    assert _store(trained).current() == 1
    assert "no version of fair_base to compare with" in said.getvalue()


@pytest.mark.parametrize(
    ("arms", "publish", "message"),
    [
        ((), {}, "no arm with an LLM's knowledge"),
        (("reki_c",), {"arm": "title_text"}, "arm title_text is not trained"),
        (("reki_c",), {"compare": "title_text"}, "arm title_text is not trained"),
        (("reki_c", "reki_c_shuffled"), {"compare": "reki_c_shuffled"}, "placebo"),
    ],
)
def test_arms_that_cannot_be_published_are_refused_before_the_first_stage(
    workspace: Workspace,
    tiny_config: TinyConfig,
    reporter: Reporter,
    arms: tuple[str, ...],
    publish: dict[str, str],
    message: str,
) -> None:
    config = tiny_config(train=_train(*arms), publish=publish)
    with pytest.raises(ConfigError, match=message):
        run_stages(config, select(), reporter)
    assert not workspace.exists()


def test_a_second_arm_needs_a_trained_run_with_this_arm(
    trained: Workspace, tiny_config: TinyConfig, reporter: Reporter
) -> None:
    config = tiny_config(train=_train("reki_c"))
    with pytest.raises(ConfigError, match="needs stage train"):
        publish_arm(config, trained, reporter, "fair_base", promote=False)
    trained.record("train", StageEntry(fingerprints(config)["train"]))
    with pytest.raises(ConfigError, match="arm base is not trained"):
        publish_arm(config, trained, reporter, "base", promote=False)
    assert _store(trained).versions() == []


def test_representations_that_lack_an_id_are_refused(
    trained: Workspace, reporter: Reporter, tiny_config: TinyConfig
) -> None:
    ids = USER_IDS[:-1]
    trained.write_table(schema.REPRESENTATIONS["users"], _vectors(ids, ["cluster"] * len(ids)))
    with pytest.raises(DataError, match="3 representations do not cover the 4 users"):
        publish.run(tiny_config(train=_train("reki_c")), trained, reporter)
    assert _store(trained).versions() == []


def _store(workspace: Workspace) -> VersionStore:
    return VersionStore(Path(workspace.root) / "publish")
