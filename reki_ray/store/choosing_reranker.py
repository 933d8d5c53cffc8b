"""Which trained reranker is served."""

from __future__ import annotations

import numpy as np

from reki_ray.config import Arm, RekiConfig, Reranker
from reki_ray.errors import ConfigError
from reki_ray.evaluation.ranking import HEADLINE
from reki_ray.training.runs import Run, divergence_of, read_metrics
from reki_ray.workspace import Workspace


def choose_reranker(config: RekiConfig, workspace: Workspace, arm: Arm) -> Run | None:
    """The reranker to serve beside a model: of its arm, best by mean validation NDCG, best seed.

    Args:
        config: The run.
        workspace: Holds the trained runs.
        arm: Arm of the model that is served.

    Returns:
        Its run; None where none is wanted or, with auto, none was trained without diverging.

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
    by_name = {name: _by_seed(config, workspace, name, arm) for name in names}
    found = {name: by_seed for name, by_seed in by_name.items() if by_seed}
    if not found and wanted == "auto":
        return None
    if not found:
        raise ConfigError(
            f"all runs of reranker {wanted} with arm {arm} diverged",
            where="publish.reranker",
            todo="Lower train.rerank.learning_rate and train again, or set it to auto or none.",
        )
    best = max(found, key=lambda name: np.mean(list(found[name].values())))
    seeds = found[best]
    return Run(best, arm, min(seeds, key=lambda seed: (-seeds[seed], seed)), reranks=True)


def _by_seed(
    config: RekiConfig, workspace: Workspace, name: Reranker, arm: Arm
) -> dict[int, float]:
    """Validation NDCG of a reranker's runs that did not diverge."""
    found = {}
    for seed in config.train.seeds:
        metrics = read_metrics(workspace, Run(name, arm, seed))
        if divergence_of(metrics) is None:
            found[seed] = float(metrics["valid"]["ndcg"][str(HEADLINE)])
    return found
