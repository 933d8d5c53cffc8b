"""The pool of a replicated engine: explicit bounds, one CPU left free, bounded restarts."""

from __future__ import annotations

from typing import Any

from ray.data import ActorPoolStrategy

from reki_ray.config import ExtractConfig
from reki_ray.extraction.engines.capacity import affordable
from reki_ray.extraction.engines.protocol import Demand


def pool_options(config: ExtractConfig, demand: Demand) -> dict[str, Any]:
    """Arguments of `map_batches` for a pool of engine actors.

    Args:
        config: Bounds of the pool and of restarts.
        demand: What one replica takes.
    """
    return {
        "compute": ActorPoolStrategy(
            min_size=config.min_replicas, max_size=largest_pool(config, demand)
        ),
        **restart_options(config),
    }


def largest_pool(config: ExtractConfig, demand: Demand) -> int:
    """Replicas that the pool may grow to on this cluster."""
    return max(config.min_replicas, affordable(demand.replica, config.max_replicas))


def restart_options(config: ExtractConfig) -> dict[str, Any]:
    """Bounds: Ray Data would repeat a call that kills its actor for ever."""
    return {"max_task_retries": config.restarts}
