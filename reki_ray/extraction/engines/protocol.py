"""Base class of engines.

An engine is the part of a Ray Data pipeline that turns questions into answers. It neither chooses
prompts, nor writes answers, nor handles its own death.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

import ray
from ray.data import ActorPoolStrategy

from reki_ray.config import ExtractConfig
from reki_ray.core.ray_cluster import SPARE_CPUS, capacity, pool_size
from reki_ray.errors import EngineError
from reki_ray.prompts.template import PromptTemplate

if TYPE_CHECKING:
    from ray.data import Dataset

TASK_CPUS: Final = 0.25
"""CPUs of every task before and after the engines. They mostly wait for storage and share the CPU
that the engines leave; Ray Data fuses neighbours with equal requests. With a whole CPU each, two
CPUs would write no answer before the last question was answered."""

_POOLED: Final = "MapWorker("
"""How Ray Data names the actors of a pool."""


class Engine(ABC):
    """Answers prompts.

    Every question comes back exactly once, in any order, as an answer or as a failure with a
    reason. One failure does not affect other questions; an error that fails all of them (a wrong
    key, a missing model, an exhausted budget) raises a `RekiError` inside the pipeline.

    Attributes:
        name: Kind of engine, as written into the answer cache.
        model: Model as configured.
        demand: Ray resources per replica.
    """

    name: ClassVar[str]

    def __init__(self, config: Any, extract: ExtractConfig, template: PromptTemplate) -> None:
        self.model: str = config.model
        self.revision: str = config.revision
        self.demand: Mapping[str, float] = {"CPU": 1.0}
        self._config = config
        self._extract = extract
        self._template = template
        self._units: int | None = None

    @abstractmethod
    def answer(self, questions: Dataset) -> Dataset:
        """Add the stages that answer to a lazy pipeline.

        Args:
            questions: Rows of `QUESTION_SCHEMA`, one block per work unit.

        Returns:
            Rows of `ANSWER_SCHEMA`. A block holds rows of several work units only if each of
            these units is complete in it.

        Raises:
            RekiError: The engine cannot start here.
        """

    def require_room(self) -> None:
        """Refuse an engine whose smallest pool does not fit on this cluster.

        Raises:
            EngineError: The cluster is too small.
        """
        available, least = capacity(), self._extract.min_replicas
        needs = {name: n * least for name, n in self.demand.items() if n > 0}
        needs["CPU"] = needs.get("CPU", 0.0) + SPARE_CPUS
        for resource, needed in needs.items():
            if available.get(resource, 0.0) < needed:
                spare = f" ({SPARE_CPUS} CPU stays free for Ray Data)" if resource == "CPU" else ""
                raise EngineError(
                    f"{least} engine replicas need {needed:g} {resource}{spare}, the cluster has "
                    f"{available.get(resource, 0.0):g}",
                    where="extract.min_replicas, extract.engine",
                    todo="Add nodes, lower extract.min_replicas, or raise ray.num_cpus.",
                )

    def expect(self, units: int) -> None:
        """Size the pool of the next pipeline for its number of work units."""
        self._units = units

    @property
    def pool(self) -> int:
        """Replicas of the next pipeline; see `pool_size`."""
        return pool_size(self._extract, self.demand, self._units)

    @property
    def units_in_flight(self) -> int:
        """Whole work units in `extract.prompts_in_flight`."""
        return max(1, self._extract.prompts_in_flight // self._extract.unit_rows)

    def unit_limits(self, concurrent: int = 1) -> tuple[int, int]:
        """Work units that a replica runs at once, and those that are handed to it.

        A replica that starts first leaves their share to those that still start.

        Args:
            concurrent: Units that keep a replica busy.
        """
        share = concurrent + 1
        if self._units is not None:
            share = max(1, math.ceil(self._units / self.pool))
        running = min(concurrent, share)
        # One unit waits beside those that run; more would be lost with the replica.
        return running, min(running + 1, share)

    def actors(self, concurrent: int = 1) -> dict[str, Any]:
        """Arguments of `map_batches` for the pool of actors; a call gets one block.

        Args:
            concurrent: As in `unit_limits`.
        """
        running, given = self.unit_limits(concurrent)
        gpus = self.demand.get("GPU", 0)
        return {
            # Of a fixed size: Ray Data still ends idle replicas once no unit is left to hand out.
            "compute": ActorPoolStrategy(
                size=self.pool,
                max_concurrent_calls_per_actor=running,
                max_tasks_in_flight_per_actor=given,
            ),
            # Ray Data wants a size where there are GPUs: a block has at most one such batch.
            "batch_size": self._extract.unit_rows if gpus else None,
            "batch_format": "pyarrow",
            "num_cpus": self.demand["CPU"],
            "num_gpus": gpus,
            **self.restarts,
        }

    @property
    def restarts(self) -> dict[str, int]:
        """Bound of restarts: Ray Data would forever repeat a call that kills its actor."""
        return {"max_task_retries": self._extract.restarts}


def replicas(since: float = 0.0) -> int:
    """Actors of this job's Ray Data pools that are up and started at `since` or later.

    Args:
        since: Seconds since the epoch: a pipeline that was given up may still have its actors.
    """
    from ray._private.state import state  # not public

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    actors = state.actor_table(None, job, "ALIVE").values()
    return sum(
        actor["ActorClassName"].startswith(_POOLED) and actor["StartTime"] >= 1000 * since
        for actor in actors
    )


def waits_for_node(demand: Mapping[str, float]) -> bool:
    """Whether no node that is up has the resources of a replica."""
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return not any(
        all(node.get(name, 0.0) >= amount for name, amount in demand.items()) for node in nodes
    )
