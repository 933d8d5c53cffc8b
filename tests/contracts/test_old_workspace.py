"""Workspaces, versions, configurations and logs of an earlier release still work, without a rerun.

`write_old_workspace` made the archive with the release before the modules moved.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from typer.testing import CliRunner

from deployments.graph import build_app, build_fused_app
from reki_ray.cli.main import app
from reki_ray.config import load_config
from reki_ray.core.content_store import digest_texts
from reki_ray.core.imports import load as import_path
from reki_ray.core.tables import ENTITIES, row_groups
from reki_ray.core.workspace import REPORT_HTML, REPORT_JSON, Workspace
from reki_ray.encoding.encoders import build_encoder, identify
from reki_ray.encoding.shards import knowledge_of, source_texts
from reki_ray.encoding.vector_cache import VectorCache
from reki_ray.errors import ConfigError
from reki_ray.events.log import EventReader
from reki_ray.events.paths import OnlineFolders
from reki_ray.experiments.experiment import load_experiment
from reki_ray.experiments.exposures import ExposureReader
from reki_ray.extraction.answer_cache import AnswerCache
from reki_ray.extraction.answer_cache import digests_of as prompt_digests
from reki_ray.extraction.plan_table import PLAN
from reki_ray.extraction.planner import prompting
from reki_ray.extraction.shards import cut_into_shards, load
from reki_ray.extraction.subjects import Subjects
from reki_ray.schema import PREDICTIONS, PROMPT_HASH, SCORE, SIDES, SUBJECT_ID, SUBJECT_KIND
from reki_ray.stages.pipeline import fingerprints
from reki_ray.store.versions import VersionStore
from reki_ray.training.runs import Run, read_bundle
from tests.contracts.write_old_workspace import (
    ARCHIVE,
    BLEND,
    BLEND_WORKSPACE,
    CONFIG,
    EXPECTED,
    HALF,
    WORKSPACE,
    assignments,
    describe,
    identities,
)

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = ("ingest", "cluster", "extract", "encode", "train", "publish", "evaluate", "serve")
COLUMNS = {
    "ingest/interactions": "user_id item_id timestamp rating label",
    "ingest/items": "item_id title attributes text image",
    "ingest/users": "user_id attributes text image",
    "ingest/cuts": "user_id cut",
    "ingest/samples/train": "user_id item_id timestamp label position",
    "ingest/samples/valid": "user_id item_id timestamp label position",
    "ingest/samples/test": "user_id item_id timestamp label position",
    "ingest/quarantine": "table location reason raw",
    "cluster/users": "id cluster_id similarity method",
    "cluster/items": "id cluster_id similarity method",
    "extract/knowledge": "subject_kind subject_id factor text prompt_hash model revision engine "
    "prompt_tokens generated_tokens finish_reason created_at",
    "encode/users": "id factor vector source",
    "encode/items": "id factor vector source",
    "evaluate/predictions": "backbone arm seed user_id item_id label score",
}
REPORT = {
    "": "dataset stages extraction clustering training arms controls published serving machine "
    "versions config reranking reranking_controls",
    "dataset": "name users items interactions samples",
    "stages": "name seconds rows_in rows_out dead skipped",
    "extraction": "engine model mode prompts prompt_tokens generated_tokens tokens_per_second "
    "cache_hits dead answers",
    "arms": "arm backbone seeds auc auc_ci logloss gauc delta_auc delta_ci slices calibration",
    "serving": "candidates requests p50_ms p99_ms requests_per_second",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The old project's folder, as the working directory; nothing starts Ray in it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("work that is done was to be done again: Ray was started")

    monkeypatch.setattr(ray, "init", refused)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def workspace(project: Path) -> Workspace:
    return Workspace(WORKSPACE)


@pytest.fixture
def store(project: Path) -> VersionStore:
    return VersionStore(project / WORKSPACE / "publish")


def reki(*arguments: str) -> Any:
    """JSON that a command prints."""
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def expected() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(EXPECTED).read_text(encoding="utf-8"))
    return content


def require_close(found: Any, wanted: Any, what: str) -> None:
    """Another processor adds up in another order."""
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=what)


# --- the run -------------------------------------------------------------------------------------


def test_status_reads_an_old_workspace(workspace: Workspace) -> None:
    found = reki("status", "--workspace", WORKSPACE)
    assert [stage["name"] for stage in found["stages"]] == [*STAGES, "report"]
    assert all(stage["done"] for stage in found["stages"])
    assert found["report"] == f"{workspace.location}/{REPORT_HTML}"
    found = reki("status", "-c", BLEND)
    assert [stage["name"] for stage in found["stages"] if stage["done"]] == list(STAGES[:6])


@pytest.mark.usefixtures("project")
def test_a_rerun_finds_every_stage_unchanged() -> None:
    for config in (CONFIG, BLEND):
        loaded = load_config(config)
        done = Workspace(loaded.root).stages()
        wanted = fingerprints(loaded)
        found = {name: entry.fingerprint == wanted[name] for name, entry in done.items()}
        assert found == dict.fromkeys(done, True)


def test_a_rerun_renders_the_report_alone(workspace: Workspace) -> None:
    old = workspace.read_json(REPORT_JSON)
    page = Path(WORKSPACE, REPORT_HTML)
    page.unlink()
    new = reki("run", "-c", CONFIG)
    assert [stage["name"] for stage in new["stages"] if stage["skipped"]] == list(STAGES)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    for content in (old, new):
        for part, names in REPORT.items():
            found = content[part] if part else content
            assert set(names.split()) <= set(found[0] if isinstance(found, list) else found), part
    assert new["arms"] == old["arms"]
    assert _holds(new["config"], old["config"])


def _holds(new: Any, old: Any) -> bool:
    """Whether a tree has all values of an older one; keys may have been added."""
    if isinstance(old, dict):
        return all(key in new and _holds(new[key], value) for key, value in old.items())
    return bool(new == old)


@pytest.mark.parametrize("path", COLUMNS)
def test_a_table_has_its_columns(project: Path, path: str) -> None:
    parts = sorted(Path(WORKSPACE, path).glob("*.parquet"))
    assert parts
    assert all(pq.read_schema(part).names == COLUMNS[path].split() for part in parts)


# --- caches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CONFIG, BLEND])
def test_every_prompt_is_rendered_as_before_and_answered(project: Path, name: str) -> None:
    config = load_config(name)
    old = Workspace(config.root)
    wording = prompting(config, old)
    rendered = {}
    for shard in cut_into_shards(old, config.extract.mode):
        for prompt in Subjects(load(old, shard), wording.renderer, config.prompts):
            key = (prompt.subject_kind, prompt.subject_id)
            rendered[key] = wording.prompt_keys.of(prompt.subject_kind, prompt.body)
    plan = old.read_table(PLAN)
    asked = {
        (row[SUBJECT_KIND], row[SUBJECT_ID]): row[PROMPT_HASH]
        for row in plan.select([SUBJECT_KIND, SUBJECT_ID, PROMPT_HASH]).to_pylist()
    }
    assert asked.items() <= rendered.items()
    assert len(asked) >= 4
    ledger = AnswerCache(old)
    assert (ledger.index().find(prompt_digests(plan[PROMPT_HASH])) >= 0).all()
    assert not len(ledger.failures())


@pytest.mark.parametrize("name", [CONFIG, BLEND])
def test_every_text_has_its_vector(project: Path, name: str) -> None:
    config = load_config(name)
    old = Workspace(config.root)
    texts: list[str] = []
    for side in SIDES:
        for group in row_groups(old, ENTITIES[side][0]):
            ids, sources = source_texts(old, side, group, config.prompts)
            known = knowledge_of(old, side, ids, by_factor=config.encode.by_factor)
            texts += sources
            texts += [text for answer in known.answers if answer for text in answer.values()]
    ledger = VectorCache(old, identify(config.encode))
    index, digests = ledger.index(), digest_texts(texts)
    assert (index.find(digests) >= 0).all()
    vectors = build_encoder(config.encode).encode(texts)
    require_close(ledger.vectors(index, digests), vectors, "vectors")


@pytest.mark.usefixtures("project")
def test_stages_answers_and_vectors_of_the_demo_keep_their_names() -> None:
    assert identities() == expected()["identities"]


# --- trained models ------------------------------------------------------------------------------


def test_trained_runs_are_finished_and_are_kept(workspace: Workspace) -> None:
    files = [path for path in Path(WORKSPACE, "train").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    assert len(before) == 9 * 3
    found = reki("train", "-c", CONFIG, "--force", "train")
    assert found["stages"][STAGES.index("train")]["skipped"] is False
    assert {path: path.read_bytes() for path in files} == before


def test_trained_runs_score_as_before(workspace: Workspace) -> None:
    old = workspace.read_table(PREDICTIONS)
    reki("evaluate", "-c", CONFIG, "--force", "evaluate")
    new = workspace.read_table(PREDICTIONS)
    assert new.drop_columns([SCORE]) == old.drop_columns([SCORE])
    require_close(new[SCORE].to_numpy(), old[SCORE].to_numpy(), "scores")
    assert set(old["backbone"].to_pylist()) == {"din", "dcnv2"}
    assert read_bundle(workspace, Run("din", "base", 0)).uses_knowledge is False
    assert read_bundle(workspace, Run("prm", "reki_c", 0, reranks=True)).uses_knowledge


# --- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number"),
    [*((WORKSPACE, number) for number in range(1, 6)), (BLEND_WORKSPACE, 1)],
)
def test_a_version_says_what_it_said(project: Path, name: str, number: int) -> None:
    wanted = expected()["versions"][name][str(number)]
    opened = VersionStore(Path(name, "publish")).open(number)
    found = json.loads(json.dumps(describe(opened)))
    assert found["facts"] == wanted["facts"]
    assert found["numbers"].keys() == wanted["numbers"].keys()
    for key, numbers in wanted["numbers"].items():
        require_close(found["numbers"][key], numbers, key)


def test_versions_are_promoted_and_rolled_back(store: VersionStore) -> None:
    current = expected()["current"][WORKSPACE]
    found = reki("versions", "-c", CONFIG)
    assert (found["current"], store.current()) == (current, current)
    assert [one["version"] for one in found["versions"]] == store.versions() == [1, 2, 3, 4, 5]
    for number in store.versions():
        reki("promote", str(number), "-c", CONFIG)
        assert store.current() == number
        assert store.open_served().manifest.version == number
    assert reki("rollback", "-c", CONFIG)["current"] == 4


def test_a_delta_is_compacted(store: VersionStore) -> None:
    before = describe(store.open(4))
    reki("compact", "4", "-c", CONFIG)
    opened = store.open(6)
    assert opened.manifest.base is None
    after = describe(opened)
    before["facts"]["sizes"][2] = 1
    assert after["facts"] == before["facts"]


def test_an_old_run_publishes_further_versions(store: VersionStore) -> None:
    found = reki("publish", "-c", CONFIG, "--arm", "fair_base", "--no-promote")
    assert [one["version"] for one in found["versions"]] == [1, 2, 3, 4, 5, 6]
    assert store.open(6).profile("u91") is not None  # of the round of `reki update`
    done = reki("update", "-c", CONFIG)
    assert (done["changed"], done["version"]) == (False, 5)


# --- logs and experiments ------------------------------------------------------------------------


def test_events_and_exposures_are_read(store: VersionStore) -> None:
    folders = OnlineFolders.beside(store.root)
    events, exposures = EventReader(folders.events), ExposureReader(folders.exposures)
    found = list(events.read())
    assert len(found) == 15
    assert (found[-1].user_id, found[-1].rating, found[0].request_id) == ("ü 39", 4.5, "r0")
    assert [one.request_id for one in exposures.read()] == [f"r{n}" for n in range(40)]
    assert (events.damaged, exposures.damaged) == (0, 0)


def test_an_experiment_goes_on(store: VersionStore) -> None:
    experiment = load_experiment(store.root)
    assert experiment is not None
    assert assignments(experiment) == expected()["assignments"]
    found = reki("ab", "first", "-c", CONFIG)
    assert [one["name"] for one in found["variants"]] == ["base", "reki"]
    assert sum(one["users"] for one in found["variants"]) == 40
    assert sum(one["clicks"] for one in found["variants"]) == 14
    assert found["unmatched_clicks"] == 0
    assert reki("experiment", "stop", "-c", CONFIG)["name"] == "first"
    assert load_experiment(store.root, "first") is not None


# --- configurations ------------------------------------------------------------------------------


def test_old_configurations_are_read(project: Path) -> None:
    config = load_config(CONFIG)
    assert config.train.of("din").learning_rate == 0.005
    assert config.train.of("din").network.mlp == (6,)
    assert config.serve.app == "deployments.graph:build_app"
    assert load_config(HALF).publish.dtype == "float16"
    found = sorted(Path("configs").glob("*.yaml"))
    assert [load_config(path).name for path in found if path.is_file()]
    demo = load_config("configs/movielens-100k.yaml")
    assert demo.extract.engine.model.endswith(":smollm2-135m-instruct")


def test_a_wrong_key_is_still_an_error(project: Path) -> None:
    Path("wrong.yaml").write_text(Path(CONFIG).read_text(encoding="utf-8") + "sever: {}\n")
    with pytest.raises(ConfigError, match="sever"):
        load_config("wrong.yaml")


def test_applications_keep_their_import_paths() -> None:
    assert import_path("deployments.graph:build_app") is build_app
    assert import_path("deployments.graph:build_fused_app") is build_fused_app
