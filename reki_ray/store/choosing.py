"""Which trained run is served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from reki_ray.config import KNOWLEDGE_ARMS, Arm, Backbone, RekiConfig
from reki_ray.errors import ConfigError
from reki_ray.training.runs import METRICS, Run
from reki_ray.workspace import Workspace


@dataclass(frozen=True)
class TrainedRun:
    """A finished training run and how good it is on validation."""

    arm: Arm
    seed: int
    folder: Path
    valid_auc: float


def check(config: RekiConfig) -> None:
    """Refuse arms that could not be published, before anything is trained.

    Raises:
        ConfigError: An arm is not trained, or may not be served.
    """
    _servable(config)
    if config.publish.compare is not None:
        _servable(with_arm(config, config.publish.compare))


def with_arm(config: RekiConfig, arm: Arm) -> RekiConfig:
    """The run with another arm to publish."""
    publish = config.publish.model_copy(update={"arm": arm})
    return config.model_copy(update={"publish": publish})


def choose_run(config: RekiConfig, workspace: Workspace) -> TrainedRun:
    """The run to serve: best backbone and arm by mean validation AUC, then their best seed.

    The test split has no say in it. Ties go to the first name and the lowest seed.

    Raises:
        ConfigError: No trained arm may be served.
    """
    candidates = [
        _runs(config, workspace, backbone, arm)
        for backbone in sorted(config.train.backbones)
        for arm in _servable(config)
    ]
    best = max(candidates, key=lambda runs: np.mean([run.valid_auc for run in runs]))
    return min(best, key=lambda run: (-run.valid_auc, run.seed))


def _servable(config: RekiConfig) -> list[Arm]:
    """The arm that is to be published, or all that may be."""
    wanted = config.publish.arm
    if wanted == "auto":
        arms = sorted(KNOWLEDGE_ARMS & set(config.train.arms))
        if not arms:
            raise ConfigError(
                "publish.arm is auto, but no arm with an LLM's knowledge is trained",
                where="publish.arm",
                todo="Add reki_c, reki_i or reki_blend to train.arms, or name the arm to serve.",
            )
        return arms
    if wanted not in config.train.arms:
        raise ConfigError(
            f"arm {wanted} is not trained",
            where="publish.arm",
            todo=f"Name one of train.arms: {', '.join(config.train.arms)}.",
        )
    if wanted.endswith("_shuffled"):
        raise ConfigError(
            f"arm {wanted} is a placebo: its vectors belong to other ids",
            where="publish.arm",
            todo=f"Name another of {', '.join(get_args(Arm))}.",
        )
    return [wanted]


def _runs(
    config: RekiConfig, workspace: Workspace, backbone: Backbone, arm: Arm
) -> list[TrainedRun]:
    found = []
    for seed in config.train.seeds:
        run = Run(backbone, arm, seed)
        metrics = workspace.read_json(f"{run.folder}/{METRICS}")
        folder = workspace.local_path(run.folder)
        found.append(TrainedRun(arm, seed, folder, float(metrics["valid"]["auc"])))
    return found
