"""Outcomes of questions, and rows of `ANSWER_SCHEMA` from them; shared by all engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from reki_ray import schema
from reki_ray.core import ray_metrics
from reki_ray.prompts.template import ParsedReply, Reply, best_of

TOKEN_COLUMNS: Final = {
    "prompt": schema.PROMPT_TOKENS,
    "cached": schema.CACHED_TOKENS,
    "generated": schema.GENERATED_TOKENS,
}
"""Columns of tokens by their kind in metrics."""


@dataclass(frozen=True)
class Outcome:
    """Result of one question.

    Attributes:
        texts: Factor to text; None without an answer.
        asked_at: Time of the first call, seconds since the epoch; None without one.
        flaws: Factors that stay empty, each with its problem.
        retry_reason: Why it was retried; empty if it was not.
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
        """Outcome of parsed replies.

        Args:
            second: The reply to the repair, parsed; None without one.
            error: Why the repair got no reply; empty otherwise.
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
    """Rows of `ANSWER_SCHEMA` from questions and their outcomes, in the same order."""
    calls = [outcome.replies for outcome in outcomes]
    columns = {
        **{name: questions[name] for name in schema.QUESTION_SCHEMA.names},
        schema.TEXTS: [None if o.texts is None else list(o.texts.items()) for o in outcomes],
        **{
            name: [sum(getattr(reply, name) for reply in replies) for replies in calls]
            for name in TOKEN_COLUMNS.values()
        },
        schema.CALLS: [len(replies) for replies in calls],
        schema.ASKED_AT: [outcome.asked_at for outcome in outcomes],
        schema.FINISH_REASON: [replies[-1].finish_reason if replies else None for replies in calls],
        schema.REASON: [outcome.reason for outcome in outcomes],
        schema.FLAWS: [list(outcome.flaws.items()) for outcome in outcomes],
        schema.RETRY_REASON: [outcome.retry_reason for outcome in outcomes],
    }
    table = pa.table(columns, schema=schema.ANSWER_SCHEMA)
    _count(table)
    return table


def _count(table: pa.Table) -> None:
    """Count answers where they are made, since every engine's come through here."""
    answered = len(table) - table[schema.TEXTS].null_count
    ray_metrics.count("reki_engine_prompts", answered, outcome="answered")
    ray_metrics.count("reki_engine_prompts", len(table) - answered, outcome="dead")
    for kind, column in TOKEN_COLUMNS.items():
        ray_metrics.count("reki_engine_tokens", pc.sum(table[column]).as_py() or 0, kind=kind)
