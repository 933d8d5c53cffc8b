"""Engine for any endpoint with the OpenAI chat completions protocol."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, Final

import ray
from pydantic import SecretStr
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from typing_extensions import override

from actors.chat import ChatActor, ChatJob
from actors.spending_guard import SpendingGuard
from reki_ray.config import ExtractConfig, OpenAiEngine
from reki_ray.errors import ConfigError
from reki_ray.extraction.engines.protocol import Engine
from reki_ray.llm.openai_client import Address, require_certificates
from reki_ray.prompts.template import PromptTemplate

if TYPE_CHECKING:
    from ray.data import Dataset

_CPUS: Final = 0.25
"""A replica mostly waits for the network. Not 0: the demand could not be checked against the
cluster, and the number of replicas per node would be unbounded."""

_RESERVED_FIELDS: Final = frozenset({"messages", "model", "n", "stream"})


class OpenAiBatchEngine(Engine):
    """Engine that sends prompts to an endpoint over HTTP.

    Raises:
        ConfigError: `config.extra_body` sets a field that the engine sets.
    """

    name = "openai"
    _config: OpenAiEngine

    def __init__(
        self, config: OpenAiEngine, extract: ExtractConfig, template: PromptTemplate
    ) -> None:
        taken = sorted(_RESERVED_FIELDS & config.extra_body.keys())
        if taken:
            raise ConfigError(
                f"{', '.join(taken)} cannot be set here",
                where="extract.engine.extra_body",
                todo="Leave it out; the model is extract.engine.model.",
            )
        super().__init__(config, extract, template)
        self.demand = {"CPU": _CPUS}
        # One more unit, so that no slot is idle while the last prompts of another are slow.
        self._concurrent = 1 + math.ceil(config.max_in_flight / extract.unit_rows)
        self._guard: Any | None = None

    @override
    def answer(self, questions: Dataset) -> Dataset:
        """Map work units to answers; all pipelines of an engine share its budget.

        Raises:
            ConfigError: The API key is missing, or certificates cannot be loaded.
        """
        require_certificates()
        job = ChatJob(self._config, self._extract, self._template, self._key(), self._guarding())
        return questions.map_batches(
            ChatActor,
            fn_constructor_args=(job,),
            **self.actors(self._concurrent),
        )

    def _key(self) -> SecretStr | None:
        variable = self._config.api_key_variable
        if not variable:
            return None
        key = os.environ.get(variable, "").strip()
        if not key:
            raise ConfigError(
                f"the environment variable {variable} is not set",
                where="extract.engine.api_key_variable",
                todo=f"Run `export {variable}=...` with the key of "
                f"{Address.of(self._config.base_url).shown}; an empty name sends no key.",
            )
        return SecretStr(key)

    def _guarding(self) -> Any | None:
        """The actor that guards the budget, on the driver's node as long as this engine."""
        if self._config.budget is None:
            return None
        if self._guard is None:
            here = NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )
            guard = ray.remote(SpendingGuard).options(num_cpus=0, scheduling_strategy=here)
            self._guard = guard.remote(self._config.budget)
        return self._guard
