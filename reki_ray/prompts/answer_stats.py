"""How good the answers of a plan are: retried, quarantined, or with empty factors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
from pydantic import BaseModel

from reki_ray.prompts.quality import problem_of
from reki_ray.schema import FLAWS, REASON, RETRY_REASON


class AnswerStats(BaseModel):
    """Counts over subjects with a prompt; JSON-ready.

    Attributes:
        answered: Subjects with an answer.
        complete: Subjects whose answer has no empty factor.
        empty_factors: Empty factors over all answers, by factor.
        flaws: Empty factors over all answers, by problem.
        asked_again: Answers to a retry, by the problem of the first answer.
        quarantined: Subjects without an answer, by problem.
    """

    answered: int = 0
    complete: int = 0
    empty_factors: dict[str, int] = {}
    flaws: dict[str, int] = {}
    asked_again: dict[str, int] = {}
    quarantined: dict[str, int] = {}

    @property
    def subjects(self) -> int:
        """Subjects with a prompt."""
        return self.answered + sum(self.quarantined.values())

    def __add__(self, other: AnswerStats) -> AnswerStats:
        return AnswerStats(
            answered=self.answered + other.answered,
            complete=self.complete + other.complete,
            empty_factors=_total(self.empty_factors, other.empty_factors),
            flaws=_total(self.flaws, other.flaws),
            asked_again=_total(self.asked_again, other.asked_again),
            quarantined=_total(self.quarantined, other.quarantined),
        )


def stats_of_answers(answers: pa.Table) -> AnswerStats:
    """Count answers: rows of the answer cache, one per subject."""
    flaws = [dict(pairs or ()) for pairs in answers[FLAWS].to_pylist()]
    again = [reason for reason in answers[RETRY_REASON].to_pylist() if reason]
    return AnswerStats(
        answered=len(flaws),
        complete=sum(not flawed for flawed in flaws),
        empty_factors=_counts(factor for flawed in flaws for factor in flawed),
        flaws=_counts(problem for flawed in flaws for problem in flawed.values()),
        asked_again=_counts(map(problem_of, again)),
    )


def stats_of_dead_letters(letters: pa.Table) -> AnswerStats:
    """Count dead letters by problem."""
    return AnswerStats(quarantined=_counts(map(problem_of, letters[REASON].to_pylist())))


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _total(left: dict[str, int], right: dict[str, int]) -> dict[str, int]:
    return dict((Counter(left) + Counter(right)).most_common())


def describe(stats: AnswerStats) -> str:
    """Describe the answers in one line."""
    again = sum(stats.asked_again.values())
    dead = sum(stats.quarantined.values())
    empty = sum(stats.empty_factors.values())
    return (
        f"{_share(stats.complete, stats.answered)} of the answers name every factor"
        f" ({empty:,} empty factors{_listed(stats.flaws)}); "
        f"{_share(again, stats.subjects)} were asked once more{_listed(stats.asked_again)}, "
        f"{_share(dead, stats.subjects)} are quarantined{_listed(stats.quarantined)}"
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0%"


def _listed(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{problem} {count:,}" for problem, count in counts.items())
    return f": {shown}" if shown else ""
