"""Stages train and evaluate on real Ray Train: resume, several workers, output contract."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from reki_ray import schema
from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.errors import DataError, EngineError
from reki_ray.evaluation.comparison import slices
from reki_ray.metrics.classification import auc
from reki_ray.stages import evaluate as evaluation
from reki_ray.stages import train as train_stage
from reki_ray.training import worker
from reki_ray.training.batches import BatchBuilder, encode_dataset
from reki_ray.training.checkpoint import Epoch, RunState
from reki_ray.training.dataset import read_dataset
from reki_ray.training.loop import Schedule, predict
from reki_ray.training.runs import Run, read_bundle
from reki_ray.training.sample_stream import load_dataset
from tests.conftest import TinyConfig
from tests.support.trained_workspace import EVENTS

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

SMALL: dict[str, Any] = {
    "network": {"embedding": 8, "attention": [8], "mlp": [16, 8]},
    "hein": {"hidden": 8, "output": 8, "dedicated_experts": 2},
    "batch_size": 64,
    "epochs": 3,
    "patience": 3,
    "learning_rate": 0.01,
}


def metrics_of(workspace: Workspace, run: str) -> dict[str, Any]:
    content: dict[str, Any] = workspace.read_json(f"train/{run}/metrics.json")
    return content


def test_train_then_evaluate_write_what_the_report_needs(
    filled: Workspace, reporter: Reporter, tiny_config: TinyConfig
) -> None:
    arms = ["base", "fair_base", "title_text", "reki_c", "reki_c_shuffled"]
    config = tiny_config(train={**SMALL, "arms": arms, "epochs": 2, "seeds": [0]})
    result = train_stage.run(config, filled, reporter)
    assert [row["arm"] for row in result.details["runs"]] == arms
    assert result.details["chosen"]["arm"] == "reki_c"
    assert result.details["samples_per_second"] > 0
    assert not filled.exists(".train")
    bundle = read_bundle(filled, Run("din", "reki_c", 0))
    assert (bundle.arm, bundle.history, bundle.uses_knowledge) == ("reki_c", 30, True)
    assert read_bundle(filled, Run("din", "base", 0)).history == 10

    evaluated = evaluation.run(config, filled, reporter)
    entries = {row["arm"]: row for row in filled.read_json("evaluate/metrics.json")["arms"]}
    assert list(entries) == arms
    samples = 3 * (EVENTS - 5)
    assert evaluated.rows_out == samples * len(arms)
    for entry in entries.values():
        assert entry["seeds"] == [0]
        assert entry["auc_ci"][0] <= entry["auc"] <= entry["auc_ci"][1]
        assert set(entry["slices"]) == {
            *("all", "cold_items", "warm_items", "cold_users", "sparse_users", "new_users")
        }
        new = entry["slices"]["new_users"]
        assert new["samples"] == entry["slices"]["all"]["samples"]
        assert new["auc"] != entry["auc"]  # shown 3 past interactions, not all
        assert entry["slices"]["all"]["samples"] == samples
        assert entry["delta_auc"] == pytest.approx(entry["auc"] - entries["fair_base"]["auc"])
    assert entries["fair_base"]["delta_ci"] == [0.0, 0.0]
    predictions = filled.read_table(schema.PREDICTIONS)
    assert len(predictions) == samples * len(arms)


@pytest.mark.slow
def test_backbones_are_compared_each_with_its_own_fair_base(
    filled: Workspace, reporter: Reporter, tiny_config: TinyConfig
) -> None:
    both = {**SMALL, "arms": ["fair_base", "reki_c"], "epochs": 1, "seeds": [0]}
    config = tiny_config(train={**both, "backbones": ["din", "dcnv2"]})
    train_stage.run(config, filled, reporter)
    evaluation.run(config, filled, reporter)
    arms = filled.read_json("evaluate/metrics.json")["arms"]
    assert [(row["backbone"], row["arm"]) for row in arms] == [
        ("din", "fair_base"),
        ("din", "reki_c"),
        ("dcnv2", "fair_base"),
        ("dcnv2", "reki_c"),
    ]
    bases = {row["backbone"]: row["auc"] for row in arms if row["arm"] == "fair_base"}
    for row in arms:
        assert row["delta_auc"] == pytest.approx(row["auc"] - bases[row["backbone"]])
    assert set(filled.read_table(schema.PREDICTIONS)[schema.BACKBONE].to_pylist()) == set(bases)

    trained = metrics_of(filled, "dcnv2-reki_c-0")
    train_stage.run(tiny_config(train=both), filled, reporter)
    assert metrics_of(filled, "dcnv2-reki_c-0") == trained  # not asked for, and kept


def test_rerankers_train_in_the_same_stage_and_are_compared_on_lists(
    filled: Workspace, reporter: Reporter, tiny_config: TinyConfig
) -> None:
    lists = {"epochs": 2, "batch_size": 16, "network": {"hidden": 8, "feed_forward": 8}}
    both = {**SMALL, "arms": ["fair_base", "reki_c", "reki_c_shuffled"], "epochs": 1}
    config = tiny_config(train={**both, "seeds": [0], "rerankers": ["prm"], "rerank": lists})
    result = train_stage.run(config, filled, reporter)
    assert {row["backbone"] for row in result.details["runs"]} == {"din"}
    assert result.details["chosen"]["backbone"] == "din"
    rerankers = result.details["rerankers"]
    assert [row["arm"] for row in rerankers] == ["fair_base", "reki_c", "reki_c_shuffled"]
    metrics = metrics_of(filled, "prm-reki_c-0")
    assert (metrics["reranker"], len(metrics["epochs"])) == ("prm", 2)
    assert metrics["valid"]["ndcg"]["7"] == rerankers[1]["valid_ndcg"]
    bundle = read_bundle(filled, Run("prm", "reki_c", 0, reranks=True))
    assert (bundle.arm, bundle.history, bundle.uses_knowledge) == ("reki_c", 30, True)
    assert filled.exists("train/prm-reki_c-0/model.safetensors")

    evaluation.run(config, filled, reporter)
    content = filled.read_json("evaluate/metrics.json")
    assert [row["arm"] for row in content["arms"]] == both["arms"]
    rows = content["reranking"]
    assert [(row["reranker"], row["arm"]) for row in rows] == [
        ("initial_order", None),
        *(("prm", arm) for arm in both["arms"]),
    ]
    for row in rows:
        assert set(row["ndcg"]) == set(row["map"]) == {"1", "3", "5", "7", "10"}
        assert row["ndcg_7_ci"][0] <= row["ndcg"]["7"] <= row["ndcg_7_ci"][1]
        assert row["lists"] == rows[0]["lists"] > 0
    assert rows[1]["delta_ci"] == [0.0, 0.0]
    gain = rows[2]["ndcg"]["7"] - rows[1]["ndcg"]["7"]
    assert rows[2]["delta_ndcg_7"] == pytest.approx(gain)
    assert [row["control"] for row in content["reranking_controls"]] == ["reki_c_shuffled"]

    trained = filled.local_path("train/din-fair_base-0/metrics.json").stat().st_mtime_ns
    more = {**both, "seeds": [0], "rerankers": [], "rerank": {**lists, "epochs": 9}}
    train_stage.run(
        tiny_config(train=more), filled, reporter
    )  # what rerankers are asked changes no click
    assert filled.local_path("train/din-fair_base-0/metrics.json").stat().st_mtime_ns == trained


@pytest.mark.slow
def test_two_workers_take_as_many_steps_and_see_all_validation_samples(
    filled: Workspace, reporter: Reporter, tiny_config: TinyConfig
) -> None:
    alone = train_stage.run(config_of(tiny_config, workers=1), filled, reporter)
    one = metrics_of(filled, "din-fair_base-0")
    filled.filesystem.rm(filled.path("train"), recursive=True)
    together = train_stage.run(config_of(tiny_config, workers=2), filled, reporter)
    two = metrics_of(filled, "din-fair_base-0")
    # The rate of the last step of an epoch tells how many steps were taken before it.
    assert rates(one) == rates(two)
    assert alone.rows_in == together.rows_in
    dataset = read_dataset(filled)
    bundle = read_bundle(filled, Run("din", "fair_base", 0))
    samples = dataset.samples["valid"]
    encoded = encode_dataset(dataset, bundle.features)
    scores = predict(bundle.model, BatchBuilder(encoded, samples, bundle.history, None))
    assert two["valid"]["auc"] == pytest.approx(auc(samples.labels, scores), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["tensors", "stream"])
def test_failed_group_resumes_from_the_last_epoch(
    filled: Workspace,
    reporter: Reporter,
    tiny_config: TinyConfig,
    failing_once: Path,
    data: str,
) -> None:
    config = config_of(tiny_config, epochs=4, patience=4, max_failures=1, data=data)
    train_stage.run(config, filled, reporter)
    resumed = metrics_of(filled, "din-fair_base-0")
    # Only the epoch whose report was still under way when the worker died is trained again.
    # A checkpoint is kept in the background: on a busy machine a worker that dies may lose two.
    epochs = failing_once.read_text().split()
    assert epochs[:3] == ["1", "2", "3"]
    assert epochs[3:] in (["4"], ["3", "4"], ["2", "3", "4"])
    filled.filesystem.rm(filled.path("train"), recursive=True)
    train_stage.run(config, filled, reporter)
    unbroken = metrics_of(filled, "din-fair_base-0")
    losses = [epoch["loss"] for epoch in unbroken["epochs"]]
    assert [epoch["loss"] for epoch in resumed["epochs"]] == pytest.approx(losses, abs=1e-5)


@pytest.mark.slow
def test_a_run_that_diverges_is_trained_once_and_the_others_go_on(
    filled: Workspace, tiny_config: TinyConfig, every_epoch: Path
) -> None:
    console = Console(file=io.StringIO(), width=200)
    hein = {**SMALL["hein"], "rate": 1e30}  # HEIN alone takes steps out of all bounds
    train = {**SMALL, "hein": hein, "arms": ["title_text", "fair_base"], "seeds": [0], "epochs": 2}
    config = tiny_config(train={**train, "max_failures": 2})
    result = train_stage.run(config, filled, Reporter(console=console))
    assert [one["run"] for one in result.details["diverged"]] == ["din-title_text-0"]
    assert [row["arm"] for row in result.details["runs"]] == ["fair_base"]
    assert every_epoch.read_text().split() == ["1", "2"]  # of fair_base; the other had none
    assert isinstance(console.file, io.StringIO)
    assert "din-title_text-0 diverged in epoch 1: " in console.file.getvalue()
    train_stage.run(config, filled, Reporter(console=console))
    assert every_epoch.read_text().split() == ["1", "2"]  # nothing was trained again


def test_gpus_that_the_cluster_has_not_are_refused_at_once(
    filled: Workspace, reporter: Reporter, tiny_config: TinyConfig
) -> None:
    config = config_of(tiny_config, device="cuda", workers=2)
    with pytest.raises(EngineError, match="2 GPUs needed, the cluster has 0"):
        train_stage.run(config, filled, reporter)


@pytest.mark.slow
def test_two_workers_stream_uneven_files_in_as_many_steps(
    filled: Workspace, reporter: Reporter, tiny_config: TinyConfig
) -> None:
    train = filled.read_table(schema.SAMPLES["train"])
    filled.write_table(schema.SAMPLES["train"], train.slice(0, 23), row_group_rows=7)
    filled.write_table(schema.SAMPLES["train"], train.slice(23), part="b", row_group_rows=101)
    config = config_of(tiny_config, workers=2, epochs=2, data="stream", shuffle_buffer=50)
    result = train_stage.run(config, filled, reporter)
    assert result.details["data"] == "stream"
    assert result.rows_in == 30 * (EVENTS - 5)
    found = metrics_of(filled, "din-fair_base-0")
    steps = -(-len(train) // 2 // (SMALL["batch_size"] // 2))
    schedule = Schedule.of(config.train, steps)
    assert rates(found) == pytest.approx([schedule.rate(steps - 1), schedule.rate(2 * steps - 1)])
    assert 0 <= found["input_wait_share"] <= 1

    evaluation.run(config, filled, reporter)
    streamed = filled.read_json("evaluate/metrics.json")["arms"][0]["slices"]
    held = slices(read_dataset(filled), config.evaluate)
    assert {name: streamed[name]["samples"] for name in held} == {
        name: int(marks.sum()) for name, marks in held.items()
    }
    # What the vocabularies are made of is the same, held or streamed.
    features = load_dataset(config, filled).train_features()
    assert features == read_dataset(filled).train_features()

    stranger = train.set_column(0, schema.USER_ID, pa.array(["nobody"] * len(train)))
    filled.write_table(schema.SAMPLES["train"], stranger, part="c")
    with pytest.raises(DataError, match="user_id 'nobody' is missing from its table"):
        load_dataset(config, filled)


@pytest.mark.slow
def test_finished_runs_are_kept_and_changed_ones_are_trained_again(
    filled: Workspace, reporter: Reporter, tiny_config: TinyConfig
) -> None:
    config = tiny_config(train={**SMALL, "epochs": 1, "seeds": [0, 1], "arms": ["fair_base"]})
    train_stage.run(config, filled, reporter)
    marker = filled.local_path("train/din-fair_base-0/marker")
    marker.write_text("kept")
    filled.filesystem.rm(filled.path("train/din-fair_base-1/metrics.json"))
    train_stage.run(config, filled, reporter)
    assert marker.exists()
    assert filled.exists("train/din-fair_base-1/metrics.json")
    changed = {**SMALL, "epochs": 1, "arms": ["fair_base"], "seeds": [0], "learning_rate": 0.02}
    train_stage.run(tiny_config(train=changed), filled, reporter)
    assert not marker.exists()
    assert filled.exists("train/din-fair_base-1/metrics.json")  # not asked for now, and kept


def config_of(tiny_config: TinyConfig, **train: Any) -> RekiConfig:
    return tiny_config(train={**SMALL, "arms": ["fair_base"], "seeds": [0], **train})


def rates(metrics: dict[str, Any]) -> list[float]:
    return [epoch["learning_rate"] for epoch in metrics["epochs"]]


@pytest.fixture
def every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lists the epochs that workers finish."""
    log = tmp_path / "epochs.txt"
    log.touch()
    report = worker._report

    def report_and_note(run: Run, epoch: Epoch, state: RunState, *, first: bool) -> None:
        with log.open("a") as file:
            file.write(f"{epoch.epoch}\n")
        report(run, epoch, state, first=first)

    def train_runs(settings: dict[str, Any]) -> None:
        worker._report = report_and_note  # inside the worker, see below
        worker.train_runs(settings)

    monkeypatch.setattr(train_stage, "train_runs", train_runs)
    return log


@pytest.fixture
def failing_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets the worker die once, after the report of the third epoch; lists trained epochs."""
    log = tmp_path / "epochs.txt"
    report = worker._report

    def report_and_die(run: Run, epoch: Epoch, state: RunState, *, first: bool) -> None:
        with log.open("a") as file:
            file.write(f"{epoch.epoch}\n")
        report(run, epoch, state, first=first)
        if log.read_text().split() == ["1", "2", "3"]:
            os._exit(1)

    def train_runs(settings: dict[str, Any]) -> None:
        # Patched inside the worker: another process, which imports the module itself.
        worker._report = report_and_die
        worker.train_runs(settings)

    monkeypatch.setattr(train_stage, "train_runs", train_runs)
    return log
