"""Logging of trained runs to a real MLflow store; its errors do not stop training."""

from __future__ import annotations

import importlib.util
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.errors import ConfigError
from reki_ray.stages import pipeline
from reki_ray.training.checkpoint import Epoch
from reki_ray.training.mlflow import Tracker, check
from reki_ray.training.runs import Run, fingerprint

needs_mlflow = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None,
    reason="the extra mlflow is not installed: pip install 'reki-ray[mlflow]'",
)
RUN = Run("din", "fair_base", 0, fingerprint="f" * 64)
OTHER = Run("dcnv2", "fair_base", 1, fingerprint="e" * 64)


def config_of(uri: str | None, **train: Any) -> RekiConfig:
    return RekiConfig.model_validate(
        {
            "name": "tracked",
            "data": {"source": {"kind": "movielens_100k"}},
            "train": {"mlflow": uri, **train},
        }
    )


def epoch(number: int, auc: float | None) -> Epoch:
    return Epoch(number, 0.6, auc, 0.55, 2.0, 1000.0, 1e-3)


def metrics_of(epochs: list[Epoch]) -> dict[str, Any]:
    return {
        "valid": {"auc": 0.8, "logloss": 0.5, "gauc": None},
        "best_epoch": 2,
        "parameters": 1234,
        "epochs": [asdict(one) for one in epochs],
    }


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@needs_mlflow
def test_a_trained_run_is_one_run_with_settings_epochs_and_final_metrics(uri: str) -> None:
    from mlflow import MlflowClient  # an extra

    config = config_of(uri, tuned={"dcnv2": {"history": 7}})
    with Tracker(config, [RUN, OTHER]) as tracker:
        tracker.epoch(RUN.name, epoch(1, 0.7))
        tracker.epoch(RUN.name, epoch(1, 0.7))  # again, after a restart of the workers
        # The second epoch did not come through before the end.
        tracker.finish(RUN, metrics_of([epoch(1, 0.7), epoch(2, 0.8)]))
        tracker.epoch(OTHER.name, epoch(1, None))
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tracked")
    assert experiment is not None
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(found) == {RUN.name, OTHER.name}
    run, unfinished = found[RUN.name], found[OTHER.name]
    assert (run.info.status, unfinished.info.status) == ("FINISHED", "FAILED")
    history = client.get_metric_history(run.info.run_id, "valid_auc")
    assert [(one.step, one.value) for one in history] == [(1, 0.7), (2, 0.8)]
    assert run.data.metrics["best_valid_auc"] == 0.8
    assert "best_valid_gauc" not in run.data.metrics
    assert run.data.metrics["parameters"] == 1234
    assert run.data.params["network.mlp"] == "[200, 80]"
    assert (run.data.params["history"], unfinished.data.params["history"]) == ("30", "7")
    assert (run.data.params["arm"], run.data.params["seed"]) == ("fair_base", "0")
    assert "valid_auc" not in unfinished.data.metrics
    assert run.data.tags["reki.fingerprint"] == RUN.fingerprint


@needs_mlflow
@pytest.mark.parametrize("nowhere", ["http://127.0.0.1:9", "no-such-store://x"])
def test_a_server_that_fails_is_a_warning(nowhere: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), Tracker(config_of(nowhere), [RUN]) as tracker:
        tracker.epoch(RUN.name, epoch(1, 0.7))
        tracker.finish(RUN, metrics_of([epoch(1, 0.7)]))
    [warning] = [record for record in caplog.records if record.name.startswith("reki_ray")]
    assert "trained all the same" in warning.getMessage()
    assert nowhere in warning.getMessage()


def test_a_missing_package_is_told_before_any_stage_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    check(config_of(None))
    config = config_of("http://127.0.0.1:9").model_copy(update={"workspace": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"reki-ray\[mlflow\]"):
        pipeline.run_stages(config, pipeline.select(), Reporter(quiet=True))


def test_who_watches_does_not_change_a_run() -> None:
    watched, alone = config_of("http://127.0.0.1:9"), config_of(None)
    assert fingerprint(watched.train, RUN, []) == fingerprint(alone.train, RUN, [])
    assert watched.train.identity() == alone.train.identity()
