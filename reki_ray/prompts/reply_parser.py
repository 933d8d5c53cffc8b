"""Answers of an LLM, cleaned and divided into factors."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence

from reki_ray.prompts.chat import CLOSE, OPEN
from reki_ray.prompts.reply_text import answer_in, is_blank

_DATA = re.compile(f"{re.escape(OPEN)}.*?(?:{re.escape(CLOSE)}|$)", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_MIN_ECHO = 12
_LIST_MARKS = "-*#>\u2022 \t0123456789.)("
_QUOTES = " *_`\"'"
_MAX_KEY_CHARS = 64
_WIDE_COLON = "\uff1a"


def prompt_lines(prompt: str, factors: Sequence[str] = ()) -> frozenset[str]:
    """Lines of a prompt that an answer must not repeat.

    Without lines `factor: text`, which another subject may share (worked examples are compared by
    their text), and without lines so short that an answer may contain them by chance.
    """
    keys = tuple(f"{factor}:" for factor in factors)
    # The notice on delimiters contains delimiters, which are removed from answers.
    return frozenset(
        _without_data(line) if OPEN in line else line
        for line in map(str.strip, prompt.splitlines())
        if len(line) >= _MIN_ECHO and not line.startswith(keys)
    )


def clean(answer: str, excluded: Container[str] = frozenset(), *, cut: bool = False) -> str | None:
    """Clean an answer; None if nothing is left.

    Removes reasoning, markup, invisible characters, data sections, lines that repeat the prompt,
    and the unfinished end of an answer that was cut.

    Args:
        excluded: Lines of the prompt, see `prompt_lines`.
    """
    text = answer_in(answer).text
    lines = [] if is_blank(text) else own_lines(text, excluded)
    if cut and lines:  # unless the answer is one unfinished sentence
        whole = without_cut_end(lines[-1])
        lines = [*lines[:-1], whole] if whole else lines[:-1] or lines
    return "\n".join(lines) or None


def own_lines(text: str, excluded: Container[str]) -> list[str]:
    """Lines of an answer without data sections and lines of the prompt."""
    lines = [line.strip() for line in _without_data(text).splitlines()]
    return [line for line in lines if line and line not in excluded]


def by_factor(text: str, factors: Sequence[str]) -> dict[str, str]:
    """Find the text of every factor in an answer; the case of keys does not matter.

    Reads lines `factor: text` with any list marks and emphasis, rows of a table, and headings with
    the text on the lines below. The first text of a factor counts; if all factors are repeated
    together, the earlier ones are a draft and the last ones count.
    """
    keys = _Keys(factors)
    rounds: list[dict[str, str]] = [{}]
    below = ""  # factor of a heading that has no text of its own
    for line in text.splitlines():
        key, value = _entry(line)
        factor = keys.factor(key)
        if factor is not None:
            if value and factor in rounds[-1]:
                rounds.append({})
            below = "" if value or factor in rounds[-1] else factor
            if value:
                rounds[-1][factor] = value
        elif below and line.strip(_LIST_MARKS):
            more = line.strip(_LIST_MARKS + "*_`").strip()
            said = rounds[-1].get(below)
            rounds[-1][below] = f"{said}, {more}" if said else more
    texts: dict[str, str] = {}
    for held in rounds:
        texts = {**held, **texts}
    last = rounds[-1]
    return last if len(last) > 1 and last.keys() == texts.keys() else texts


class _Keys:
    """Factors by their names in answers: `mood` for `mood and tone`, if that is unambiguous."""

    def __init__(self, factors: Sequence[str]) -> None:
        self._exact = {factor.casefold(): factor for factor in factors}
        self._words = {factor: _words(factor) for factor in factors}

    def factor(self, key: str) -> str | None:
        """The factor that a key names; None for no factor, or several."""
        exact = self._exact.get(key.casefold())
        words = _words(key) if exact is None and len(key) <= _MAX_KEY_CHARS else frozenset()
        if exact is not None or not words:
            return exact
        meant = [factor for factor, known in self._words.items() if words <= known]
        return meant[0] if len(meant) == 1 else None


def _words(key: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", key.casefold())) - {"and"}


def _entry(line: str) -> tuple[str, str]:
    """Key and value of a line; the value is empty if the line may be a heading."""
    line = line.strip()
    if line.startswith("|"):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 2:
            return cells[0].strip(_QUOTES), cells[1].strip(_QUOTES)
    key, _, value = line.replace(_WIDE_COLON, ":", 1).lstrip(_LIST_MARKS + _QUOTES).partition(":")
    return key.strip(_QUOTES), value.rstrip(", ").strip(' *_`"')


def factor_lines(factors: Sequence[str], choices: Mapping[str, Sequence[str]] | None = None) -> str:
    """Regular expression of an answer with one short line per factor.

    A free text begins with a letter and contains no per cent sign: small models endlessly repeat
    the shares and years of their prompt.

    Args:
        choices: Factor to the closed list from which its text takes one or two.
    """
    choices = choices or {}
    texts = [
        _one_or_two(choices[factor]) if choices.get(factor) else r"[A-Za-z][^\n%]{8,56}"
        for factor in factors
    ]
    return r"\n".join(f"{factor}: {text}" for factor, text in zip(factors, texts, strict=True))


def _one_or_two(choices: Sequence[str]) -> str:
    """One choice, or two different ones, which need no escaping: see `Factor.choices`."""
    if len(choices) == 1:
        return choices[0]
    alternatives = [
        f"{first}(, ({'|'.join(second for second in choices if second != first)}))?"
        for first in choices
    ]
    return f"({'|'.join(alternatives)})"


def without_cut_end(text: str) -> str:
    """A text up to its last whole sentence, or an empty text."""
    ends = list(_SENTENCE_END.finditer(text))
    return text[: ends[-1].end()] if ends else ""


def _without_data(text: str) -> str:
    return _DATA.sub("", text).replace(CLOSE, "")
