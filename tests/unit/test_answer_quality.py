"""The gate: what a model may write in the place of an answer never becomes knowledge."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reki_ray.config import PromptsConfig
from reki_ray.prompts.frame import Frame, Reply, Verdict, best_of
from reki_ray.prompts.languages import LANGUAGES, is_other_language
from reki_ray.prompts.quality import (
    OTHER,
    PROBLEMS,
    Shown,
    is_loop,
    is_refusal,
    is_unknown,
    problem_of,
    same_texts,
    without_repeats,
)
from reki_ray.prompts.render import Renderer, load_scenario
from reki_ray.prompts.reply_text import answer_in
from reki_ray.prompts.scenario import SCENARIOS
from reki_ray.schema import WHOLE_ANSWER

FACTORS = ("genre", "character", "plot and theme", "mood and tone")
GOOD = {
    "genre": "hard-boiled crime drama",
    "character": "a weary detective and a careful thief",
    "plot and theme": "one last robbery, duty against love",
    "mood and tone": "cool, tense and lonely",
}
LINES = "\n".join(f"{key}: {text}" for key, text in GOOD.items())
SECRET = "SECRETDRAFT: perhaps a comedy?"


def frame(**limits: object) -> Frame:
    return Renderer(
        load_scenario("movies"), PromptsConfig.model_validate({"factors": FACTORS, **limits})
    ).frame


TEXT, JSON, SHOTS = frame(), frame(form="json"), frame(few_shot=True)
BODY = Renderer(load_scenario("movies"), PromptsConfig()).item("1", "Heat", None, None).body


def judged(text: str, finish_reason: str | None = "stop", by: Frame = TEXT) -> Verdict:
    return by.judge("item", BODY, Reply(text, finish_reason))


# --- reasoning and markup ----------------------------------------------------------------------
AROUND = [
    "<think>\n{draft}\n</think>\n\n{answer}",
    "<think></think>{answer}",
    "{draft}\n</think>\n{answer}",  # the prompt held the opening tag
    "<thinking>{draft}</thinking>{answer}",
    "<Thought>{draft}</Thought>{answer}",
    "<reasoning effort='high'>{draft}</reasoning>{answer}",
    "<reflection>{draft}</reflection>{answer}",
    "<think>{draft}<think>{draft}</think>{answer}",
    "<think>{draft}<think>{draft}</think>{draft}</think>{answer}",
    "<seed:think>{draft}</seed:think>{answer}",
    "[THINK]{draft}[/THINK]{answer}",
    "\u25c1think\u25b7{draft}\u25c1/think\u25b7{answer}",
    "<|START_THINKING|>{draft}<|END_THINKING|><|START_RESPONSE|>{answer}<|END_RESPONSE|>",
    "<|begin_of_thought|>{draft}<|end_of_thought|>{answer}",
    "<think>{draft}</think><answer>{answer}</answer>",
    "{answer}\n<think>{draft}",
    "<|channel|>analysis<|message|>{draft}<|end|><|start|>assistant<|channel|>final<|message|>"
    "{answer}<|return|>",
    "analysis{draft}assistantfinal{answer}",
    "Here is my thought process: {draft} Here is my response: {answer}",
    "```\n{answer}\n```",
    "```text\n{answer}\n```",
    "{answer}<|im_end|><|endoftext|>",
    "{answer}<|eot_id|>",
    "{answer}</s>",
    "{answer}<end_of_turn>\n<start_of_turn>user\n{draft}",
    "{answer}\n<|im_end|>\n<|im_start|>user\n{draft}",
    "<s>{answer}</s>",
    "\ufeff{answer}\u200b",
]


@pytest.mark.parametrize("template", AROUND)
@pytest.mark.parametrize("by", [TEXT, JSON], ids=["text", "json"])
def test_only_the_answer_inside_a_reply_is_knowledge(template: str, by: Frame) -> None:
    answer = LINES if by is TEXT else json.dumps(GOOD)
    draft = SECRET if by is TEXT else json.dumps(dict.fromkeys(GOOD, SECRET))
    reply = template.replace("{draft}", draft).replace("{answer}", answer)
    verdict = judged(reply, by=by)
    assert verdict.texts == ({WHOLE_ANSWER: LINES} if by is TEXT else GOOD)


@pytest.mark.parametrize(
    "reply",
    [
        f"<think>{SECRET}",
        f"<|channel|>analysis<|message|>{SECRET}",
        f"analysisWe need to. {SECRET}",
        f"[THINK]{SECRET}",
        f"<think>{json.dumps(GOOD)} and so on",
        f"Okay, the user wants {json.dumps(GOOD)}, so I first weigh a long list of other options. "
        f"Should it be {json.dumps(GOOD)}? Perhaps the mood is not",
    ],
)
@pytest.mark.parametrize("by", [TEXT, JSON], ids=["text", "json"])
def test_reasoning_that_was_cut_off_is_no_answer(reply: str, by: Frame) -> None:
    verdict = judged(reply, "length", by)
    assert verdict.texts is None
    assert problem_of(verdict.reason) in {"reasoning", "cut"}
    assert "max_tokens" in verdict.reason or problem_of(verdict.reason) == "cut"


def test_entities_are_read_and_markup_of_a_text_stays() -> None:
    assert answer_in("genre: Tom &amp; Jerry &#8217;s").text == "genre: Tom & Jerry \u2019s"
    assert answer_in("plot: AT&T; <b>bold</b> [reason] 1 < 2").text == (
        "plot: AT&T; <b>bold</b> [reason] 1 < 2"
    )
    family = "\U0001f469\u200d\U0001f467"
    assert answer_in(f"mood: {family}").text == f"mood: {family}"


# --- what is no answer -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("reply", "finish_reason", "problem"),
    [
        ("", "stop", "blank"),
        (" \n\t ", "stop", "blank"),
        ("\u200b\u200b\ufeff", "stop", "blank"),
        ("...", "stop", "blank"),
        ("```\n```", "stop", "blank"),
        ("I'm sorry, but I can't help with that request.", "stop", "refusal"),
        ("I\u2019m sorry, I cannot assist with it.", "stop", "refusal"),
        ("As an AI language model, I have no opinions on films.", "stop", "refusal"),
        ("Unfortunately, I do not have any specific information on this film.", "stop", "refusal"),
        (LINES, "error", "error"),
        (LINES[:40], "abort", "error"),
        (LINES, "content_filter", "filter"),
        ("类型: 黑色电影, 节奏缓慢", None, "language"),
        ("genre: un drama criminal para los adultos\ncharacter: una mujer y el hombre que ama "
         "con pasión\nplot and theme: la venganza\nmood and tone: oscuro", "stop", "language"),
        ("A fine film that you will like.", "stop", "missing"),
        ("character: a thief who", "length", "cut"),
        ("genre: a film about a film about a film about a film about a", "length", "loop"),
        ("genre: ithier 1997, 1998, 1999, 2000, 2001, 2002, 2003", "length", "loop"),
        ("\n".join(f"{key}: the film is good" for key in FACTORS), "stop", "loop"),
        ("\n".join(f"{key}: unknown" for key in FACTORS), "stop", "unknown"),
        (BODY, "stop", "copy"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_asked_again_and_then_quarantined(
    reply: str, finish_reason: str | None, problem: str
) -> None:
    first = judged(reply, finish_reason)
    assert first.texts is None
    assert problem_of(first.reason) == problem
    assert (first.repair is None) == (problem == "filter")
    last = TEXT.judge("item", BODY, Reply(reply, finish_reason), repaired=True)
    assert last.texts is None
    assert problem_of(last.reason) == problem
    assert last.repair is None


def test_a_worked_example_is_no_answer() -> None:
    messages = SHOTS.messages("item", BODY)
    example = messages[2].content
    verdict = judged(example, by=SHOTS)
    assert verdict.texts is None
    assert problem_of(verdict.reason) == "copy"
    # Cut off, changed at its end, or with another factor's name: it remains a copy.
    altered = "\n".join(line[:-9] + " of it" for line in example.splitlines())
    assert judged(altered, by=SHOTS).texts is None
    assert judged(LINES, by=SHOTS).texts == {WHOLE_ANSWER: LINES}
    # What no prompt shows can't be copied from it.
    assert judged(example, by=TEXT).texts is not None


def test_a_description_of_a_factor_is_no_answer() -> None:
    texts = {factor.key: factor.description for factor in load_scenario("movies").factors}
    verdict = judged("\n".join(f"{key}: {texts[key]}" for key in FACTORS))
    assert verdict.texts is None
    assert set(verdict.flaws.values()) == {"copy"}


def test_a_bad_factor_stays_empty_and_the_others_count() -> None:
    lines = LINES.splitlines()
    lines[1] = "character: men men men men men men"
    verdict = judged("Sure!\n" + "\n".join(lines))
    assert verdict.texts == {WHOLE_ANSWER: "\n".join([lines[0], *lines[2:]])}
    assert verdict.flaws == {"character": "loop"}
    lines[2] = "plot and theme: not specified in the data"
    lines[3] = "mood and tone: I'm sorry, I can't say that"
    verdict = judged("\n".join(lines))  # two of four named, one of them unknown
    assert verdict.texts == {WHOLE_ANSWER: lines[0]}
    assert verdict.flaws == {
        "character": "loop",
        "plot and theme": "unknown",
        "mood and tone": "refusal",
    }


def test_the_share_of_factors_is_configured() -> None:
    one, half = LINES.splitlines()[0], "\n".join(LINES.splitlines()[:2])
    assert judged(half).texts == {WHOLE_ANSWER: half}
    assert judged(half, by=frame(min_factors=0.75)).texts is None
    # Less than half is asked for once more, and better than nothing.
    first = judged(one)
    assert first.texts is None
    assert first.repair is not None
    assert problem_of(first.reason) == "missing"
    last = TEXT.judge("item", BODY, Reply(one), repaired=True)
    assert last.texts == {WHOLE_ANSWER: one}
    assert set(last.flaws) == set(FACTORS[1:])
    strict = frame(min_factors=0.75)
    assert strict.judge("item", BODY, Reply(one), repaired=True).texts is None
    prose = "A cool crime drama in which a weary detective hunts a careful thief."
    assert judged(prose).texts is None
    free = frame(min_factors=0)
    assert judged(prose, by=free).texts == {WHOLE_ANSWER: prose}
    for bad, problem in [("I'm sorry, I can't help with that.", "refusal"), ("so " * 50, "loop")]:
        assert problem_of(judged(bad, by=free).reason) == problem


def test_the_better_of_two_answers_counts() -> None:
    part = {**GOOD, "genre": "men men men men men men"}
    first = judged(json.dumps(part), by=JSON)
    assert first.repair is not None  # form json promises every factor
    assert first.spare is not None
    whole = JSON.judge("item", BODY, Reply(json.dumps(GOOD)), repaired=True)
    worse = JSON.judge("item", BODY, Reply("{}"), repaired=True)
    assert best_of(first, whole).texts == GOOD
    assert best_of(first, worse).texts == {key: GOOD[key] for key in FACTORS[1:]}
    hopeless = judged("", by=JSON)
    assert best_of(hopeless, worse) is worse


# --- the checks themselves ---------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    [
        "a a a a a a a a a a",
        "the film is a film about a film " * 6,
        "1955, 1957, 1958, 1965, 1957, 1958, 1965, 1957",
        "1990s, 1991s, 1992s, 1993s, 1994s, 1995s, 1996s",
        "hahahahahahahaha",
        "\u4e00\u90e8\u7535\u5f71" * 8,
        "like action, like drama, " * 5,
    ],
)
def test_loops(text: str) -> None:
    assert is_loop(text)


@pytest.mark.parametrize(
    "text",
    [
        "very very very good",
        "Star Wars, Star Trek and Star Wars again",
        "1960s, 1970s, 1980s and 1990s",
        "New York, New York",
        "comedy, romance, drama, war, crime",
        "a man who loves a woman who loves a man who loves a dog",
        "-----",
        "Duran Duran, The The, Talk Talk",
        "boo hoo hoo",
    ],
)
def test_no_loops(text: str) -> None:
    assert not is_loop(text)


def test_words_of_ignorance() -> None:
    for text in ("unknown", "Unknown.", "n/a", "N/A (no data)", "not specified in the data", "-",
                 "no information available", "I don't know", "it is unclear from it"):  # fmt: skip
        assert is_unknown(text), text
    for text in ("none", "unknown soldiers at the front", "no budget at all", "nothing is sacred",
                 "unclear motives of a stranger"):  # fmt: skip
        assert not is_unknown(text), text


def test_a_plot_may_tell_of_refusals() -> None:
    assert not is_refusal("a judge who must decline the case of his life", within=20)
    assert not is_refusal("soldiers who say they will not fight")
    assert is_refusal("Sorry, but I am not able to discuss this.")


def test_copies_of_prompts() -> None:
    shown = Shown(["Well reviewed, several Academy Awards for animation", "drama"])
    assert shown.copied("well reviewed, several Academy Awards for animation")
    assert shown.copied("Well reviewed, several Academy Awards for romance in the")
    assert shown.copied("several academy awards")
    assert not shown.copied("drama")
    assert not shown.copied("well reviewed in several countries, no awards")


def test_a_list_names_each_phrase_once() -> None:
    assert without_repeats("drama, war, drama") == "drama, war"
    assert without_repeats("one sentence, and more") == "one sentence, and more"
    same = {"a": "x y z", "b": "X, y z", "c": "x y z.", "d": "u"}
    assert same_texts(same) == ["a", "b", "c"]
    assert same_texts(dict.fromkeys("abc", "crime drama")) == []
    assert same_texts({"a": "x", "b": "x"}) == []


def test_languages_by_script_and_by_function_words() -> None:
    english = "a weary detective and a thief who are rivals of the same kind"
    others = {
        "de": "ein müder Kommissar und ein Dieb, die sich nicht so fremd sind, auf der Flucht",
        "fr": "un commissaire et un voleur qui sont les deux faces de la même pièce",
        "es": "un detective y un ladrón que son las dos caras de la moneda",
        "ru": "\u0441\u044b\u0449\u0438\u043a \u0438 \u0432\u043e\u0440",
        "ja": "\u75b2\u308c\u305f\u5211\u4e8b\u3068\u6ce5\u68d2\u306e\u7269\u8a9e",
        "ko": "\uc9c0\uce5c \ud615\uc0ac\uc640 \ub3c4\ub451\uc758 \uc774\uc57c\uae30",
    }  # fmt: skip
    assert not is_other_language(english, "en")
    for code, text in others.items():
        assert is_other_language(text, "en"), code
        assert not is_other_language(text, code), code
        assert is_other_language(english, code), code
    assert not is_other_language("Federico Fellini: La Strada, La Dolce Vita, Il Bidone", "en")
    assert set(others) | {"en"} <= set(LANGUAGES)


def test_the_worked_answers_of_all_scenarios_pass() -> None:
    for name in SCENARIOS:
        scenario = load_scenario(name)
        made = Renderer(scenario, PromptsConfig()).frame
        for kind in ("item", "user", "item_cluster", "user_cluster"):
            texts = scenario.examples.answer(kind)
            lines = "\n".join(f"{key}: {text}" for key, text in texts.items())
            verdict = made.judge(kind, BODY, Reply(lines, "stop"))
            assert verdict.texts == {WHOLE_ANSWER: lines}
            assert not verdict.flaws


@given(st.lists(st.text(max_size=30), max_size=40).map(" ".join))
def test_no_check_raises_and_each_reason_names_its_problem(text: str) -> None:
    is_loop(text)
    is_refusal(text)
    is_unknown(text)
    for by in (TEXT, JSON, SHOTS):
        verdict = judged(text, by=by)
        if verdict.texts is None:
            assert problem_of(verdict.reason) in PROBLEMS
    assert problem_of(f"{text}: x") == (text if text in PROBLEMS else OTHER)
