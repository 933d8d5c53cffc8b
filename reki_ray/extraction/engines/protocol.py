"""Base class of engines.

An engine is the part of a Ray Data pipeline that turns questions into answers. It neither chooses
prompts, nor writes answers, nor handles its own death.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from reki_ray.config import ExtractConfig
from reki_ray.prompts.template import PromptTemplate

if TYPE_CHECKING:
    from ray.data import Dataset

TASK_CPUS: Final = 0.25
"""CPUs of every task before and after the engines. They mostly wait for storage and share the CPU
that the engines leave; Ray Data fuses neighbours with equal requests. With a whole CPU each, two
CPUs would write no answer before the last question was answered."""


class Engine(ABC):
    """Answers prompts.

    Every question comes back exactly once, in any order, as an answer or as a failure with a
    reason. One failure does not affect other questions; an error that fails all of them (a wrong
    key, a missing model, an exhausted budget) raises a `RekiError` inside the pipeline.

    Attributes:
        name: Kind of engine, as written into the answer cache.
        model: Model as configured.
        revision: Revision of the model.
        demand: Ray resources per replica; checked against the cluster before the start.
    """

    name: ClassVar[str]

    def __init__(self, config: Any, extract: ExtractConfig, template: PromptTemplate) -> None:
        self.model: str = config.model
        self.revision: str = config.revision
        self.demand: Mapping[str, float] = {"CPU": 1.0}
        self._config = config
        self._extract = extract
        self._template = template

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
