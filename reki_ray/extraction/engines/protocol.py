"""What every engine promises.

An engine is a piece of a Ray Data pipeline: questions in, answers out. What is asked, what is
kept and what happens when an engine dies is not its business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from ray.data import Dataset

TASK_CPUS: Final = 0.25
"""CPUs of every task before and behind the engines. They mostly wait for storage, and share the
CPU that the engines leave; neighbours that ask for as much become one task. With a whole CPU for
each, Ray Data on two CPUs would keep nothing before the last question was answered."""


@dataclass(frozen=True)
class Demand:
    """What an engine needs of the cluster.

    Attributes:
        replica: Ray resources of one replica, as {"CPU": 1, "GPU": 2}.
        min_replicas: Replicas without which it does not start.
    """

    replica: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    min_replicas: int = 1


class Engine(Protocol):
    """Something that answers prompts.

    Every question comes back exactly once, in any order, as an answer or as a failure with its
    reason. A question that fails harms no other; what makes all questions fail (a wrong key, a
    missing model, an exhausted budget) raises a `RekiError` inside the pipeline.
    """

    @property
    def name(self) -> str:
        """Kind of engine, as the ledger names it."""

    @property
    def model(self) -> str:
        """Model as the configuration names it."""

    @property
    def revision(self) -> str:
        """Revision of the model."""

    @property
    def demand(self) -> Demand:
        """What it needs; checked against the cluster before the start."""

    def answer(self, questions: Dataset) -> Dataset:
        """Add the stages that answer; nothing runs yet.

        Args:
            questions: Rows of `QUESTION_SCHEMA`, one block a work unit.

        Returns:
            Rows of `ANSWER_SCHEMA`. A block never holds rows of several work units unless each
            of these units is in it whole.

        Raises:
            RekiError: The engine cannot start here.
        """
