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
_LONGEST_PERIOD = 16
_REPEATS = 3
_LEAST_REPEATED_WORDS = 8
_NUMBERS_IN_A_ROW = 6
_SAME_WORDS_IN_A_ROW = 5
# Where words are not divided by blanks, or hang together: "hahahahahaha".
_REPEATED_CHARS = re.compile(r"(\w[^\n]{0,19}?)\1{5,}")
_LONG_WORDS = 40
_LEAST_DISTINCT = 0.4
_SAME_TEXTS, _SAME_WORDS = 3, 3

_LEAST_COPIED = 12
_COPIED_WORDS = 5

_REFUSAL = re.compile(
    r"\bi(?:'m| am)(?: really| very| so)? (?:sorry|unable|not able)\b"
    r"|\bsorry, (?:but )?i\b"
    r"|\bi (?:can(?:'t|not| not)|won't|will not|must decline|decline|am unable to)"
    r"(?: \w+){0,2} (?:help|assist|provide|answer|fulfil|fulfill|comply|discuss|create|generate"
    r"|continue|describe|support|engage|do|share|give)\b"
    r"|\bas an? (?:ai|artificial|(?:large )?language model)\b"
    r"|\bi(?:'m| am) (?:just )?an? (?:ai|(?:large )?language model)\b"
    r"|\bi (?:do not|don't) have (?:\w+ ){0,3}(?:information|knowledge|data|access|context)\b"
    r"|\b(?:against|violates?) (?:my|our|the) (?:guidelines|policy|policies|programming)\b"
    r"|\b(?:request|content) (?:was|is|has been) (?:blocked|rejected|flagged|not allowed)\b"
    r"|\bcan(?:not|'t) (?:assist|help) with (?:that|this)\b"
    r"|\bje (?:suis d\u00e9sol|ne peux pas)|\bes tut mir leid\b|\bich kann (?:\w+ ){0,4}nicht\b"
    r"|\blo siento\b|\bno puedo (?:ayudar|proporcionar|responder)\b|\bmi dispiace\b"
    r"|\bdesculpe\b|\u5bf9\u4e0d\u8d77|\u62b1\u6b49|\u7533\u3057\u8a33|\u6211\u65e0\u6cd5",
    re.IGNORECASE,
)
_UNKNOWN = re.compile(
    r"(?:(?:it|this|that)(?:'s| is) |(?:they|these) are |is |are )?"
    r"(?:unknown|unclear|undetermined|unspecified|undisclosed|null|nil|tbd|tba|n/?a"
    r"|none (?:known|specified|available|provided|mentioned|given|stated)"
    r"|no (?:information|data|details|answer)|nothing(?: is)? known|insufficient information"
    r"|not (?:known|specified|available|applicable|provided|mentioned|given|stated|sure)"
    r"|(?:i )?(?:do not|don't) know|cannot be (?:determined|told|known|said))"
    r"(?: (?:to|in|from|at|due|because|as|based|for|by|yet|here|about|available|given)\b[^\n]*"
    r"|\s*[^\w\s][^\n]*)?"
    r"|[\W_]*",
    re.IGNORECASE,
)


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
    found = _REFUSAL.search(text[: 2 * within].replace("\u2019", "'"))
    return found is not None and found.start() < within


def is_unknown(text: str) -> bool:
    """Whether a factor's text only says that the model does not know."""
    return _UNKNOWN.fullmatch(text.strip().replace("\u2019", "'")) is not None


def is_loop(text: str) -> bool:
    """Whether a text repeats itself: the same words, ever further numbers, or the same letters."""
    # A year is as good as the next one: "1997, 1998, 1999, ...".
    words = [_NUMBER.sub("0", word) for word in _WORD.findall(text.lower())]
    return (
        _REPEATED_CHARS.search(text) is not None
        or any(_repeats(words, period) for period in range(1, _LONGEST_PERIOD + 1))
        or _lacks_variety(words)
    )


def _repeats(words: Sequence[str], period: int) -> bool:
    """Whether words come again after `period` of them, for long enough."""
    run = 0
    for word, later in zip(words, words[period:], strict=False):
        run = run + 1 if word == later else 0
        if period > 1:
            least = max(_REPEATS * period, _LEAST_REPEATED_WORDS)
        else:
            least = _NUMBERS_IN_A_ROW if "0" in word else _SAME_WORDS_IN_A_ROW
        if run + period >= least and run:
            return True
    return False


def _lacks_variety(words: Sequence[str]) -> bool:
    if len(words) < _LONG_WORDS:
        return False
    pairs = list(pairwise(words))
    return len(set(pairs)) < _LEAST_DISTINCT * len(pairs)


def same_texts(texts: Mapping[str, str]) -> list[str]:
    """Factors that share one text, where many do: it says nothing of any of them.

    Args:
        texts: Factor to text.

    Returns:
        Them, in order; none where fewer than three factors, or than half, share a text.
    """
    said = Counter(plain(text) for text in texts.values() if text.count(" ") >= _SAME_WORDS - 1)
    text, count = said.most_common(1)[0] if said else ("", 0)
    if count < max(_SAME_TEXTS, len(texts) / 2):
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
    phrases = text.split(", ")
    kept = list(dict.fromkeys(phrase.strip() for phrase in phrases if phrase.strip()))
    return ", ".join(kept) if len(kept) < len(phrases) else text
