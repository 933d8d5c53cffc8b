"""Plain text from untrusted titles, attributes and descriptions.

All text of a data set passes `sanitise` before a model reads it: it can neither leave its place in
a prompt, nor hide characters, nor fill the context window.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache

from reki_ray.config import PromptsConfig

Attributes = Mapping[str, Sequence[str]]

MAX_VALUES = 12
"""Values shown per attribute."""

_UNTITLED = "untitled"
# Control, format (zero-width, bidi), surrogate and private-use characters carry no meaning here.
_DROPPED = frozenset({"Cc", "Cf", "Cs", "Co"})
# Delimiters, and the special tokens of chat templates (<|im_end|>, <end_of_turn>, </s>), need
# angle brackets, plain or full-width; round ones keep the text readable and without that power.
_BRACKETS = str.maketrans("<>\uff1c\uff1e\ufe64\ufe65", "()()()")
_BRACKET = re.compile(f"[{''.join(map(chr, _BRACKETS))}]")
# The same rules for plain ASCII, in one pass; `str.split` takes care of white space.
_ASCII = str.maketrans(
    "<>", "()", "".join(c for c in map(chr, range(128)) if not (c.isprintable() or c.isspace()))
)
_MAX_CACHED_CHARS = 256
_CACHED_LINES = 2**15


def sanitise(text: str, limit: int) -> str:
    """Make untrusted text safe for a prompt: one line of at most `limit` characters, maybe empty.

    Removes control, zero-width, bidirectional and surrogate characters, collapses white space
    to single blanks, replaces angle brackets, and cuts to whole characters.
    """
    # Titles and attributes repeat; long texts would only fill the memory.
    return _short_line(text, limit) if len(text) <= _MAX_CACHED_CHARS else _line(text, limit)


def _line(text: str, limit: int) -> str:
    # A huge text is cut first; the allowance covers what is dropped below.
    text = text[: 16 * limit + 1024]
    if text.isascii():
        line = " ".join(text.translate(_ASCII).split())
    else:
        line = " ".join(unicodedata.normalize("NFC", text).split())
        if not line.isprintable():  # true of all characters to drop, and of few others
            line = "".join(map(_kept, line))
            # Again: characters between two blanks, or a letter and its mark, may be gone.
            line = " ".join(unicodedata.normalize("NFC", line).split())
        if _BRACKET.search(line):
            line = line.translate(_BRACKETS)
    if len(line) <= limit:
        return line
    end = limit
    while end > 0 and unicodedata.category(line[end]).startswith("M"):
        end -= 1  # a combining mark stays with its base character, or goes with it
    return line[:end].rstrip()


_short_line = lru_cache(maxsize=_CACHED_LINES)(_line)


@lru_cache(maxsize=4096)
def _kept(char: str) -> str:
    return "" if unicodedata.category(char) in _DROPPED else char


def attributes_text(attributes: Attributes | None, limits: PromptsConfig) -> str:
    """Attributes on one line, such as `genre: Drama, War; year: 1995`; may be empty."""
    parts = []
    for name, values in (attributes or {}).items():
        shown = [sanitise(value, limits.max_title_chars) for value in values[:MAX_VALUES]]
        joined = ", ".join(value for value in shown if value)
        if joined:
            parts.append(f"{sanitise(name, limits.max_title_chars)}: {joined}")
    return "; ".join(parts)


def title_text(title: str, limits: PromptsConfig) -> str:
    """Sanitised title, or `untitled` if nothing readable is left."""
    return sanitise(title, limits.max_title_chars) or _UNTITLED


def item_text(
    title: str, attributes: Attributes | None, text: str | None, limits: PromptsConfig
) -> str:
    """Title, attributes and description of an item as one passage, without an LLM."""
    known = attributes_text(attributes, limits)
    passage = title_text(title, limits) + (f" ({known})." if known else ".")
    description = sanitise(text or "", limits.max_text_chars)
    return f"{passage} {description}" if description else passage


def rated_title(title: str, rating: float | None, limits: PromptsConfig) -> str:
    """One interaction, such as `Heat: 4`; only the title if it has no rating."""
    shown = title_text(title, limits)
    return shown if rating is None else f"{shown}: {rating:g}"


def user_text(
    attributes: Attributes | None,
    history: Sequence[tuple[str, float | None]],
    limits: PromptsConfig,
) -> str:
    """Profile and rated titles of a user as one passage, without an LLM.

    Args:
        history: Title and rating of the interactions before the user's cut, oldest first; the
            latest `max_history` are used.
    """
    known = attributes_text(attributes, limits)
    rated = "; ".join(
        rated_title(title, rating, limits) for title, rating in history[-limits.max_history :]
    )
    passages = [f"Profile: {known}." if known else "", f"Rated: {rated}." if rated else ""]
    return " ".join(passage for passage in passages if passage) or "Nothing is known."
