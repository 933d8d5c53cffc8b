"""Logging of trained runs to MLflow by the driver: workers need no access to the server."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Final

from reki_ray.config import RekiConfig
from reki_ray.config.keys import flat
from reki_ray.config.secrets import shown
from reki_ray.core.imports import require
from reki_ray.training.checkpoint import Epoch
from reki_ray.training.runs import Run, effective


def check(config: RekiConfig) -> None:
    """Check that MLflow is installed if it is configured, before any stage runs.

    Raises:
        ConfigError: `train.mlflow` is set, and MLflow is not installed.
    """
    if config.train.mlflow is not None:
        require("mlflow", "train.mlflow", "; or set train.mlflow to null")


_PATIENCE: Final = {
    # MLflow's own retries block the caller of a dead server for minutes per call.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}

_logger = logging.getLogger(__name__)


class Tracker:
    """Logs every trained run to MLflow, in an experiment per configuration name.

    An error is a warning, and that run is not logged further: training does not depend on MLflow.

    Args:
        config: With `train.mlflow` set.

    Raises:
        ConfigError: MLflow is not installed.
    """

    def __init__(self, config: RekiConfig, runs: Sequence[Run]) -> None:
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        self._mlflow: Any = require("mlflow", "train.mlflow")
        self._config = config
        self._runs = {run.name: run for run in runs}
        self._ids: dict[str, str] = {}  # MLflow ids of the runs begun
        self._logged: dict[str, int] = {}  # number of the last epoch logged of a run
        self._given_up: set[str] = set()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name in list(self._ids):  # those left are not finished
            self._try(name, self._end, name, "FAILED")

    def epoch(self, name: str, epoch: Epoch) -> None:
        """Log a finished epoch of the run of this name."""
        self._try(name, self._epochs, name, [epoch])

    def finish(self, run: Run, metrics: Mapping[str, Any]) -> None:
        """Log a finished run with the content of its metrics.json."""
        epochs = [Epoch(**figures) for figures in metrics["epochs"]]
        self._try(run.name, self._finish, run.name, epochs, metrics)

    def _try(self, name: str, log: Any, *arguments: Any) -> None:
        if name in self._given_up:
            return
        try:
            log(*arguments)
        except Exception as error:  # noqa: BLE001  # stores and plugins raise any type
            self._given_up.add(name)
            self._ids.pop(name, None)
            _logger.warning(
                "MLflow at %s does not take run %s, which is trained all the same: %s",
                shown(self._config.train.mlflow),
                name,
                error,
            )

    def _epochs(self, name: str, epochs: Sequence[Epoch]) -> None:
        known = self._logged.get(name, 0)
        points = []
        for epoch in epochs:
            if epoch.epoch <= known:  # after a restart of the workers, or at the end
                continue
            figures = {key: value for key, value in asdict(epoch).items() if key != "epoch"}
            points += self._metrics(figures, epoch.epoch)
            self._logged[name] = epoch.epoch
        if points:
            self._client.log_batch(self._id(name), metrics=points)

    def _finish(self, name: str, epochs: Sequence[Epoch], metrics: Mapping[str, Any]) -> None:
        self._epochs(name, epochs)
        figures = {f"best_valid_{key}": value for key, value in flat(metrics["valid"]).items()}
        figures |= {key: metrics[key] for key in ("best_epoch", "parameters")}
        points = self._metrics(figures, metrics["best_epoch"])
        self._client.log_batch(self._id(name), metrics=points)
        self._end(name, "FINISHED")

    def _end(self, name: str, status: str) -> None:
        self._client.set_terminated(self._ids.pop(name), status)

    def _id(self, name: str) -> str:
        """MLflow id of the run, which is begun with its settings if it is new."""
        if name not in self._ids:
            client, run = self._client, self._runs[name]
            known = client.get_experiment_by_name(self._config.name)
            experiment = (
                known.experiment_id if known else client.create_experiment(self._config.name)
            )
            tags = {"reki.workspace": shown(self._config.root), "reki.fingerprint": run.fingerprint}
            new = client.create_run(experiment, run_name=name, tags=tags).info.run_id
            self._ids[name] = new
            settings = flat(effective(self._config.train, run))
            settings |= {"backbone": run.backbone, "arm": run.arm, "seed": run.seed}
            parameter = self._mlflow.entities.Param
            client.log_batch(new, params=[parameter(k, str(v)) for k, v in settings.items()])
        return self._ids[name]

    @property
    def _client(self) -> Any:
        return self._mlflow.MlflowClient(tracking_uri=self._config.train.mlflow)

    def _metrics(self, figures: Mapping[str, float | None], step: int) -> list[Any]:
        now = self._mlflow.utils.time.get_current_time_millis()
        return [
            self._mlflow.entities.Metric(key, float(value), now, step)
            for key, value in figures.items()
            if value is not None
        ]
