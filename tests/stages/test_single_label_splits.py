"""Splits of a single label, and runs that diverge, from training to the report."""

from __future__ import annotations

import io
import json
from queue import Queue
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.console import Console

from reki_ray.cli.views.run_report import report_text
from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import REPORT_HTML, REPORT_JSON, StageEntry, Workspace
from reki_ray.errors import ConfigError, DataError, StoreError
from reki_ray.evaluation import predictions, report
from reki_ray.models import artifact as bundles
from reki_ray.schema import Split
from reki_ray.stages import evaluate as evaluation
from reki_ray.stages import publish as publication
from reki_ray.stages import report as report_stage
from reki_ray.stages import train as train_stage
from reki_ray.training import loop, worker
from reki_ray.training.arms import read_representations
from reki_ray.training.checkpoint import Divergence
from reki_ray.training.dataset import read_dataset
from reki_ray.training.runs import Run, read_bundle
from reki_ray.training.selection import choose_run
from tests.conftest import TinyConfig
from tests.support import trained_workspace

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {
    "network": {"embedding": 8, "attention": [8], "mlp": [16, 8]},
    "hein": {"hidden": 8, "output": 8, "dedicated_experts": 2},
    "arms": ["fair_base", "title_text"],
    "batch_size": 64,
    "epochs": 2,
    "learning_rate": 0.01,
}
LISTS = {"epochs": 1, "batch_size": 16, "network": {"hidden": 8, "feed_forward": 8}}
EARLIER: dict[str, dict[str, Any]] = {
    "ingest": {
        "dataset": {
            "name": "tiny",
            "users": 30,
            "items": 40,
            "interactions": 600,
            "samples": {"train": 360, "valid": 45, "test": 45},
        }
    },
    "cluster": {side: {"clusters": 1, "size_list": [30]} for side in ("users", "items")},
    "extract": dict.fromkeys(report._EXTRACTION_KEYS, 7),
    "serve": {
        **dict.fromkeys(("candidates", "p50_ms", "p99_ms", "requests_per_second"), 3.0),
        "latencies_ms": [1.0, 2.0],
        "example": {
            "request": {"user_id": "u01", "candidates": ["m01"]},
            "response": {"scores": [{"item_id": "m01", "score": 0.5}]},
        },
    },
}


class _Alone(loop.Workers):
    device = torch.device("cpu")


def train(
    workspace: Workspace, config: RekiConfig, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], list[Any]]:
    """What stage train does, in this process and without Ray.

    Returns:
        The stage's details, and what its worker told of its runs.
    """
    dataset = read_dataset(workspace)
    ids = dataset.user_ids, dataset.item_ids
    vectors = {arm: read_representations(workspace, arm, *ids) for arm in config.train.arms}
    runs = train_stage._identify(config.train, dataset, vectors)
    data = worker.TrainingData.of(dataset, vectors, config.train)
    told: Queue[Any] = Queue()
    task = worker.WorkerTask(workspace.location, config.train, runs, [], cast(Any, told))
    monkeypatch.setattr(worker, "_report", lambda *arguments, **named: None)
    for run in runs:
        worker._train_run(run, task, data, cast(Any, _Alone()), None)
    details = train_stage._details(workspace, runs, streamed=False)
    return details, [told.get_nowait() for _ in range(told.qsize())]


def whole_run(
    workspace: Workspace, config: RekiConfig, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], str]:
    """Train, publish, evaluate, report; returns report.json and what the terminal shows."""
    reporter = Reporter(workspace, quiet=True)
    details, _ = train(workspace, config, monkeypatch)
    published = publication.run(config, workspace, reporter).details
    evaluation.run(config, workspace, reporter)
    for name, found in {**EARLIER, "train": details, "publish": published}.items():
        workspace.record(name, StageEntry("f", seconds=1.0, details=found))
    report_stage.run(config, workspace, reporter)
    content = workspace.read_json(REPORT_JSON)
    json.dumps(content, allow_nan=False)
    stream = io.StringIO()
    Console(file=stream, width=200).print(report_text(content, workspace))
    return content, stream.getvalue()


@pytest.mark.parametrize(
    "single",
    [
        {"valid": 1},
        {"valid": 0},
        {"test": 0},
        {"train": 1, "valid": 1, "test": 1},
        {"train": 0, "valid": 0, "test": 0},
    ],
    ids=str,
)
def test_single_labels_leave_figures_out_and_nothing_else(
    workspace: Workspace,
    tiny_config: TinyConfig,
    monkeypatch: pytest.MonkeyPatch,
    single: dict[Split, int],
) -> None:
    trained_workspace.fill(workspace, labels_of=single)
    liked = 0 not in single.values()
    settings = {**SMALL, "seeds": [0, 1], "rerank": LISTS, "rerankers": ["prm"] if liked else []}
    config = tiny_config(train=settings, publish={"arm": "title_text"})
    content, shown = whole_run(workspace, config, monkeypatch)
    for entry in content["arms"]:
        measured = "test" not in single
        for name in ("auc", "auc_ci", "gauc", "delta_auc", "delta_ci"):
            assert (entry[name] is not None) == measured, name
        assert entry["logloss"] is not None
    assert ("ahead" not in shown) or "test" not in single
    assert workspace.local_path(REPORT_HTML).stat().st_size > 10_000
    runs = {run["seed"]: run for run in workspace.stages()["train"].details["runs"]}
    assert (runs[0]["valid_auc"] is None) == ("valid" in single)
    if "valid" in single:  # the smallest loss is served
        losses = {
            seed: workspace.read_json(f"train/din-title_text-{seed}/metrics.json")["valid"]
            for seed in (0, 1)
        }
        best = min((0, 1), key=lambda seed: losses[seed]["logloss"])
        assert content["published"]["seed"] == best


# --- divergence ----------------------------------------------------------------------------------


def test_an_arm_that_diverges_has_no_result_and_the_others_go_on(
    filled: Workspace, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    hein = {**SMALL["hein"], "rate": 1e30}  # HEIN alone takes steps out of all bounds
    settings = {**SMALL, "hein": hein, "seeds": [0, 1]}
    config = tiny_config(train=settings, publish={"arm": "fair_base"})
    _, told = train(filled, config, monkeypatch)
    ends = {name: news for name, news in told if isinstance(news, Divergence)}
    assert set(ends) == {"din-title_text-0", "din-title_text-1"}
    assert "diverged in epoch 1: " in str(ends["din-title_text-0"])
    assert not filled.exists("train/din-title_text-0/model.safetensors")

    content, shown = whole_run(filled, config, monkeypatch)
    entries = {entry["arm"]: entry for entry in content["arms"]}
    assert entries["title_text"]["auc"] is None
    assert entries["title_text"]["diverged"] == [0, 1]
    assert entries["fair_base"]["seeds"] == [0, 1]
    assert entries["fair_base"]["auc"] is not None
    assert "title_text diverged with seed 0, 1" in shown
    assert content["published"]["arm"] == "fair_base"
    with pytest.raises(ConfigError, match="all runs of title_text diverged"):
        choose_run(tiny_config(train=settings, publish={"arm": "title_text"}), filled)


def test_a_seed_that_diverges_is_neither_compared_nor_served(
    filled: Workspace, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse_reply = loop.Trainer._not_finite

    def broken(self: loop.Trainer, loss: float, scores: np.ndarray) -> str:
        of_text = self._model.hein is not None and self._seed == 1 and bool(self.epochs)
        return parse_reply(self, loss, np.full_like(scores, np.nan) if of_text else scores)

    monkeypatch.setattr(loop.Trainer, "_not_finite", broken)
    config = tiny_config(train={**SMALL, "seeds": [0, 1]}, publish={"arm": "title_text"})
    content, shown = whole_run(filled, config, monkeypatch)
    entries = {entry["arm"]: entry for entry in content["arms"]}
    assert entries["title_text"]["diverged"] == [1]
    assert {tuple(entry["seeds"]) for entry in entries.values()} == {(0,)}
    assert "validation scores are not finite" in json.dumps(filled.stages()["train"].details)
    assert "over users and items, of one seed" in shown
    assert content["published"]["seed"] == 0
    metrics = filled.read_json("train/din-title_text-1/metrics.json")
    assert metrics["diverged"]["epoch"] == 2
    assert len(metrics["epochs"]) == 1


def test_a_stage_whose_runs_all_diverged_fails_with_a_message(
    filled: Workspace, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SMALL, "learning_rate": 1e30, "gradient_clip": 1e30, "seeds": [0]}
    with pytest.raises(ConfigError, match="all runs diverged: din-fair_base-0 in epoch 1"):
        train(filled, tiny_config(train=settings), monkeypatch)


@pytest.mark.parametrize("where", ["loss", "scores", "weights"])
def test_whatever_is_not_finite_ends_the_run_after_its_epoch(
    filled: Workspace,
    tiny_config: TinyConfig,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    epochs: list[int] = []

    def spoil(self: loop.Trainer, number: int) -> tuple[float, float, float]:
        epochs.append(number)
        loss, seconds, waited = train_epoch(self, number)
        if where == "weights":
            with torch.no_grad():
                next(iter(self._model.backbone.parameters())).view(-1)[0] = float("inf")
        return float("nan") if where == "loss" else loss, seconds, waited

    train_epoch, predict = loop.Trainer._train_epoch, loop.predict
    monkeypatch.setattr(loop.Trainer, "_train_epoch", spoil)
    if where != "loss":
        scored = np.nan if where == "scores" else 0.5
        monkeypatch.setattr(loop, "predict", lambda *a, **k: np.full_like(predict(*a, **k), scored))
    config = tiny_config(train={**SMALL, "arms": ["fair_base"], "seeds": [0]})
    with pytest.raises(ConfigError, match=r"in epoch 1, .*(nan|not finite)"):
        train(filled, config, monkeypatch)
    assert epochs == [1]


def test_a_score_of_the_test_split_that_is_not_finite_is_told(
    filled: Workspace, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(train={**SMALL, "arms": ["fair_base"], "seeds": [0]})
    train(filled, config, monkeypatch)
    predict = loop.predict
    monkeypatch.setattr(
        predictions, "predict", lambda *a, **k: np.full_like(predict(*a, **k), np.inf)
    )
    with pytest.raises(DataError, match="run din-fair_base-0 scores 45 test samples with NaN"):
        evaluation.run(config, filled, Reporter(filled, quiet=True))


def test_weights_that_are_not_finite_are_never_loaded(
    filled: Workspace, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(train={**SMALL, "arms": ["fair_base"], "seeds": [0]})
    train(filled, config, monkeypatch)
    run = Run("din", "fair_base", 0)
    bundle = read_bundle(filled, run)
    bundle.model.items.ids.weight[3, 0] = float("nan")
    bundles.save(filled.local_path(run.folder), bundle)
    with pytest.raises(StoreError, match=r"items\.ids\.weight .*not finite"):
        read_bundle(filled, run)
