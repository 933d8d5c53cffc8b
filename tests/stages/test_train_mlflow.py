"""Stage train tells MLflow of its runs while it trains."""

from __future__ import annotations

import importlib.util

import pytest

from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.stages import train as train_stage
from tests.conftest import TinyConfig
from tests.support.trained_workspace import fill

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_local"),
    pytest.mark.skipif(
        importlib.util.find_spec("mlflow") is None,
        reason="the extra mlflow is not installed: pip install 'reki-ray[mlflow]'",
    ),
]


def test_every_trained_run_is_told_of_once(
    workspace: Workspace, reporter: Reporter, tiny_config: TinyConfig
) -> None:
    from mlflow import MlflowClient  # an extra

    fill(workspace)
    uri = f"sqlite:///{workspace.path('mlflow.db')}"
    small = {"network": {"embedding": 8}, "hein": {"output": 8}, "arms": ["fair_base"]}
    config = tiny_config(train={**small, "mlflow": uri})
    for _ in range(2):  # the second time, nothing is trained
        train_stage.run(config, workspace, reporter)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    metrics = workspace.read_json("train/din-fair_base-0/metrics.json")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["best_valid_auc"] == pytest.approx(metrics["valid"]["auc"])
    told = client.get_metric_history(run.info.run_id, "loss")
    assert [one.value for one in told] == pytest.approx([e["loss"] for e in metrics["epochs"]])
