"""Scenarios load, answer their own factors, and refuse what breaks the rules."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from reki_ray.config import PromptsConfig
from reki_ray.errors import ConfigError
from reki_ray.prompts.chat import plain_text
from reki_ray.prompts.renderer import Renderer, histogram
from reki_ray.prompts.reply_parser import by_factor, clean, prompt_lines
from reki_ray.prompts.scenario import SCENARIOS, load_scenario


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_that_come_along_render_every_kind(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    renderer = Renderer(scenario, PromptsConfig(few_shot=True))
    shares = histogram([{"kind": ["a"]}])
    prompts = [
        renderer.item("i", "Title", {"kind": ["a"]}, "Text"),
        renderer.user("u", None, [("Title", None)]),
        renderer.item_cluster("c", 2, [("Title", None)], shares),
        renderer.user_cluster("c", 2, [], shares),
    ]
    for prompt in prompts:
        messages = renderer.template.messages(prompt.subject_kind, prompt.body)
        roles = [message.role for message in messages]
        assert roles == ["system", "user", "assistant", "user"]
        for factor in scenario.factors:
            assert f"- {factor.key}: " in messages[0].content
        keys = [factor.key for factor in scenario.factors]
        assert list(by_factor(messages[2].content, keys)) == keys


def test_prompts_of_a_kind_share_everything_but_the_subject() -> None:
    renderer = Renderer(load_scenario("movies"), PromptsConfig(few_shot=True))
    first, second = (
        renderer.template.messages("item", renderer.item("1", title, None, None).body)
        for title in ("Heat", "Alien")
    )
    assert first[:-1] == second[:-1]
    assert first[-1] != second[-1]


def test_only_chosen_factors_are_asked_and_exemplified() -> None:
    limits = PromptsConfig(factors=("genre", "soundtrack"), few_shot=True)
    renderer = Renderer(load_scenario("movies"), limits)
    messages = renderer.template.messages("item", renderer.item("1", "Heat", None, None).body)
    assert "critical acclaim" not in plain_text(messages)
    assert messages[2].content.count("\n") == 1


def test_an_unknown_factor_is_named() -> None:
    with pytest.raises(ConfigError, match="smell"):
        Renderer(load_scenario("movies"), PromptsConfig(factors=("smell",)))


def test_a_user_prompt_shows_the_latest_of_a_history_above_the_limit() -> None:
    limits = PromptsConfig(max_history=3)
    history: list[tuple[str, float | None]] = [(f"Film {i}", float(i % 5 + 1)) for i in range(9)]
    body = Renderer(load_scenario("movies"), limits).user("u", None, history).body
    assert "- Film 6: 2\n- Film 7: 3\n- Film 8: 4\n" in body
    assert "Film 5" not in body


def test_own_scenarios_are_read_from_a_path_and_checked(tmp_path: Path) -> None:
    own = load_scenario("books").model_dump()
    own["name"] = "comics"
    path = tmp_path / "comics.yaml"
    path.write_text(yaml.safe_dump(own, sort_keys=False), encoding="utf-8")
    assert load_scenario(str(path)).name == "comics"

    own["examples"]["item"]["answer"].pop("genre")
    path.write_text(yaml.safe_dump(own, sort_keys=False), encoding="utf-8")
    with pytest.raises(ConfigError, match="example item"):
        load_scenario(str(path))


@pytest.mark.parametrize("content", ["", "- a", "name: [", "name: x\nextra: 1"])
def test_broken_scenarios_are_configuration_errors(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError):
        load_scenario(str(path))
    with pytest.raises(ConfigError, match="movies"):
        load_scenario("no-such-scenario")


def test_histogram_counts_members_not_values() -> None:
    rows = [{"genre": ["War", "War", "Drama"]}, {"genre": ["Drama"]}, None, {"genre": ["Comedy"]}]
    assert histogram(rows) == {"genre": {"Drama": 0.5, "Comedy": 0.25, "War": 0.25}}
    assert histogram(rows, top=1) == {"genre": {"Drama": 0.5}}
    assert histogram([]) == {}


FACTORS = ["genre", "mood and tone"]


def test_answers_lose_echoes_and_cut_ends() -> None:
    prompt = "### Task\nWrite one line for each factor.\n<data>\nmovie: Heat\n</data>\n"
    answer = "Write one line for each factor.\n<data>\nmovie: Heat\n</data>\ngenre: crime\nmood and"
    asked = prompt_lines(prompt, FACTORS)
    assert clean(answer, asked) == "genre: crime\nmood and"
    assert clean(answer, asked, cut=True) == "genre: crime"
    assert clean("One. Two is cu", asked, cut=True) == "One."
    assert clean("cut at once", asked, cut=True) == "cut at once"


def test_factor_lines_of_the_example_are_no_echo() -> None:
    prompt = "genre: a crime drama for adults\nDescribe the movie for a system."
    asked = prompt_lines(prompt, FACTORS)
    assert clean("genre: a crime drama for adults", asked) is not None
    assert clean("Describe the movie for a system.", asked) is None


@pytest.mark.parametrize("answer", ["", " \n\t", "\n"])
def test_nothing_is_left_of_an_empty_answer(answer: str) -> None:
    assert clean(answer) is None


def test_factors_are_found_whatever_their_list_marks() -> None:
    text = "1. **Genre:** crime\n- mood and tone: dark\nunknown: x\ngenre: second\nmood and tone"
    assert by_factor(text, FACTORS) == {"genre": "crime", "mood and tone": "dark"}


def test_factors_are_known_by_a_part_of_their_name_where_no_other_is_meant() -> None:
    factors = ["mood and tone", "time period and country", "plot and theme", "theme of music"]
    text = "Mood: dark\nTime Period: 1940s\ntheme: war\nplot: a robbery\nand: x\nsound: y"
    assert by_factor(text, factors) == {
        "mood and tone": "dark",
        "time period and country": "1940s",
        "plot and theme": "a robbery",
    }
