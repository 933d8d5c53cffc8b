"""Selection of the trained run to serve."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np

from reki_ray.config import KNOWLEDGE_ARMS, Arm, RekiConfig
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError
from reki_ray.training.checkpoint import quality
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
    best = _best(config, workspace, [Run(name, arm, 0, reranks=True) for name in names])
    if best is None and wanted != "auto":
        raise ConfigError(
            f"all runs of reranker {wanted} with arm {arm} diverged",
            where="publish.reranker",
            todo="Lower train.rerank.learning_rate and train again, or set it to auto or none.",
        )
    return best


def _best(config: RekiConfig, workspace: Workspace, models: list[Run]) -> Run | None:
    """Best seed of the model with the best mean over seeds on validation.

    Runs that diverged do not count; None if all did.
    """
    groups = []
    for model in models:
        runs = [replace(model, seed=seed) for seed in config.train.seeds]
        metrics = {run: read_metrics(workspace, run) for run in runs}
        scored = [(r, quality(m["valid"])) for r, m in metrics.items() if divergence_of(m) is None]
        if scored:
            groups.append(scored)
    if not groups:
        return None
    best = max(groups, key=lambda group: np.mean([value for _, value in group]))
    return min(best, key=lambda scored: (-scored[1], scored[0].seed))[0]


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


def choose_run(config: RekiConfig, workspace: Workspace) -> Run:
    """The run to serve: best backbone and arm by mean validation AUC, then their best seed.

    With a single label in the validation samples, the log-loss replaces the AUC. The test split is
    not used. Runs that diverged do not count. Ties go to the first name and the lowest seed.

    Raises:
        ConfigError: No trained arm may be served, or all their runs diverged.
    """
    arms = _servable(config)
    models = [Run(name, arm, 0) for name in sorted(config.train.backbones) for arm in arms]
    best = _best(config, workspace, models)
    if best is None:
        raise ConfigError(
            f"nothing can be served: all runs of {', '.join(arms)} diverged",
            where="publish.arm",
            todo="Lower train.learning_rate and train again, or name another arm.",
        )
    return best


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
