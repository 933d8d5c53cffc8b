"""Selection of the trained run to serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from reki_ray.config import KNOWLEDGE_ARMS, Arm, Backbone, RekiConfig, Reranker
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError
from reki_ray.metrics.ranking import HEADLINE
from reki_ray.training.checkpoint import click_quality
from reki_ray.training.runs import Run, divergence_of, read_metrics


def choose_reranker(config: RekiConfig, workspace: Workspace, arm: Arm) -> Run | None:
    """The reranker to serve with a model of this arm: best mean validation NDCG, then best seed.

    None if `publish.reranker` is none or, with auto, no reranker has a result.

    Raises:
        ConfigError: `publish.reranker` names one that is not trained, or that diverged.
    """
    wanted, trained = config.publish.reranker, config.train.rerankers
    if wanted == "none" or (wanted == "auto" and not trained):
        return None
    if wanted != "auto" and wanted not in trained:
        raise ConfigError(
            f"reranker {wanted} is not trained",
            where="publish.reranker",
            todo=f"Name one of train.rerankers ({', '.join(trained) or 'none'}), auto or none.",
        )

    names = sorted(trained) if wanted == "auto" else [wanted]
    by_name = {
        name: {seed: float(valid["ndcg"][str(HEADLINE)]) for seed, valid in by_seed.items()}
        for name in names
        if (by_seed := _valid_by_seed(config, workspace, name, arm))
    }
    if not by_name and wanted == "auto":
        return None
    if not by_name:
        raise ConfigError(
            f"all runs of reranker {wanted} with arm {arm} diverged",
            where="publish.reranker",
            todo="Lower train.rerank.learning_rate and train again, or set it to auto or none.",
        )
    best = max(by_name, key=lambda name: np.mean(list(by_name[name].values())))
    seeds = by_name[best]
    return Run(best, arm, min(seeds, key=lambda seed: (-seeds[seed], seed)), reranks=True)


def _valid_by_seed(
    config: RekiConfig, workspace: Workspace, name: Backbone | Reranker, arm: Arm
) -> dict[int, Any]:
    """Validation metrics, by seed, of the runs that did not diverge."""
    metrics = {seed: read_metrics(workspace, Run(name, arm, seed)) for seed in config.train.seeds}
    return {seed: of["valid"] for seed, of in metrics.items() if divergence_of(of) is None}


@dataclass(frozen=True)
class TrainedRun:
    """A finished training run and its validation `click_quality`."""

    arm: Arm
    seed: int
    folder: Path
    quality: float


def check(config: RekiConfig) -> None:
    """Check that the arms can be published, before anything is trained.

    Raises:
        ConfigError: An arm is not trained, or may not be served.
    """
    _servable(config)
    if config.publish.compare is not None:
        _servable(with_arm(config, config.publish.compare))


def with_arm(config: RekiConfig, arm: Arm) -> RekiConfig:
    """The configuration with another arm to publish."""
    publish = config.publish.model_copy(update={"arm": arm})
    return config.model_copy(update={"publish": publish})


def choose_run(config: RekiConfig, workspace: Workspace) -> TrainedRun:
    """The run to serve: best backbone and arm by mean validation AUC, then their best seed.

    With a single label in the validation samples, the log-loss replaces the AUC. The test split is
    not used. Runs that diverged do not count. Ties go to the first name and the lowest seed.

    Raises:
        ConfigError: No trained arm may be served, or all their runs diverged.
    """
    arms = _servable(config)
    candidates = [
        [
            TrainedRun(
                arm,
                seed,
                workspace.local_path(Run(backbone, arm, seed).folder),
                click_quality(valid),
            )
            for seed, valid in _valid_by_seed(config, workspace, backbone, arm).items()
        ]
        for backbone in sorted(config.train.backbones)
        for arm in arms
    ]
    candidates = [runs for runs in candidates if runs]
    if not candidates:
        raise ConfigError(
            f"nothing can be served: all runs of {', '.join(arms)} diverged",
            where="publish.arm",
            todo="Lower train.learning_rate and train again, or name another arm.",
        )
    best = max(candidates, key=lambda runs: np.mean([run.quality for run in runs]))
    return min(best, key=lambda run: (-run.quality, run.seed))


def _servable(config: RekiConfig) -> list[Arm]:
    """The arm of `publish.arm`, or all arms that may be published."""
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
