"""One trial: a training run with changed settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

import ray
import torch
from ray import tune

from reki_ray.config import TrainConfig
from reki_ray.training.checkpoint import Epoch, RunState, time_of
from reki_ray.training.loop import Trainer
from reki_ray.training.runs import Run
from reki_ray.training.worker import TrainingData, make_splits, new_bundle
from reki_ray.tuning.space import with_settings

QUALITY: Final = "quality"
"""Key of the value that a search maximises, in a trial's reports."""

ERROR: Final = "error"
"""Key of the reason why a trial has no result, in its last report."""

_WORST: Final = -1e9
"""Quality of a trial without a result; schedulers do not accept infinity."""

SETTINGS: Final = "settings"
"""Key of the settings in a trial's Ray Tune configuration."""


@dataclass(frozen=True)
class TrialAssignment:
    """What all trials of a search share.

    Args:
        config: Base configuration.
        run: Backbone, arm and seed.
        data: Reference to the `TrainingData`, in a list so that Ray does not resolve it.
        concurrency: Trials that share a node's cores.
    """

    config: TrainConfig
    run: Run
    data: list[ray.ObjectRef[TrainingData]]
    concurrency: int


def train_trial(settings: dict[str, Any], assignment: TrialAssignment) -> None:
    """Train one model, and report its best epoch so far after each epoch.

    A model that diverges reports an `ERROR` instead of raising, which would retry the trial.

    Args:
        settings: Ray Tune's configuration of the trial, see `SETTINGS`.
        assignment: What all trials share.
    """
    run = assignment.run
    config = with_settings(assignment.config, run.backbone, settings[SETTINGS])
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // assignment.concurrency))
    device = torch.device(config.device)
    data = ray.get(assignment.data[0])
    bundle = new_bundle(run, config, data)
    splits = make_splits(run, bundle, data, device)
    trainer = Trainer(
        bundle.model.to(device), splits, config, seed=run.seed, fingerprint=run.fingerprint
    )

    def after_epoch(epoch: Epoch, state: RunState) -> None:
        tune.report(_figures(state.epochs, trainer.best))

    trainer.run(after_epoch)
    if trainer.divergence is not None:
        tune.report({QUALITY: _WORST, ERROR: str(trainer.divergence)})


def _figures(epochs: list[Epoch], best: Epoch) -> dict[str, Any]:
    return {
        QUALITY: best.quality,
        "valid_auc": best.valid_auc,
        "valid_logloss": best.valid_logloss,
        "best_epoch": best.epoch,
        "epochs": len(epochs),
        **time_of(epochs),
    }
