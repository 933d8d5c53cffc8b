"""From what a model said to rows of `ANSWER_SCHEMA`: the one way for every engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from reki_ray.prompts.template import ParsedReply, Reply, best_of
from reki_ray.schema import (
    ANSWER_SCHEMA,
    ASKED_AT,
    CACHED_TOKENS,
    CALLS,
    FINISH_REASON,
    FLAWS,
    GENERATED_TOKENS,
    PROMPT_TOKENS,
    QUESTION_SCHEMA,
    REASON,
    RETRY_REASON,
    TEXTS,
)


@dataclass(frozen=True)
class Outcome:
    """What became of one question.

    Attributes:
        texts: Factor to text; None where there is no answer.
        reason: Why there is none; empty where there is one.
        replies: What the model said, call by call; empty where no call came back.
        asked_at: When it was asked first, seconds since the epoch; None where it was not.
        flaws: Factors that stay empty, each with its problem.
        retry_reason: Why it was asked once more; empty where it was not.
    """

    texts: dict[str, str] | None
    reason: str = ""
    replies: tuple[Reply, ...] = ()
    asked_at: float | None = None
    flaws: Mapping[str, str] = field(default_factory=dict)
    retry_reason: str = ""

    @classmethod
    def of(
        cls,
        first: ParsedReply,
        second: ParsedReply | None,
        replies: Sequence[Reply],
        asked_at: float,
        error: str = "",
    ) -> Outcome:
        """The outcome of a question that was judged.

        Args:
            first: Of its first reply.
            second: Of the reply to the repair; None where there was none.
            replies: What the model said.
            asked_at: When it was asked first.
            error: Why the repair brought no reply; empty where it brought one or was not made.
        """
        parsed = first if second is None else best_of(first, second)
        if second is None and parsed.repair is not None and parsed.spare is not None:
            parsed = parsed.spare
        reason = parsed.reason
        if error and parsed.texts is None:
            reason = f"{reason}; asked again: {error}"
        asked_again = first.repair is not None and (second is not None or bool(error))
        return cls(
            parsed.texts,
            reason,
            tuple(replies),
            asked_at,
            parsed.flaws,
            first.reason if asked_again else "",
        )


def answer_table(questions: pa.Table, outcomes: Sequence[Outcome]) -> pa.Table:
    """Answers of a block.

    Args:
        questions: N rows of `QUESTION_SCHEMA`.
        outcomes: N outcomes, in the same order.

    Returns:
        N rows of `ANSWER_SCHEMA`.
    """
    replies = [outcome.replies for outcome in outcomes]
    columns = {
        **{name: questions[name] for name in QUESTION_SCHEMA.names},
        TEXTS: [None if o.texts is None else list(o.texts.items()) for o in outcomes],
        PROMPT_TOKENS: [sum(r.prompt_tokens for r in said) for said in replies],
        CACHED_TOKENS: [sum(r.cached_tokens for r in said) for said in replies],
        GENERATED_TOKENS: [sum(r.generated_tokens for r in said) for said in replies],
        CALLS: [len(said) for said in replies],
        ASKED_AT: [outcome.asked_at for outcome in outcomes],
        FINISH_REASON: [said[-1].finish_reason if said else None for said in replies],
        REASON: [outcome.reason for outcome in outcomes],
        FLAWS: [list(outcome.flaws.items()) for outcome in outcomes],
        RETRY_REASON: [outcome.retry_reason for outcome in outcomes],
    }
    return pa.table(columns, schema=ANSWER_SCHEMA)
