"""Pools of engine replicas: bounds, restarts, and whether the cluster can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from reki_ray.config import ExtractConfig
from reki_ray.core.ray_cluster import capacity
from reki_ray.errors import EngineError

_SPARE_CPUS = 1
"""Ray Data's own tasks need a CPU: if actors take all of them, a dataset waits forever."""

_POOLED = "MapWorker("
"""How Ray Data names the actors of a pool."""


def replicas() -> int:
    """Actors of this job's Ray Data pools that are up."""
    from ray._private.state import state  # not public

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    actors = state.actor_table(None, job, "ALIVE").values()
    return sum(actor["ActorClassName"].startswith(_POOLED) for actor in actors)


def require(config: ExtractConfig, demand: Mapping[str, float]) -> None:
    """Refuse an engine whose smallest pool does not fit.

    Raises:
        EngineError: The cluster is too small.
    """
    available = capacity()
    needs = {name: n * config.min_replicas for name, n in demand.items() if n > 0}
    needs["CPU"] = needs.get("CPU", 0.0) + _SPARE_CPUS
    for resource, needed in needs.items():
        if available.get(resource, 0.0) < needed:
            spare = f" ({_SPARE_CPUS} CPU stays free for Ray Data)" if resource == "CPU" else ""
            raise EngineError(
                f"{config.min_replicas} engine replicas need {needed:g} {resource}{spare}, the "
                f"cluster has {available.get(resource, 0.0):g}",
                where="extract.min_replicas, extract.engine",
                todo="Add nodes, lower extract.min_replicas, or raise ray.num_cpus.",
            )


def pool_options(config: ExtractConfig, demand: Mapping[str, float]) -> dict[str, Any]:
    """Arguments of `map_batches` for a pool of engine actors."""
    return {
        "compute": ActorPoolStrategy(
            min_size=config.min_replicas, max_size=largest_pool(config, demand)
        ),
        **restart_options(config),
    }


def largest_pool(config: ExtractConfig, demand: Mapping[str, float]) -> int:
    """Replicas that a pool may grow to on this cluster, with a CPU left free."""
    available = capacity()
    fits = [
        int((available.get(name, 0.0) - (_SPARE_CPUS if name == "CPU" else 0)) / amount)
        for name, amount in demand.items()
        if amount > 0
    ]
    return max(config.min_replicas, min([config.max_replicas, *fits]))


def restart_options(config: ExtractConfig) -> dict[str, Any]:
    """Bounds of restarts: Ray Data would forever repeat a call that kills its actor."""
    return {"max_task_retries": config.restarts}
