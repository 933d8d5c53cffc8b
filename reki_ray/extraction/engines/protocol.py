"""Protocol of engines.

An engine is the part of a Ray Data pipeline that turns questions into answers. It neither chooses
prompts, nor writes answers, nor handles its own death.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from ray.data import Dataset

TASK_CPUS: Final = 0.25
"""CPUs of every task before and after the engines. They mostly wait for storage and share the CPU
that the engines leave; Ray Data fuses neighbours with equal requests. With a whole CPU each, two
CPUs would write no answer before the last question was answered."""


@dataclass(frozen=True)
class Demand:
    """Resources that an engine needs.

    Attributes:
        replica: Ray resources per replica, such as {"CPU": 1, "GPU": 2}.
        min_replicas: Replicas that it needs to start.
    """

    replica: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    min_replicas: int = 1


class Engine(Protocol):
    """Answers prompts.

    Every question comes back exactly once, in any order, as an answer or as a failure with a
    reason. One failure does not affect other questions; an error that fails all of them (a wrong
    key, a missing model, an exhausted budget) raises a `RekiError` inside the pipeline.
    """

    @property
    def name(self) -> str:
        """Kind of engine, as written into the answer cache."""

    @property
    def model(self) -> str:
        """Model as configured."""

    @property
    def revision(self) -> str:
        """Revision of the model."""

    @property
    def demand(self) -> Demand:
        """Resources it needs; checked against the cluster before the start."""

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
