"""Whether the cluster can hold what an engine needs: asked before the start, not by hanging."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from reki_ray.core.ray_cluster import capacity
from reki_ray.errors import EngineError
from reki_ray.extraction.engines.protocol import Demand

_SPARE_CPUS = 1
"""Ray Data's own tasks need a CPU: where actors take every one, a dataset waits for ever."""

_POOLED = "MapWorker("
"""How Ray Data names the actors of a pool."""


def replicas() -> int:
    """Actors of this job's Ray Data pools that are up."""
    from ray._private.state import state  # not public

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    actors = state.actor_table(None, job, "ALIVE").values()
    return sum(actor["ActorClassName"].startswith(_POOLED) for actor in actors)


def require(demand: Demand) -> None:
    """Refuse an engine whose smallest pool does not fit.

    Raises:
        EngineError: The cluster is too small.
    """
    there = capacity()
    for resource, needed in _needs(demand.replica, demand.min_replicas).items():
        if there.get(resource, 0.0) < needed:
            spare = f" ({_SPARE_CPUS} CPU stays free for Ray Data)" if resource == "CPU" else ""
            raise EngineError(
                f"{demand.min_replicas} engine replicas need {needed:g} {resource}{spare}, the "
                f"cluster has {there.get(resource, 0.0):g}",
                where="extract.min_replicas, extract.engine",
                todo="Add nodes, lower extract.min_replicas, or raise ray.num_cpus.",
            )


def affordable(replica: Mapping[str, float], most: int) -> int:
    """The largest pool that leaves a CPU free, at most `most` and at least one replica."""
    there = capacity()
    fits = [
        int((there.get(name, 0.0) - (_SPARE_CPUS if name == "CPU" else 0)) / amount)
        for name, amount in replica.items()
        if amount > 0
    ]
    return max(1, min([most, *fits]))


def _needs(replica: Mapping[str, float], replicas: int) -> dict[str, float]:
    needs = {name: amount * replicas for name, amount in replica.items() if amount > 0}
    needs["CPU"] = needs.get("CPU", 0.0) + _SPARE_CPUS
    return needs
