"""The gate: what a model may write in the place of an answer never becomes knowledge."""

# ruff: noqa: RUF001  # letters of other scripts

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reki_ray.config import PromptsConfig
from reki_ray.prompts.languages import LANGUAGES, foreign_factors, is_other_language
from reki_ray.prompts.quality import (
    OTHER,
    PROBLEMS,
    Shown,
    ending,
    flaw_of,
    is_loop,
    is_placeholder,
    is_refusal,
    is_unknown,
    problem_of,
    same_texts,
    without_repeats,
)
from reki_ray.prompts.renderer import Renderer
from reki_ray.prompts.reply_text import answer_in
from reki_ray.prompts.scenario import SCENARIOS, load_scenario
from reki_ray.prompts.template import MAX_REPLY_CHARS, ParsedReply, PromptTemplate, Reply, best_of
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


def template(**limits: object) -> PromptTemplate:
    return Renderer(
        load_scenario("movies"), PromptsConfig.model_validate({"factors": FACTORS, **limits})
    ).template


def in_language(code: str) -> PromptTemplate:
    asked = template()
    return PromptTemplate(FACTORS, "text", {"item": asked.messages("item", "")[:-1]}, language=code)


TEXT, JSON, SHOTS = template(), template(form="json"), template(few_shot=True)
BODY = Renderer(load_scenario("movies"), PromptsConfig()).item("1", "Heat", None, None).body


def judged(text: str, finish_reason: str | None = "stop", by: PromptTemplate = TEXT) -> ParsedReply:
    return by.parse_reply("item", BODY, Reply(text, finish_reason))


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
    "<longcat_think>{draft}</longcat_think>{answer}",
    "<internal_thoughts>{draft}</internal_thoughts>{answer}",
    "<REASONING_SCRATCHPAD>{draft}</REASONING_SCRATCHPAD>{answer}",
    "<my-chain_of_thought id='1'>{draft}</my-chain_of_thought>{answer}",
    "<think/>{answer}",
    "<|channel>thought\n{draft}<channel|>{answer}",
    "<\uff5cbegin\u2581of\u2581thinking\uff5c>{draft}<\uff5cend\u2581of\u2581thinking\uff5c>{answer}",
    "<|reasoning_start|>{draft}<|reasoning_end|>{answer}",
    "&lt;think&gt;{draft}&lt;/think&gt;{answer}",
    "\\u003cthink\\u003e{draft}\\u003c/think\\u003e{answer}",
    '<details type="reasoning" done="true">\n<summary>Thought for 3 s</summary>\n{draft}\n'
    "</details>\n{answer}",
    "<details>\n<summary>Reasoning</summary>\n{draft}\n</details>\n{answer}",
    "```thinking\n{draft}\n```\n{answer}",
    "~~~ my_reasoning\n{draft}\n~~~\n```\n{answer}\n```",
    "**Thinking:** {draft}\n\n**Answer:**\n{answer}",
    "Reasoning: {draft}\nAnswer: not sure yet\nFinal answer: {answer}",
    "Thought process:\n{draft}\n### Final Response:\n{answer}",
    "Let me see. {draft}\n**Final Answer:** {answer}",
    "analysisthe user wants {draft}assistantfinal{answer}",
    "analysis We need to answer. {draft} assistant final {answer}",
    "{draft}\n\nWait, better:\n\n{answer}",
    "{answer}\n\n### Subject\nanother film\n### Answer\n{draft}",
    "\ufeff{answer}\u200b",
]


@pytest.mark.parametrize("template", AROUND)
@pytest.mark.parametrize("by", [TEXT, JSON], ids=["text", "json"])
@pytest.mark.parametrize("in_form", [True, False], ids=["draft in form", "draft in prose"])
def test_only_the_answer_inside_a_reply_is_knowledge(
    template: str, by: PromptTemplate, in_form: bool
) -> None:
    answer = LINES if by is TEXT else json.dumps(GOOD)
    form = "\n".join(f"{key}: {SECRET}" for key in GOOD)
    draft = form if by is TEXT else json.dumps(dict.fromkeys(GOOD, SECRET))
    draft = f"\n{draft}\n" if in_form else SECRET
    reply = template.replace("{draft}", draft).replace("{answer}", answer)
    parsed = judged(reply, by=by)
    assert parsed.texts == ({WHOLE_ANSWER: LINES} if by is TEXT else GOOD)


@pytest.mark.parametrize(
    "reply",
    [
        f"<think>{SECRET}",
        f"<|channel|>analysis<|message|>{SECRET}",
        f"analysisWe need to. {SECRET}",
        f"[THINK]{SECRET}",
        f"<longcat_think>{LINES}",
        f"```thinking\n{LINES}",
        f'<details type="reasoning">\n{LINES}',
        f"analysisthe user wants\n{LINES}",
        f"<|channel>thought\n{LINES}",
        f"<think>{json.dumps(GOOD)} and so on",
        f"Okay, the user wants {json.dumps(GOOD)}, so I first weigh a long list of other options. "
        f"Should it be {json.dumps(GOOD)}? Perhaps the mood is not",
    ],
)
@pytest.mark.parametrize("by", [TEXT, JSON], ids=["text", "json"])
def test_reasoning_that_was_cut_off_is_no_answer(reply: str, by: PromptTemplate) -> None:
    parsed = judged(reply, "length", by)
    assert parsed.texts is None
    assert problem_of(parsed.reason) in {"reasoning", "cut"}
    assert "max_tokens" in parsed.reason or problem_of(parsed.reason) == "cut"


@pytest.mark.parametrize("by", [TEXT, JSON], ids=["text", "json"])
def test_a_draft_is_no_answer(by: PromptTemplate) -> None:
    draft = {key: "a draft of it" + key for key in GOOD}
    if by is JSON:
        fewer = dict(list(GOOD.items())[:3])
        first = judged(f"Draft: {json.dumps(draft)} Final: {json.dumps(fewer)}", by=JSON)
        assert first.spare is not None
        assert first.spare.texts == fewer
        cut = judged(f"Draft: {json.dumps(draft)} Hmm, that", "length", JSON)
        assert problem_of(cut.reason) == "cut"
    else:
        lines = "\n".join(f"{key}: {text}" for key, text in draft.items())
        assert judged(f"{lines}\nNo.\n{LINES}").texts == {WHOLE_ANSWER: LINES}
        # What begins once more and does not end is no better answer.
        again = judged(f"{LINES}\n{lines.splitlines()[0]}")
        assert again.texts == {WHOLE_ANSWER: LINES}


def test_entities_are_read_and_markup_of_a_text_stays() -> None:
    assert answer_in("genre: Tom &amp; Jerry &#8217;s").text == "genre: Tom & Jerry \u2019s"
    assert answer_in("plot: AT&T; <b>bold</b> [reason] 1 < 2").text == (
        "plot: AT&T; <b>bold</b> [reason] 1 < 2"
    )
    family = "\U0001f469\u200d\U0001f467"
    assert answer_in(f"mood: {family}").text == f"mood: {family}"


def test_a_heading_that_begins_as_a_section_of_the_prompt_is_one_of_the_answer() -> None:
    assert answer_in("### Subject matter\nwar").text == "### Subject matter\nwar"


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
    last = TEXT.parse_reply("item", BODY, Reply(reply, finish_reason), repaired=True)
    assert last.texts is None
    assert problem_of(last.reason) == problem
    assert last.repair is None


def test_a_worked_example_is_no_answer() -> None:
    messages = SHOTS.messages("item", BODY)
    example = messages[2].content
    parsed = judged(example, by=SHOTS)
    assert parsed.texts is None
    assert problem_of(parsed.reason) == "copy"
    # Cut off, changed at its end, or with another factor's name: it remains a copy.
    altered = "\n".join(line[:-9] + " of it" for line in example.splitlines())
    assert judged(altered, by=SHOTS).texts is None
    assert judged(LINES, by=SHOTS).texts == {WHOLE_ANSWER: LINES}
    # What no prompt shows can't be copied from it.
    assert judged(example, by=TEXT).texts is not None


def test_a_description_of_a_factor_is_no_answer() -> None:
    texts = {factor.key: factor.description for factor in load_scenario("movies").factors}
    parsed = judged("\n".join(f"{key}: {texts[key]}" for key in FACTORS))
    assert parsed.texts is None
    assert set(parsed.flaws.values()) == {"copy"}


def test_a_bad_factor_stays_empty_and_the_others_count() -> None:
    lines = LINES.splitlines()
    lines[1] = "character: men men men men men men"
    parsed = judged("Sure!\n" + "\n".join(lines))
    assert parsed.texts == {WHOLE_ANSWER: "\n".join([lines[0], *lines[2:]])}
    assert parsed.flaws == {"character": "loop"}
    lines[2] = "plot and theme: not specified in the data"
    lines[3] = "mood and tone: I'm sorry, I can't say that"
    parsed = judged("\n".join(lines))  # two of four named, one of them unknown
    assert parsed.texts == {WHOLE_ANSWER: lines[0]}
    assert parsed.flaws == {
        "character": "loop",
        "plot and theme": "unknown",
        "mood and tone": "refusal",
    }


def test_the_share_of_factors_is_configured() -> None:
    one, half = LINES.splitlines()[0], "\n".join(LINES.splitlines()[:2])
    assert judged(half).texts == {WHOLE_ANSWER: half}
    assert judged(half, by=template(min_factors=0.75)).texts is None
    # Less than half is asked for once more, and better than nothing.
    first = judged(one)
    assert first.texts is None
    assert first.repair is not None
    assert problem_of(first.reason) == "missing"
    last = TEXT.parse_reply("item", BODY, Reply(one), repaired=True)
    assert last.texts == {WHOLE_ANSWER: one}
    assert set(last.flaws) == set(FACTORS[1:])
    strict = template(min_factors=0.75)
    assert strict.parse_reply("item", BODY, Reply(one), repaired=True).texts is None
    prose = "A cool crime drama in which a weary detective hunts a careful thief."
    assert judged(prose).texts is None
    free = template(min_factors=0)
    assert judged(prose, by=free).texts == {WHOLE_ANSWER: prose}
    for bad, problem in [("I'm sorry, I can't help with that.", "refusal"), ("so " * 50, "loop")]:
        assert problem_of(judged(bad, by=free).reason) == problem


def test_the_better_of_two_answers_counts() -> None:
    part = {**GOOD, "genre": "men men men men men men"}
    first = judged(json.dumps(part), by=JSON)
    assert first.repair is not None  # form json promises every factor
    assert first.spare is not None
    whole = JSON.parse_reply("item", BODY, Reply(json.dumps(GOOD)), repaired=True)
    worse = JSON.parse_reply("item", BODY, Reply("{}"), repaired=True)
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
        "1997, 1998, 1999, 2000, 2001",
        "action adventure action adventure action adventure",
        "season 1, season 2, season 3, season 4, season 5, season 6",
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
        "Friday the 13th Part 2, Friday the 13th Part 3, Friday the 13th Part 4",
        "1984, 1917, 300, 21, 1408",
        "1999, 2001, 2003, 2010, 2012",
    ],
)
def test_no_loops(text: str) -> None:
    assert not is_loop(text)


def test_words_of_ignorance() -> None:
    for text in ("unknown", "Unknown.", "n/a", "N/A (no data)", "not specified in the data", "-",
                 "no information available", "I don't know", "it is unclear from it"):  # fmt: skip
        assert is_unknown(text), text
    for text in ("Unsure", "I'm not sure", "Undefined", "Unidentified.", "Various",
                 "Not determined", "Not enough information", "Cannot determine",
                 "I can't tell from the data", "unbekannt", "keine Angabe", "inconnu",
                 "неизвестно", "Нет данных.", "невідомо", "未知", "不明", "알 수 없음", "غير معروف",
                 "nieznany", "không rõ", "bilinmiyor", "okänt", "अज्ञात", "なし"):  # fmt: skip
        assert is_unknown(text), text
    for text in ("unsure, shy and brave", "various artists of the sixties", "uncertain, foggy",
                 "undefined borders between dream and life", "无间道", "不明飞行物",
                 "Unbekannte Täter", "None shall pass", "unidentified flying objects"):  # fmt: skip
        assert not is_unknown(text), text
    for text in ("none", "unknown soldiers at the front", "no budget at all", "nothing is sacred",
                 "unclear motives of a stranger"):  # fmt: skip
        assert not is_unknown(text), text


def test_none_is_an_answer_of_one_factor_and_not_of_all() -> None:
    assert judged(LINES.replace(GOOD["character"], "None")).flaws == {}
    nothing = judged("\n".join(f"{key}: None" for key in FACTORS))
    assert nothing.texts is None
    assert problem_of(nothing.reason) == "unknown"


@pytest.mark.parametrize(
    "text",
    ["[insert genre]", "<text>", "<genre>", "TODO", "to-do", "string", "(short text)", "genre",
     "[Genre]", "**genre**", "{genre}", "{{text}}", "Your text here", "XXX", "lorem ipsum dolor",
     "one short text", "[your answer here]", "<string>", "\u3164", "\u115f\u1160"],
)  # fmt: skip
@pytest.mark.parametrize("by", [TEXT, JSON], ids=["text", "json"])
def test_what_stands_in_the_place_of_a_text_is_none(text: str, by: PromptTemplate) -> None:
    said = {**GOOD, "genre": text}
    lines = "\n".join(f"{key}: {value}" for key, value in said.items())
    first = judged(lines if by is TEXT else json.dumps(said), by=by)
    parsed = first if by is TEXT else first.spare
    assert parsed is not None
    assert set(parsed.flaws) == {"genre"}


@pytest.mark.parametrize(
    "text",
    ["(500) Days of Summer", "[drama, war]", "<b>drama</b>", "genre-bending thriller", "text-heavy",
     "string quartet", "(neo-)noir", "here and now", "short films", "\u314b\u314b comedy", "M",
     "xxx-rated"],
)  # fmt: skip
def test_what_only_looks_like_a_placeholder_is_a_text(text: str) -> None:
    assert not is_placeholder(text, "genre")
    assert flaw_of(text, "genre") is None


REFUSALS = [
    "I must respectfully decline to answer.",
    "I'd rather not talk about this film.",
    "This goes against content policy.",
    "I'm sorry, I can't say that",
    "Leider kann ich Ihnen dazu nichts sagen.",
    "Es tut mir leid, aber ich kann diese Anfrage nicht beantworten.",
    "Je suis désolé, mais je ne peux pas répondre à cette demande.",
    "Lo siento, pero no puedo ayudar con eso.",
    "Sinto muito, mas não posso ajudar com isso.",
    "Mi dispiace, ma non posso rispondere.",
    "Извините, я не могу помочь с этим запросом.",
    "К сожалению, я не могу предоставить эту информацию.",
    "Вибачте, я не можу допомогти з цим.",
    "죄송하지만 도와드릴 수 없습니다.",
    "عذرًا، لا يمكنني المساعدة في ذلك.",
    "Het spijt me, maar ik kan hier niet bij helpen.",
    "Przepraszam, ale nie mogę pomóc w tej sprawie.",
    "Üzgünüm, bu konuda yardımcı olamam.",
    "Xin lỗi, tôi không thể giúp bạn với yêu cầu này.",
    "Tyvärr kan jag inte hjälpa till med det.",
    "क्षमा करें, मैं इसमें मदद नहीं कर सकता।",
    "Omlouvám se, ale nemohu vám s tím pomoci.",
    "Maaf, saya tidak dapat membantu permintaan ini.",
    "Olen pahoillani, mutta en voi auttaa tässä.",
    "すみません、そのご質問にはお答えできません。",
    "大変申し訳ございませんが、お手伝いできません。",
    "对不起，我无法提供这方面的信息。",
    "很抱歉，我不能回答这个问题。",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_in_many_languages(text: str) -> None:
    assert is_refusal(text)
    assert flaw_of(text, "genre") == "refusal"
    assert problem_of(judged(text).reason) == "refusal"


TERSE = [
    "I'm Sorry, I Love You; Sorry, Wrong Number; Sorry to Bother You",
    "Lo siento, El laberinto del fauno, La lengua de las mariposas",
    "Perdón, No se aceptan devoluciones",
    "Mi dispiace, La vita è bella, Non ci resta che piangere",
    "对不起，我爱你",
    "『대박, 미안하다 사랑한다』 and 《爱情万岁 电影》",
    "Entschuldigung, Ich bin's; Keinohrhasen",
    "Простите, Солярис, Сталкер",
    "Die Hard, Die Another Day, Never Say Never Again",
    "La La Land, Amélie, Das Boot, Der Himmel über Berlin",
    "Les quatre cents coups, À bout de souffle, Le fabuleux destin d'Amélie Poulain",
    "Cidade de Deus, Central do Brasil, O Auto da Compadecida",
    "Sei samurai, I soliti ignoti e Il buono, il brutto, il cattivo",
    "七人の侍、羅生門",
    "1917, 300, Se7en",
    "None but the Lonely Heart",
    "The Unknown Woman, Inconnu à cette adresse",
    "a man who says he cannot help anybody",
    "I Can't Give You Anything but Love",
    "As an AI learns to love",
    "Ich kann nicht anders",
    "Je ne peux pas vivre sans toi",
    "beyond <reasonable doubt>",
    "(good value)",
    "M",
]


@pytest.mark.parametrize("text", TERSE)
def test_a_terse_text_with_titles_and_names_is_good(text: str) -> None:
    assert flaw_of(text, "similar works") is None
    parsed = judged(LINES.replace(GOOD["character"], text))
    assert parsed.texts is not None
    assert text in parsed.texts[WHOLE_ANSWER]


GOOD_ANSWERS = {
    "de": ["düsteres Krimidrama", "müder Kommissar, kluger Dieb", "ein letzter Raub", "kühl"],
    "es": ["drama criminal", "un detective cansado y un ladrón", "el último robo", "tenso, oscuro"],
    "fr": ["drame policier", "un commissaire las et un voleur", "le dernier vol", "froid, tendu"],
    "it": ["dramma poliziesco", "un commissario stanco", "l'ultimo colpo", "freddo, teso"],
    "pt": ["drama policial", "um detetive cansado e um ladrão", "o último roubo", "frio, tenso"],
    "nl": ["misdaaddrama", "een vermoeide rechercheur", "de laatste overval", "koel, eenzaam"],
    "ru": ["криминальная драма", "усталый сыщик и вор", "последнее ограбление", "холодно"],
    "ja": ["犯罪ドラマ", "疲れた刑事と慎重な泥棒", "最後の強盗", "冷たく孤独"],
    "zh": ["犯罪剧情片", "疲惫的警探与小偷", "最后一次抢劫", "冷峻, 孤独"],
    "ko": ["범죄 드라마", "지친 형사와 도둑", "마지막 강도", "차갑고 외로운"],
    "ar": ["دراما جريمة", "محقق متعب ولص حذر", "السرقة الأخيرة", "بارد ومتوتر"],
    "hi": ["अपराध नाटक", "थका हुआ जासूस और चोर", "आखिरी डकैती", "ठंडा, तनावपूर्ण"],
    "pl": ["dramat kryminalny", "zmęczony detektyw i złodziej", "ostatni skok", "chłodny"],
    "tr": ["suç draması", "yorgun bir dedektif ve bir hırsız", "son soygun", "soğuk, gergin"],
    "vi": ["phim tội phạm", "một thám tử mệt mỏi và một tên trộm", "vụ cướp cuối", "lạnh lùng"],
}  # fmt: skip


@pytest.mark.parametrize("code", GOOD_ANSWERS)
def test_a_terse_answer_passes_in_its_own_language_alone(code: str) -> None:
    texts = dict(zip(FACTORS, GOOD_ANSWERS[code], strict=True))
    lines = "\n".join(f"{key}: {text}" for key, text in texts.items())
    assert judged(lines, by=in_language(code)).texts == {WHOLE_ANSWER: lines}
    assert foreign_factors(texts, code) == []
    if code in {"ru", "ja", "zh", "ko", "ar", "hi"}:
        assert problem_of(judged(lines).reason) == "language"


def test_a_factor_in_another_language_stays_empty_alone() -> None:
    spanish = "un detective y un ladrón que son las dos caras de la moneda"
    for text in (spanish, "одинокий сыщик и осторожный вор"):
        parsed = judged(LINES.replace(GOOD["character"], text))
        assert parsed.flaws == {"character": "language"}
    long = {**GOOD, "plot and theme": spanish + ", " + spanish.replace("dos", "tres")}
    assert foreign_factors(long, "en") == ["plot and theme"]
    for text in ("El laberinto del fauno, La lengua de las mariposas, El espinazo del diablo",
                 "Сталкер, Солярис, Андрей Рублёв", "《霸王别姬》 and 《花样年华》"):  # fmt: skip
        assert judged(LINES.replace(GOOD["character"], text)).flaws == {}


@pytest.mark.parametrize(
    ("finish_reason", "problem"),
    [
        *[(said, "cut") for said in ("length", "max_tokens", "MAX_TOKENS", "model_length",
                                     "max_output_tokens", "model_context_window_exceeded",
                                     "FinishReason.MAX_TOKENS", "token_limit")],
        *[(said, "filter") for said in ("content_filter", "SAFETY", "sensitive", "refusal",
                                        "guardrail_intervened", "PROHIBITED_CONTENT", "BLOCKLIST",
                                        "RECITATION", "content_filtered")],
        *[(said, "error") for said in ("error", "abort", "insufficient_system_resource",
                                       "network_error", "cancelled", "timeout", "failed",
                                       "MALFORMED_FUNCTION_CALL")],
        *[(said, None) for said in (None, "", "stop", "STOP", "end_turn", "stop_sequence", "eos",
                                    "eos_token", "COMPLETE", "tool_calls", "1")],
    ],
)  # fmt: skip
def test_finish_reasons_of_all_makers(finish_reason: str | None, problem: str | None) -> None:
    assert ending(finish_reason) == problem
    if problem in {"filter", "error"}:
        assert problem_of(judged(LINES, finish_reason).reason) == problem


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
    assert same_texts(dict.fromkeys("abc", "crime drama")) == ["a", "b", "c"]
    assert same_texts({**dict.fromkeys("abc", "crime drama"), "d": "tense"}) == []
    for said in ("drama | drama | drama", "drama / drama", "drama; drama", "drama、drama"):
        assert without_repeats(said) == "drama"
    assert without_repeats("drama | war | drama; crime") == "drama | war; crime"
    assert without_repeats("AC/DC, 24/7 and his/his") == "AC/DC, 24/7 and his/his"
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
        made = Renderer(scenario, PromptsConfig()).template
        for kind in ("item", "user", "item_cluster", "user_cluster"):
            texts = scenario.examples.answer(kind)
            lines = "\n".join(f"{key}: {text}" for key, text in texts.items())
            parsed = made.parse_reply(kind, BODY, Reply(lines, "stop"))
            assert parsed.texts == {WHOLE_ANSWER: lines}
            assert not parsed.flaws


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", [" ", "\n \n", "<", "<think", "&lt;", "sorry ", "x , ", "_", "("])
def test_a_reply_of_one_thing_again_and_again_is_judged_at_once(unit: str) -> None:
    # A search for blanks before a comma took a minute of 32,768 of them.
    again = unit * (MAX_REPLY_CHARS // len(unit) - 10)
    for by in (TEXT, JSON):
        judged(again, by=by)
        judged(f"genre: a {again} b", by=by)


@given(st.lists(st.text(max_size=30), max_size=40).map(" ".join))
def test_no_check_raises_and_each_reason_names_its_problem(text: str) -> None:
    is_loop(text)
    is_refusal(text)
    is_unknown(text)
    for by in (TEXT, JSON, SHOTS):
        parsed = judged(text, by=by)
        if parsed.texts is None:
            assert problem_of(parsed.reason) in PROBLEMS
    assert problem_of(f"{text}: x") == (text if text in PROBLEMS else OTHER)
