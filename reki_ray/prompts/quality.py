"""Why an answer, or one factor of it, is not knowledge.

Small models repeat themselves, copy the prompt or its worked example; all models refuse now and
then. An empty factor is better than an invented one, so what is caught here is left out, and the
answer is asked for once more where too little remains.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, Literal, get_args

from reki_ray.prompts.phrases import ALONE, NOTHING, REFUSALS, UNKNOWN, UNSPACED, Refusal
from reki_ray.prompts.reply_text import is_blank
from reki_ray.schema import WHOLE_ANSWER

Problem = Literal[
    "reasoning",
    "blank",
    "refusal",
    "loop",
    "cut",
    "copy",
    "language",
    "missing",
    "unknown",
    "filter",
    "error",
]
"""What is wrong with an answer; reasons begin with it: `loop: the answer repeats itself`."""

PROBLEMS: Final[tuple[Problem, ...]] = get_args(Problem)
OTHER: Final = "other"

_WORD = re.compile(r"\w+(?:['\u2019.-]\w+)*")
_NUMBER = re.compile(r"\d+")
_YEAR = re.compile(r"\b[12]\d{3}\b")
_SEPARATOR = re.compile(r"( ?[,;|/] +| ?[|\u3001\uff0c\uff1b] ?)")
_LONGEST_PERIOD = 16
_REPEATS = 3
_LEAST_REPEATED_WORDS = 6
_NUMBERS_IN_A_ROW = 6
_YEARS_IN_A_ROW = 5
_SAME_WORDS_IN_A_ROW = 5
# Where words are not divided by blanks, or hang together: "hahahahahaha".
_REPEATED_CHARS = re.compile(r"(\w[^\n]{0,19}?)\1{5,}")
_LONG_WORDS = 40
_LEAST_DISTINCT = 0.4
_SAME_TEXTS, _SAME_WORDS = 3, 3

_LEAST_COPIED = 12
_COPIED_WORDS = 5

_APOLOGY_CHARS = 80
"""Within so many characters after an apology a negation makes it a refusal."""


def _declining(words: Refusal, edge: str) -> str:
    """Regular expression of a language's refusals; `edge` is where a word begins."""
    apology = rf"{words.sorry}[^\n]{{0,{_APOLOGY_CHARS}}}?{edge}(?:{words.negation})"
    return rf"{edge}(?:{words.cannot}|{apology})"


_REFUSAL = re.compile(
    "|".join(
        _declining(words, "" if code in UNSPACED else r"\b") for code, words in REFUSALS.items()
    ),
    re.IGNORECASE,
)
_UNKNOWN = re.compile(
    r"(?:(?:it|this|that)(?:'s| is) |(?:they|these) are |is |are )?"
    rf"(?:{'|'.join(UNKNOWN.values())})"
    r"(?: (?:to|in|from|at|due|because|as|based|for|by|yet|here|about|available|given)\b[^\n]*"
    r"|\s*[^\w\s][^\n]*)?"
    rf"|(?:{ALONE})[\W_]*|[\W_]*",
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"\[[^\[\]]*\]|<[^<>]*>|\{+[^{}]*\}+|\([^()]*\)")
# What stands in a form until somebody fills it in; the latter only where it is in brackets.
_UNFILLED = re.compile(
    r"to-?do|fixme|x{3,}|lorem ipsum.*|placeholder|str(?:ing)?|(?:(?:one|a|some|your) )?"
    r"(?:(?:short|brief) )?text|(?:your|insert|enter) (?:\w+ ){0,4}here",
    re.IGNORECASE,
)
_TO_FILL = re.compile(
    r"(?:insert|enter|fill|write|describe|your|short|brief)\b.*|(?:.* )?(?:text|string|here)",
    re.IGNORECASE,
)
_ENDINGS: Final[tuple[tuple[Problem, re.Pattern[str]], ...]] = (
    ("filter", re.compile(r"filter|safety|sensitiv|refus|guardrail|prohibit|blocklist|moderat"
                          r"|recitation|policy|spii")),
    ("error", re.compile(r"error|abort|cancel|fail|time_?out|insufficient|network|interrupt"
                         r"|unavailable|overload|malformed")),
    ("cut", re.compile(r"length|max|limit|truncat|context_window|incomplete|budget")),
)  # fmt: skip
"""What finish reasons of OpenAI, Anthropic, Gemini, Bedrock, DeepSeek, Zhipu, Mistral and vLLM say;
a word of none is that of a whole answer."""


def ending(finish_reason: str | None) -> Problem | None:
    """What a finish reason says is wrong: `cut`, `filter` or `error`; None for a whole answer."""
    said = (finish_reason or "").lower()
    return next((problem for problem, words in _ENDINGS if words.search(said)), None)


def problem_of(reason: str) -> str:
    """The problem that a reason begins with; `OTHER` where it names none."""
    start, colon, _ = reason.partition(":")
    return start if colon and start in PROBLEMS else OTHER


def is_refusal(text: str, within: int = 240) -> bool:
    """Whether a text declines to answer.

    Args:
        text: An answer, or a factor's text.
        within: Characters at its start in which the words of a refusal must begin.
    """
    found = _REFUSAL.search(text[: within + 2 * _APOLOGY_CHARS].replace("\u2019", "'"))
    return found is not None and found.start() < within


def is_unknown(text: str) -> bool:
    """Whether a factor's text only says that the model does not know."""
    return _UNKNOWN.fullmatch(text.strip().replace("\u2019", "'")) is not None


def is_placeholder(text: str, factor: str = "") -> bool:
    """Whether a text only stands where a factor's text should: `[insert genre]`, `TODO`.

    Args:
        text: A factor's text.
        factor: Key of the factor: its own name is no text either.
    """
    text = text.strip(" .*_`\"'")
    bracketed = _BRACKETED.fullmatch(text) is not None
    inner = text.strip("[]<>{}() .") if bracketed else text
    said, name = plain(inner), plain(factor)
    return (
        (bool(name) and said == name)
        or _UNFILLED.fullmatch(inner) is not None
        or (bracketed and _TO_FILL.fullmatch(inner) is not None)
    )


def flaw_of(text: str, factor: str = WHOLE_ANSWER) -> Problem | None:
    """What is wrong with a text as such; None where it may be knowledge.

    Args:
        text: A factor's text.
        factor: Key of the factor; `WHOLE_ANSWER` for a whole answer.
    """
    if is_blank(text) or is_placeholder(text, factor):
        return "blank"
    if is_unknown(text):
        return "unknown"
    if is_refusal(text) if factor == WHOLE_ANSWER else is_refusal(text, within=20):
        return "refusal"
    return "loop" if is_loop(text) else None


def is_loop(text: str) -> bool:
    """Whether a text repeats itself: the same words, ever further numbers, or the same letters."""
    words = _WORD.findall(text.lower())
    # A year is as good as the next one: "1997, 1998, 1999, ...".
    masked = [_NUMBER.sub("0", word) for word in words]
    numbered = masked != words
    periods = range(1, _LONGEST_PERIOD + 1)
    return (
        _REPEATED_CHARS.search(text) is not None
        or any(_repeats(words, period, _least(period)) for period in periods)
        # Parts of a series, and few numbers in a row, are titles.
        or (numbered and any(_repeats(masked, p, _NUMBERS_IN_A_ROW * p) for p in periods))
        or _counts_years(words)
        or _lacks_variety(masked)
    )


def _least(period: int) -> int:
    """Words from which on a repetition is a loop."""
    if period == 1:
        return _SAME_WORDS_IN_A_ROW
    return max(_REPEATS * period, _LEAST_REPEATED_WORDS)


def _repeats(words: Sequence[str], period: int, least: int) -> bool:
    """Whether words come again after `period` of them, for long enough."""
    run = 0
    for word, later in zip(words, words[period:], strict=False):
        run = run + 1 if word == later else 0
        if run and run + period >= least:
            return True
    return False


def _counts_years(words: Sequence[str]) -> bool:
    """Whether years follow one another, each the next of the one before."""
    run = 1
    for word, later in pairwise(words):
        years = _YEAR.fullmatch(word) and _YEAR.fullmatch(later)
        run = run + 1 if years and int(later) == int(word) + 1 else 1
        if run >= _YEARS_IN_A_ROW:
            return True
    return False


def _lacks_variety(words: Sequence[str]) -> bool:
    if len(words) < _LONG_WORDS:
        return False
    pairs = list(pairwise(words))
    return len(set(pairs)) < _LEAST_DISTINCT * len(pairs)


def says_nothing(texts: Mapping[str, str]) -> list[str]:
    """Factors that say `none`, where at least half of them do."""
    empty = [factor for factor, text in texts.items() if plain(text) in NOTHING]
    return empty if 2 * len(empty) >= len(texts) else []


def same_texts(texts: Mapping[str, str]) -> list[str]:
    """Factors that share one text, where many do: it says nothing of any of them.

    Args:
        texts: Factor to text.

    Returns:
        Them, in order; none where fewer than three factors share a text. A text of one or two
        words must be that of all, a longer one of half of them.
    """
    said = Counter(map(plain, texts.values()))
    text, count = said.most_common(1)[0] if said else ("", 0)
    short = text.count(" ") < _SAME_WORDS - 1
    if count < max(_SAME_TEXTS, len(texts) / (1 if short else 2)):
        return []
    return [factor for factor, other in texts.items() if plain(other) == text]


class Shown:
    """What a prompt shows that an answer must not copy: instructions and worked answers.

    Args:
        passages: Sentences and lines of the prompt; short ones are left out, an answer may hold
            them by chance.
    """

    def __init__(self, passages: Iterable[str]) -> None:
        plains = {plain(passage) for passage in passages}
        self._passages = frozenset(text for text in plains if len(text) >= _LEAST_COPIED)
        self._starts = frozenset(
            tuple(text.split()[:_COPIED_WORDS])
            for text in self._passages
            if text.count(" ") >= _COPIED_WORDS - 1
        )

    def copied(self, text: str) -> bool:
        """Whether a text is one of the passages, a part of one, or begins word for word as one."""
        text = plain(text)
        if len(text) < _LEAST_COPIED:
            return False
        if tuple(text.split()[:_COPIED_WORDS]) in self._starts:
            return True
        return any(text in passage or passage in text for passage in self._passages)


def plain(text: str) -> str:
    """The words of a text in lower case, without punctuation: what two texts are compared by."""
    return " ".join(_WORD.findall(text.lower()))


def without_repeats(text: str) -> str:
    """A list of short phrases with each of them once: `drama, war, drama` becomes `drama, war`."""
    # Phrases, and between them what separates each from the next.
    parts = _SEPARATOR.split(text)
    phrases, separators = parts[::2], ["", *parts[1::2]]
    kept: dict[str, str] = {}
    for phrase, separator in zip(phrases, separators, strict=True):
        if phrase.strip():
            kept.setdefault(phrase.strip(), separator)
    if len(kept) == len(phrases):
        return text
    return "".join(kept[p] + p if i else p for i, p in enumerate(kept))
