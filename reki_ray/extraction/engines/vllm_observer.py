"""vLLM's stage in Ray Data, watched and made to ask once more.

The stage hands on neither why an answer ended nor how much of the prompt was cached, and it
knows no repair of broken answers. This adds both inside the engine's actor, where a repair
finds its prompt in the prefix cache.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from reki_ray.llm.chat_template import ChatRenderer
from reki_ray.llm.outcome import Outcome
from reki_ray.prompts.template import PromptTemplate, Reply
from reki_ray.schema import BODY, PROMPT, SUBJECT_KIND

if TYPE_CHECKING:
    import uuid

OUTCOME: Final = "outcome"
"""Column with the outcome of a row, JSON: the stage's own rows know no maps."""

_ERROR = "__inference_error__"


@dataclass(frozen=True)
class CallFigures:
    """What the engine's output tells of a call, in the place of its timing metrics."""

    finish_reason: str | None
    cached_tokens: int


class _Observed:
    """The asynchronous engine, whose finished outputs tell how they ended."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def generate(self, *, sampling_params: Any, **request: Any) -> AsyncIterator[Any]:
        from vllm.sampling_params import RequestOutputKind  # only where it runs

        # Nobody reads half an answer: handing on every token costs a third of a small model's
        # speed on a CPU.
        sampling_params.output_kind = RequestOutputKind.FINAL_ONLY
        async for output in self._engine.generate(sampling_params=sampling_params, **request):
            if output.finished:
                output.metrics = CallFigures(
                    output.outputs[0].finish_reason, output.num_cached_tokens or 0
                )
            yield output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def observing(stage: type, template: PromptTemplate, chat: ChatRenderer) -> type:
    """The stage's class with outcomes instead of raw outputs.

    Args:
        stage: Class of Ray Data's vLLM stage.
        template: Judges the replies.
        chat: Renders repairs.
    """

    class ObservedStage(stage):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.llm.engine = _Observed(self.llm.engine)

        async def _generate_with_error_handling(
            self, row: dict[str, Any], batch_uuid: uuid.UUID
        ) -> dict[str, Any]:
            kind, body = row[SUBJECT_KIND], row[BODY]
            asked_at = time.time()
            spare = copy.deepcopy(row)  # a call takes its row apart
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
            figures = output["metrics"]
            return (
                Reply(
                    output["generated_text"],
                    figures["finish_reason"],
                    output["num_input_tokens"],
                    figures["cached_tokens"],
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
