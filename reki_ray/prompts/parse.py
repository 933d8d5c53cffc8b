"""From what an LLM wrote to knowledge that is worth encoding."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass

from reki_ray.prompts.messages import CLOSE, OPEN

LENGTH = "length"
"""Finish reason of an answer that ran into the limit of tokens."""

_DATA = re.compile(f"{re.escape(OPEN)}.*?(?:{re.escape(CLOSE)}|$)", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_MIN_ECHO = 12


@dataclass(frozen=True)
class Parsed:
    """A cleaned answer, or the reason why there is none."""

    text: str | None
    reason: str = ""


def prompt_lines(prompt: str, factors: Sequence[str] = ()) -> frozenset[str]:
    """Lines of a prompt that an answer must not repeat.

    A line `factor: text` is not among them: the worked example in the prompt, or another
    subject, may share it. Neither are lines so short that an answer may hold them by chance.

    Args:
        prompt: What the LLM was asked, or a part of it.
        factors: Keys of the factors that were asked for.
    """
    keys = tuple(f"{factor}:" for factor in factors)
    # The notice on delimiters holds some itself: in an answer it is found without them.
    return frozenset(
        _without_data(line) if OPEN in line else line
        for line in map(str.strip, prompt.splitlines())
        if len(line) >= _MIN_ECHO and not line.startswith(keys)
    )


def clean(answer: str, finish_reason: str | None, asked: Container[str] = frozenset()) -> Parsed:
    """Clean an answer.

    Removes what no file of text can hold, data sections and lines that repeat the prompt, and,
    where the answer ran into its limit, the last line or sentence that was cut off.

    Args:
        answer: What the LLM wrote.
        finish_reason: `stop`, `length`, or None where the engine does not tell.
        asked: Lines of the prompt, see `prompt_lines`.

    Returns:
        The text, or None with a reason where nothing is left.
    """
    answer = encodable(answer)
    if not answer.strip():
        return Parsed(None, "the answer is empty")
    lines = [line.strip() for line in _without_data(answer).splitlines()]
    lines = [line for line in lines if line and line not in asked]
    if not lines:
        return Parsed(None, "the answer only repeats the prompt")
    if finish_reason == LENGTH:
        lines = _without_cut_end(lines)
    return Parsed("\n".join(lines))


def encodable(text: str) -> str:
    """The text without NUL and lone surrogates, which neither Arrow nor a tokenizer takes."""
    text = text.replace("\x00", "")
    return text if text.isascii() else text.encode("utf-8", "ignore").decode("utf-8")


def by_factor(text: str, factors: Sequence[str]) -> dict[str, str]:
    """Text of every factor that an answer names in a line `factor: text`.

    Args:
        text: Cleaned answer.
        factors: Factor keys; case and list marks at the start of a line do not matter.
    """
    known = {factor.lower(): factor for factor in factors}
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.lstrip("-*# \t0123456789.").partition(":")
        factor = known.get(key.strip(" *_`").lower())
        value = value.strip(" *_`")
        if colon and factor and value and factor not in found:
            found[factor] = value
    return found


def factor_lines(factors: Sequence[str]) -> str:
    """Regular expression of an answer with one short line a factor.

    A text begins with a letter and holds no per cent sign: what small models repeat without end
    are the shares and years of their prompt.
    """
    return r"\n".join(f"{factor}: [A-Za-z][^\n%]{{8,56}}" for factor in factors)


def _without_data(text: str) -> str:
    return _DATA.sub("", text).replace(CLOSE, "")


def _without_cut_end(lines: list[str]) -> list[str]:
    """Drop the unfinished end; an answer that is one unfinished sentence stays whole."""
    ends = list(_SENTENCE_END.finditer(lines[-1]))
    if ends:
        return [*lines[:-1], lines[-1][: ends[-1].end()]]
    return lines[:-1] or lines
