"""Ray Data's vLLM stage, extended by finish reasons, cached tokens and a retry of broken answers.

The stage passes on neither why an answer ended nor how much of the prompt was cached, and does not
repair broken answers. Inside the engine's actor a repair finds its prompt in the prefix cache.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from reki_ray.core.downloads import model_here
from reki_ray.llm.chat_template import ChatRenderer
from reki_ray.llm.outcome import Outcome
from reki_ray.prompts.template import PromptTemplate, Reply
from reki_ray.schema import BODY, PROMPT, SUBJECT_KIND

if TYPE_CHECKING:
    import uuid

OUTCOME: Final = "outcome"
"""Column with the outcome of a row as JSON, since rows of the stage cannot hold maps."""

_ERROR = "__inference_error__"


@dataclass(frozen=True)
class CallStats:
    """Facts about a call, put into the engine output's `metrics`."""

    finish_reason: str | None
    cached_tokens: int


class _Observed:
    """The asynchronous engine, whose finished outputs carry `CallStats`."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def generate(self, *, sampling_params: Any, **request: Any) -> AsyncIterator[Any]:
        from vllm.sampling_params import RequestOutputKind  # only where it runs

        # Partial answers are not read, and passing on every token costs a third of a small
        # model's speed on a CPU.
        sampling_params.output_kind = RequestOutputKind.FINAL_ONLY
        async for output in self._engine.generate(sampling_params=sampling_params, **request):
            if output.finished:
                output.metrics = CallStats(
                    output.outputs[0].finish_reason, output.num_cached_tokens or 0
                )
            yield output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def observing(stage: type, template: PromptTemplate, chat: ChatRenderer, *, model: str) -> type:
    """Subclass of Ray Data's vLLM stage that returns outcomes instead of raw outputs.

    Args:
        model: Reference of the model, which each actor resolves on its own node.
    """

    class ObservedStage(stage):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "model": model_here(model)})
            self.llm.engine = _Observed(self.llm.engine)

        async def _generate_with_error_handling(
            self, row: dict[str, Any], batch_uuid: uuid.UUID
        ) -> dict[str, Any]:
            kind, body = row[SUBJECT_KIND], row[BODY]
            asked_at = time.time()
            spare = copy.deepcopy(row)  # a call modifies its row
            first, error = await self._call(row, batch_uuid)
            if first is None:
                outcome = Outcome(None, f"error: {error}", asked_at=asked_at)
            else:
                parsed = template.parse_reply(kind, body, first)
                again, replies = None, [first]
                if parsed.repair:
                    spare[PROMPT] = chat.text(parsed.repair)
                    second, error = await self._call(spare, batch_uuid)
                    if second is not None:
                        again = template.parse_reply(kind, body, second, repaired=True)
                        replies.append(second)
                outcome = Outcome.of(parsed, again, replies, asked_at, error)
            index = self.IDX_IN_BATCH_COLUMN
            return {index: spare[index], OUTCOME: json.dumps(asdict(outcome))}

        async def _call(
            self, row: dict[str, Any], batch_uuid: uuid.UUID
        ) -> tuple[Reply | None, str]:
            output = await super()._generate_with_error_handling(row, batch_uuid)
            if output[_ERROR]:
                return None, output[_ERROR]
            stats = output["metrics"]
            return (
                Reply(
                    output["generated_text"],
                    stats["finish_reason"],
                    output["num_input_tokens"],
                    stats["cached_tokens"],
                    output["num_generated_tokens"],
                ),
                "",
            )

    return ObservedStage


def outcome_of(text: str) -> Outcome:
    """The outcome that a row carries as JSON."""
    fields = json.loads(text)
    replies = tuple(Reply(**reply) for reply in fields["replies"])
    return Outcome(**{**fields, "replies": replies})
