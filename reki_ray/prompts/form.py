"""The two forms of an answer: one line a factor, or one JSON object with a key a factor."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reki_ray.prompts.parse import clean

Form = Literal["text", "json"]

SHORT_FACTOR_CHARS = 64
"""Longest text of a factor where the sampling is constrained, characters: small models write on
as long as they may. Elsewhere the tokens of an answer bound it; a long bound in the schema takes
seconds to compile."""

_LINES = "Answer with exactly one short line for each factor, written as `factor: text`."
# A reply that is not an object is searched for one; each attempt may read the whole reply.
_MAX_ATTEMPTS = 16


def instruction(form: Form, factors: Sequence[str]) -> str:
    """Sentence that tells the model how to answer.

    Args:
        form: Form of the answer.
        factors: Keys of the factors that are asked for.
    """
    if form == "text":
        return _LINES
    return (
        "Answer with exactly one JSON object and nothing else. It has exactly these keys: "
        f"{quoted(factors)}. Each value is one short text about that factor, never empty."
    )


def worked_answer(form: Form, answers: Mapping[str, str]) -> str:
    """A worked answer as the model is to write it.

    Args:
        form: Form of the answer.
        answers: Factor key to text, in the order in which the factors are asked for.
    """
    if form == "text":
        return "\n".join(f"{factor}: {text}" for factor, text in answers.items())
    # Without blanks, as structured output writes it where these are forbidden.
    return json.dumps(dict(answers), ensure_ascii=False, separators=(",", ":"))


def json_schema(factors: Sequence[str], longest: int | None = None) -> dict[str, Any]:
    """JSON schema of an answer in form `json`.

    Args:
        factors: Keys of the factors that are asked for.
        longest: Most characters of a factor's text; None leaves it open.
    """
    text = {"type": "string", "minLength": 1, **({"maxLength": longest} if longest else {})}
    return {
        "type": "object",
        "properties": {factor: dict(text) for factor in factors},
        "required": list(factors),
        "additionalProperties": False,
    }


def quoted(keys: Sequence[str]) -> str:
    """Keys as a message names them: `"genre", "mood and tone"`."""
    return ", ".join(f'"{key}"' for key in keys)


@dataclass(frozen=True)
class Fields:
    """What a reply in form `json` holds.

    Attributes:
        texts: Factor to cleaned text, in the order of the factors; only those that have one.
        missing: Factors without a key, in order.
        unusable: Factors whose value is no text, empty, or only repeats the prompt, in order.
        found: Whether there was a JSON object with any of the factors.
    """

    texts: dict[str, str]
    missing: tuple[str, ...]
    unusable: tuple[str, ...]
    found: bool


def read_fields(reply: str, factors: Sequence[str], asked: Container[str]) -> Fields:
    """Read the factors out of a reply, whatever stands around its JSON object.

    Args:
        reply: What the model wrote: bare, in a code fence, or between sentences.
        factors: Keys of the factors that are asked for; case does not matter.
        asked: Lines of the prompt, see `clean`.
    """
    found = _first_object(reply, factors)
    values = {_folded(key): value for key, value in (found or {}).items()}
    texts: dict[str, str] = {}
    missing, unusable = [], []
    for factor in factors:
        key = _folded(factor)
        text = _text(values.get(key), asked)
        if key not in values:
            missing.append(factor)
        elif text is None:
            unusable.append(factor)
        else:
            texts[factor] = text
    return Fields(texts, tuple(missing), tuple(unusable), found is not None)


def _text(value: Any, asked: Container[str]) -> str | None:
    if not isinstance(value, str):
        return None
    text = clean(value, None, asked).text
    return None if text is None else " ".join(text.split())


def _first_object(reply: str, factors: Sequence[str]) -> dict[str, Any] | None:
    """The first JSON object with any of the factors, also inside another one."""
    known = {_folded(factor) for factor in factors}
    # Line breaks inside a string are against the standard, and common.
    decoder = json.JSONDecoder(strict=False)
    start = reply.find("{")
    for _ in range(_MAX_ATTEMPTS):
        if start < 0:
            break
        try:
            value, _ = decoder.raw_decode(reply, start)
        except (ValueError, RecursionError):  # the latter: brackets nested without end
            value = None
        if isinstance(value, dict) and not known.isdisjoint(map(_folded, value)):
            return value
        start = reply.find("{", start + 1)
    return None


def _folded(key: str) -> str:
    return key.strip().casefold()
