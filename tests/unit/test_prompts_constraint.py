"""The form that structured output forces on an answer is the one the parser reads."""

from __future__ import annotations

import re

from reki_ray.prompts.parse import by_factor, factor_lines

FACTORS = ("genre", "director and actors")


def test_the_constraint_accepts_one_line_a_factor_and_nothing_else() -> None:
    form = re.compile(factor_lines(FACTORS))
    answer = "genre: crime and drama, nothing else\ndirector and actors: Michael Mann's ensemble"
    assert form.fullmatch(answer)
    assert list(by_factor(answer, FACTORS)) == list(FACTORS)
    for wrong in (
        "genre: crime and drama",
        answer + "\ngenre: again and again",
        answer.replace("crime", "90% crime"),
        answer.replace("genre: crime", "genre: 1997 crime"),
        answer.replace(", ", "\n"),
        answer.replace("crime", "x" * 60),
    ):
        assert not form.fullmatch(wrong)
