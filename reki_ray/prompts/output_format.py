"""The two forms of an answer: one line per factor, or one JSON object with a key per factor."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from reki_ray.prompts.quality import Problem, is_unknown
from reki_ray.prompts.reply_parser import own_lines

Form = Literal["text", "json"]

SHORT_FACTOR_CHARS = 64
"""Longest text of a factor with constrained sampling, characters: small models write as much as
they may. Otherwise the tokens of an answer bound it; a long bound takes seconds to compile."""

_LINES = "Answer with exactly one short line for each factor, written as `factor: text`."
# A reply that is not an object is searched for one; each attempt may read the whole reply.
_MAX_ATTEMPTS = 16
_LAST_COMMA = re.compile(r",\s*([}\]])")


def instruction(form: Form, factors: Sequence[str]) -> str:
    """Instruct the model how to answer."""
    if form == "text":
        return _LINES
    return (
        "Answer with exactly one JSON object and nothing else. It has exactly these keys: "
        f"{quoted(factors)}. Each value is one short text about that factor, never empty."
    )


def worked_answer(form: Form, answers: Mapping[str, str]) -> str:
    """Write a worked answer, factor key to text, in the form that the model is to use."""
    if form == "text":
        return "\n".join(f"{factor}: {text}" for factor, text in answers.items())
    # Without blanks, like structured output that forbids them.
    return json.dumps(dict(answers), ensure_ascii=False, separators=(",", ":"))


def json_schema(
    factors: Sequence[str],
    longest: int | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """JSON schema of an answer in form `json`.

    Args:
        longest: Largest number of characters of a factor's text; None leaves it open.
        choices: Factor to the closed list from which its value takes one or two.
    """
    text = {"type": "string", "minLength": 1, **({"maxLength": longest} if longest else {})}

    def value(factor: str) -> dict[str, Any]:
        listed = (choices or {}).get(factor)
        if not listed:
            return dict(text)
        choice = {"type": "string", "enum": list(listed)}
        return {"type": "array", "items": choice, "minItems": 1, "maxItems": 2}

    return {
        "type": "object",
        "properties": {factor: value(factor) for factor in factors},
        "required": list(factors),
        "additionalProperties": False,
    }


def quoted(keys: Sequence[str]) -> str:
    """Quote keys for a message: `"genre", "mood and tone"`."""
    return ", ".join(f'"{key}"' for key in keys)


@dataclass(frozen=True)
class Fields:
    """Content of a reply in form `json`.

    Attributes:
        texts: Factor to cleaned text, for factors with a text, in order.
        flaws: `unknown` for factors that the model says it does not know; `blank` for those whose
            value is not a text, empty, or only repeats the prompt.
        found: Whether there was a JSON object with any of the factors.
        before: Text before the object.
        after: Text after the object.
    """

    texts: dict[str, str]
    flaws: dict[str, Problem]
    found: bool
    before: str = ""
    after: str = ""


def read_fields(reply: str, factors: Sequence[str], excluded: Container[str]) -> Fields:
    """Read the factors out of a reply, whatever surrounds its JSON object.

    Args:
        reply: JSON alone, in a code fence, or between sentences.
        factors: Keys of the requested factors; case does not matter.
        excluded: Lines of the prompt, see `own_lines`.
    """
    reply = _unwrapped(reply)
    last, start, end = _last_object(reply, factors)
    values = {_folded(key): value for key, value in (last or {}).items()}
    texts: dict[str, str] = {}
    flaws: dict[str, Problem] = {}
    for factor in factors:
        key = _folded(factor)
        text = _text(values.get(key), excluded)
        if key in values and (values[key] is None or (text and is_unknown(text))):
            flaws[factor] = "unknown"
        elif key in values and not text:
            flaws[factor] = "blank"
        elif key in values:
            texts[factor] = text
    return Fields(texts, flaws, last is not None, before=reply[:start], after=reply[end:])


def _text(value: Any, excluded: Container[str]) -> str:
    """Convert a text or a list of texts to one text; empty for anything else."""
    if isinstance(value, list):
        value = ", ".join(item for item in value if isinstance(item, str))
    if not isinstance(value, str):
        return ""
    return " ".join(" ".join(own_lines(value, excluded)).split())


def _unwrapped(reply: str) -> str:
    """Unwrap a reply that is a JSON string with the object inside."""
    if reply.lstrip().startswith('"'):
        with contextlib.suppress(ValueError, RecursionError):
            return str(json.loads(reply, strict=False))
    return reply


def _last_object(reply: str, factors: Sequence[str]) -> tuple[dict[str, Any] | None, int, int]:
    """Find the last JSON object with any of the factors, also a nested one, with start and end.

    Models write drafts before their answer, also longer ones.
    """
    known = {_folded(factor) for factor in factors}
    # Line breaks inside a string violate the standard and are common.
    decoder = json.JSONDecoder(strict=False)
    last: dict[str, Any] | None = None
    place = (0, 0)
    start = reply.find("{")
    for _ in range(_MAX_ATTEMPTS):
        if start < 0:
            break
        end = start + 1
        try:
            value, stop = decoder.raw_decode(reply, start)
        except (ValueError, RecursionError):  # the latter from endless nesting
            value, stop = None, end
        if isinstance(value, dict) and not known.isdisjoint(map(_folded, value)):
            last, place, end = value, (start, stop), stop
        start = reply.find("{", end)
    if last is None and not known.isdisjoint(map(_folded, almost := _almost_json(reply))):
        last = almost
    return last, *place


def _almost_json(reply: str) -> dict[str, Any]:
    """Read JSON with trailing commas, or a Python literal; empty for anything else."""
    start, end = reply.find("{"), reply.rfind("}") + 1
    text = reply[start:end] if 0 <= start < end else ""
    lenient = partial(json.loads, strict=False)
    readings = ((lenient, _LAST_COMMA.sub(r"\1", text)), (ast.literal_eval, text))
    for read, source in readings:
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            value = read(source)
            if isinstance(value, dict) and all(isinstance(key, str) for key in value):
                return value
    return {}


def _folded(key: str) -> str:
    return key.strip().casefold()
