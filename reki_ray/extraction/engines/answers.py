"""From what a model said to rows of `ANSWER_SCHEMA`: the one way for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from reki_ray.extraction.engines.protocol import ANSWER_SCHEMA, QUESTION_SCHEMA
from reki_ray.prompts.frame import Reply
from reki_ray.schema import (
    ASKED_AT,
    CACHED_TOKENS,
    CALLS,
    FINISH_REASON,
    GENERATED_TOKENS,
    PROMPT_TOKENS,
    REASON,
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
    """

    texts: dict[str, str] | None
    reason: str = ""
    replies: tuple[Reply, ...] = ()
    asked_at: float | None = None


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
    }
    return pa.table(columns, schema=ANSWER_SCHEMA)
