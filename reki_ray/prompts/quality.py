"""Problems of answers and factors that are not knowledge.

Small models repeat themselves and copy the prompt or its worked example; all models refuse now and
then. An empty factor is better than an invented one, so these texts are dropped, and a prompt is
retried if too little remains.
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
"""Problem of an answer; reasons begin with it: `loop: the answer repeats itself`."""

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
# Repetition without blanks, as in "hahahahahaha".
_REPEATED_CHARS = re.compile(r"(\w[^\n]{0,19}?)\1{5,}")
_LONG_WORDS = 40
_LEAST_DISTINCT = 0.4
_SAME_TEXTS, _SAME_WORDS = 3, 3

_LEAST_COPIED = 12
_COPIED_WORDS = 5

_APOLOGY_CHARS = 80
"""Characters after an apology within which a negation makes it a refusal."""


def _declining(words: Refusal, edge: str) -> str:
    """Regular expression of a language's refusals; `edge` matches the start of a word."""
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
# Placeholders of a form; those of `_TO_FILL` only in brackets.
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
"""Words in finish reasons of OpenAI, Anthropic, Gemini, Bedrock, DeepSeek, Zhipu, Mistral and vLLM;
any other finish reason is that of a whole answer."""


def ending(finish_reason: str | None) -> Problem | None:
    """Problem that a finish reason names: `cut`, `filter` or `error`; None for a whole answer."""
    reason = (finish_reason or "").lower()
    return next((problem for problem, words in _ENDINGS if words.search(reason)), None)


def problem_of(reason: str) -> str:
    """Problem at the beginning of a reason; `OTHER` if it names none."""
    start, colon, _ = reason.partition(":")
    return start if colon and start in PROBLEMS else OTHER


def is_refusal(text: str, within: int = 240) -> bool:
    """Whether a text declines to answer within its first characters."""
    refusal = _REFUSAL.search(text[: within + 2 * _APOLOGY_CHARS].replace("\u2019", "'"))
    return refusal is not None and refusal.start() < within


def is_unknown(text: str) -> bool:
    """Whether a factor's text says only that the model does not know."""
    return _UNKNOWN.fullmatch(text.strip().replace("\u2019", "'")) is not None


def is_placeholder(text: str, factor: str = "") -> bool:
    """Whether a factor's text is a placeholder: `[insert genre]`, `TODO`, or the factor's name."""
    text = text.strip(" .*_`\"'")
    bracketed = _BRACKETED.fullmatch(text) is not None
    inner = text.strip("[]<>{}() .") if bracketed else text
    name = plain(factor)
    return (
        (bool(name) and plain(inner) == name)
        or _UNFILLED.fullmatch(inner) is not None
        or (bracketed and _TO_FILL.fullmatch(inner) is not None)
    )


def flaw_of(text: str, factor: str = WHOLE_ANSWER) -> Problem | None:
    """Find the problem of a factor's text or of a whole answer; None if it may be knowledge."""
    if is_blank(text) or is_placeholder(text, factor):
        return "blank"
    if is_unknown(text):
        return "unknown"
    if is_refusal(text) if factor == WHOLE_ANSWER else is_refusal(text, within=20):
        return "refusal"
    return "loop" if is_loop(text) else None


def is_loop(text: str) -> bool:
    """Whether a text repeats itself: the same words or letters, or counts up numbers."""
    words = _WORD.findall(text.lower())
    # All numbers are alike: "1997, 1998, 1999, ...".
    masked = [_NUMBER.sub("0", word) for word in words]
    numbered = masked != words
    periods = range(1, _LONGEST_PERIOD + 1)
    return (
        _REPEATED_CHARS.search(text) is not None
        or _repeats(words, 1, _SAME_WORDS_IN_A_ROW)
        or any(_repeats(words, p, max(_REPEATS * p, _LEAST_REPEATED_WORDS)) for p in periods[1:])
        # Parts of a series, and few numbers in a row, are titles.
        or (numbered and any(_repeats(masked, p, _NUMBERS_IN_A_ROW * p) for p in periods))
        or _counts_years(words)
        or _lacks_variety(masked)
    )


def _repeats(words: Sequence[str], period: int, least: int) -> bool:
    """Whether `least` words in a row repeat with a period."""
    run = 0
    for word, later in zip(words, words[period:], strict=False):
        run = run + 1 if word == later else 0
        if run and run + period >= least:
            return True
    return False


def _counts_years(words: Sequence[str]) -> bool:
    """Whether consecutive years follow one another."""
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
    """Factors that say `none`, if at least half of the factors do."""
    empty = [factor for factor, text in texts.items() if plain(text) in NOTHING]
    return empty if 2 * len(empty) >= len(texts) else []


def same_texts(texts: Mapping[str, str]) -> list[str]:
    """Factors that share one text, which then says nothing about any: three or more factors.

    A text of one or two words must be that of all factors, a longer one that of half.
    """
    counts = Counter(map(plain, texts.values()))
    text, count = counts.most_common(1)[0] if counts else ("", 0)
    short = text.count(" ") < _SAME_WORDS - 1
    if count < max(_SAME_TEXTS, len(texts) / (1 if short else 2)):
        return []
    return [factor for factor, other in texts.items() if plain(other) == text]


class Shown:
    """Passages of a prompt that an answer must not copy: instructions and worked answers.

    Args:
        passages: Sentences and lines; short ones are ignored, as an answer may contain them by
            chance.
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
        """Whether a text is a passage or a part of one, or begins word for word like one."""
        text = plain(text)
        if len(text) < _LEAST_COPIED:
            return False
        if tuple(text.split()[:_COPIED_WORDS]) in self._starts:
            return True
        return any(text in passage or passage in text for passage in self._passages)


def plain(text: str) -> str:
    """The words of a text in lower case, without punctuation, for comparison."""
    return " ".join(_WORD.findall(text.lower()))


def without_repeats(text: str) -> str:
    """Remove repeated phrases from a list: `drama, war, drama` becomes `drama, war`."""
    # Phrases and the separators between them.
    parts = _SEPARATOR.split(text)
    phrases, separators = parts[::2], ["", *parts[1::2]]
    kept: dict[str, str] = {}
    for phrase, separator in zip(phrases, separators, strict=True):
        if phrase.strip():
            kept.setdefault(phrase.strip(), separator)
    if len(kept) == len(phrases):
        return text
    return "".join(kept[p] + p if i else p for i, p in enumerate(kept))
