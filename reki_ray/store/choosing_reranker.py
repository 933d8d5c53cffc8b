"""Which trained reranker is served."""

from __future__ import annotations

import numpy as np

from reki_ray.config import Arm, RekiConfig, Reranker
from reki_ray.errors import ConfigError
from reki_ray.evaluation.ranking import HEADLINE
from reki_ray.training.runs import METRICS, Run
from reki_ray.workspace import Workspace


def choose_reranker(config: RekiConfig, workspace: Workspace, arm: Arm) -> Run | None:
    """The reranker to serve beside a model: of its arm, best by mean validation NDCG, best seed.

    Args:
        config: The run.
        workspace: Holds the trained runs.
        arm: Arm of the model that is served.

    Returns:
        Its run; None where none is wanted or, with auto, none was trained.

    Raises:
        ConfigError: `publish.reranker` names one that is not trained.
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

    def ndcg(name: Reranker, seed: int) -> float:
        metrics = workspace.read_json(f"{Run(name, arm, seed).folder}/{METRICS}")
        return float(metrics["valid"]["ndcg"][str(HEADLINE)])

    by_name = {
        name: {seed: ndcg(name, seed) for seed in config.train.seeds}
        for name in (sorted(trained) if wanted == "auto" else [wanted])
    }
    best = max(by_name, key=lambda name: np.mean(list(by_name[name].values())))
    seeds = by_name[best]
    return Run(best, arm, min(seeds, key=lambda seed: (-seeds[seed], seed)), reranks=True)
