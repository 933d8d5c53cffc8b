"""The form that structured output forces on an answer is the one the parser reads."""

from __future__ import annotations

import re

import jsonschema
import pytest

from reki_ray.prompts.output_format import json_schema
from reki_ray.prompts.reply_parser import by_factor, factor_lines
from reki_ray.prompts.scenario import SCENARIOS, load_scenario

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


def test_choices_are_one_or_two_different_ones_of_the_list() -> None:
    choices = {"genre": ["crime", "drama", "children's"]}
    form = re.compile(factor_lines(FACTORS, choices))
    rest = "\ndirector and actors: Michael Mann's ensemble"
    for right in ("genre: crime", "genre: crime, drama", "genre: children's, crime"):
        assert form.fullmatch(right + rest)
    for wrong in ("genre: crime, crime", "genre: war", "genre: crime, drama, crime", "genre: "):
        assert not form.fullmatch(wrong + rest)
    assert re.compile(factor_lines(["a"], {"a": ["x"]})).fullmatch("a: x")


def test_choices_of_a_json_answer_are_an_array_of_the_list() -> None:
    schema = json_schema(FACTORS, 64, {"genre": ["crime", "drama"]})
    jsonschema.validate({"genre": ["crime"], "director and actors": "x"}, schema)
    for wrong in ([], ["war"], ["crime", "drama", "crime"], "crime"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"genre": wrong, "director and actors": "x"}, schema)


def test_every_scenario_has_closed_lists_that_read_back_as_they_are() -> None:
    for name in SCENARIOS:
        scenario = load_scenario(name)
        listed = [factor for factor in scenario.factors if factor.choices]
        assert len(listed) >= 6
        for factor in listed:
            assert len(set(factor.choices)) == len(factor.choices)
            for choice in factor.choices:
                assert by_factor(f"{factor.key}: {choice}", [factor.key]) == {factor.key: choice}
                assert re.escape(choice).replace("\\ ", " ").replace("\\-", "-") in {
                    choice,
                    choice.replace("&", r"\&"),
                }
