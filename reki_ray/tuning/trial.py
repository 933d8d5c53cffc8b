"""One trial: a training run with changed settings."""

from __future__ import annotations

import os
from typing import Any, Final

import ray
import torch
from ray import tune

from reki_ray.config import TrainConfig
from reki_ray.training.checkpoint import Epoch, RunState, time_of
from reki_ray.training.runs import Run
from reki_ray.training.worker import TrainingData, new_trainer
from reki_ray.tuning.space import with_settings

QUALITY: Final = "quality"
"""Key of the value that a search maximises, in a trial's reports."""

ERROR: Final = "error"
"""Key of the reason why a trial has no result, in its last report."""

_WORST: Final = -1e9
"""Quality of a trial without a result; schedulers do not accept infinity."""

SETTINGS: Final = "settings"
"""Key of the settings in a trial's Ray Tune configuration."""


def train_trial(
    settings: dict[str, Any],
    config: TrainConfig,
    run: Run,
    data: list[ray.ObjectRef[TrainingData]],
    concurrency: int,
) -> None:
    """Train one model, and report its best epoch so far after each epoch.

    A model that diverges reports an `ERROR` instead of raising, which would retry the trial.

    Args:
        settings: Ray Tune's configuration of the trial, see `SETTINGS`.
        config: Base configuration, without these settings.
        data: In a list so that Ray does not resolve it.
        concurrency: Trials that share a node's cores.
    """
    config = with_settings(config, run.backbone, settings[SETTINGS])
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // concurrency))
    device = torch.device(config.device)
    trainer, _ = new_trainer(run, config, ray.get(data[0]), device)

    def after_epoch(epoch: Epoch, state: RunState) -> None:
        best = trainer.best
        figures = {
            QUALITY: best.quality,
            "valid_auc": best.valid_auc,
            "valid_logloss": best.valid_logloss,
            "best_epoch": best.epoch,
            "epochs": len(state.epochs),
        }
        tune.report({**figures, **time_of(state.epochs)})

    trainer.run(after_epoch)
    if trainer.divergence is not None:
        tune.report({QUALITY: _WORST, ERROR: str(trainer.divergence)})
