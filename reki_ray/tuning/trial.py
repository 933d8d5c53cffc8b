"""One trial: a run trained with other settings by the trainer of every run."""

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
"""What a search maximises, in what a trial reports."""

ERROR: Final = "error"
"""Why a trial has no result, in its last report."""

_WORST: Final = -1e9
"""Quality of a trial without a result, below all others; schedulers cannot take infinity."""

SETTINGS: Final = "settings"
"""Key of a trial's configuration in Ray Tune that holds its settings."""


@dataclass(frozen=True)
class TrialAssignment:
    """What all trials of a search share.

    Args:
        config: What the settings of a trial change.
        run: Backbone, arm and seed.
        data: Reference to the `TrainingData`, in a list so that Ray hands it on unresolved.
        concurrency: Trials that share a node's cores.
    """

    config: TrainConfig
    run: Run
    data: list[ray.ObjectRef[TrainingData]]
    concurrency: int


def train_trial(settings: dict[str, Any], assignment: TrialAssignment) -> None:
    """Train one model, and report its best epoch so far after each epoch.

    Of a model that diverges an `ERROR` is reported at last, not raised: it would be tried again.

    Args:
        settings: Configuration that Ray Tune hands to a trial, see `SETTINGS`.
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
