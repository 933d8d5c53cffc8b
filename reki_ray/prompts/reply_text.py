"""The answer inside a reply: without reasoning, chat markup and invisible characters.

Serving stacks differ: some strip a model's reasoning, some return it between tags, some lose the
opening or the closing tag. Only what the model meant as its answer may become knowledge.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import NamedTuple

_THINKING = r"(?:think|thought|reason|reflect|monologue|scratchpad|analysis)"
# Any tag or special token named after thinking, with attributes or blanks, also with wide bars:
# <think>, <seed:think>, [THINK], \u25c1think\u25b7, <|START_THINKING|>. Without such a name:
# Apertus (<|inner_prefix|>), MedGemma (<unused94>), the end of Gemma's <|channel>thought.
_MARK = re.compile(
    rf"<\s*/?\s*[\w:.-]{{0,32}}?{_THINKING}[\w:.-]{{0,32}}(?:\s[^<>=]{{0,32}}=[^<>]{{0,64}})?\s*/?>"
    rf"|<[|\uff5c][^<>|\uff5c]{{0,32}}?{_THINKING}[^<>|\uff5c]{{0,32}}[|\uff5c]>"
    r"|\[/?think(?:ing)?\]|\u25c1\s*/?\s*think\s*\u25b7"
    r"|<\|inner_(?:prefix|suffix)\|>|<unused9[45]>"
    rf"|<\|channel>\s*{_THINKING}\w*|<channel\|>",
    re.IGNORECASE,
)
_CLOSES = re.compile(
    r"[<\[\u25c1][\s|\uff5c]*(?:/|end)|.*(?:/>|[_\u2581]end\W+|suffix\|>|95>|<channel\|>)$",
    re.IGNORECASE | re.DOTALL,
)
# Whole blocks: `<details type="reasoning">`, and fences that are named after thinking.
_BLOCK = re.compile(
    rf"<details\b(?:[^<>]{{0,200}}|>\s*<summary>[^<]{{0,200}}){_THINKING}.*?(?:</details>|\Z)"
    rf"|^[ \t]*(```|~~~)[ \t]*\w*{_THINKING}[^\n]*\n.*?(?:^[ \t]*\1[ \t]*$|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
# gpt-oss writes channels; the answer is what follows the last header of channel `final`. Where
# special tokens are stripped, their words remain: `analysisWe need ...assistantfinalgenre: ...`.
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>\w*)?<\|message\|>")
_BARE_ANALYSIS = re.compile(r"\s*(?:analysis|commentary)(?:[a-z]|\s)", re.IGNORECASE)
_BARE_FINAL = re.compile(r"assistant\s*final(?:message)?")
_REASONS = re.compile(
    r"\s*(?:analysis|commentary)\s*(?:we|the user|user|i|let|okay|need)\b", re.IGNORECASE
)
# Granite, and models without a format of their own, announce both parts in words.
_ANNOUNCED = re.compile(r"\s*here(?:'s| is) my thought process:", re.IGNORECASE)
_RESPONSE = re.compile(r"here(?:'s| is) my (?:final )?(?:response|answer):", re.IGNORECASE)
_LABEL = re.compile(
    rf"[\s*_#>]*(?:chain[- ]of[- ])?(?:{_THINKING}\w*|draft)(?: process)?[*_]*\s*:", re.IGNORECASE
)
_ANSWER = re.compile(
    r"^[ \t*_#>]*(?:(?:my )?final (?:answer|response)|(answer|response|final))[*_]*[ \t]*:[*_]*",
    re.IGNORECASE | re.MULTILINE,
)

# End of a turn: a model that continues invents the next turn.
_TURN_END = re.compile(
    r"<\|(?:im_end|end|eot_id|eom_id|endoftext|end_of_text|end_of_turn|return|user|im_start"
    r"|start_header_id|END_OF_TURN_TOKEN|END_RESPONSE)\|>"
    r"|<end_of_turn>|<start_of_turn>|<eos>|</s>|\[/?INST\]|<\uff5c[^<>|]{1,40}\uff5c>"
    r"|^### (?:Subject|Task)[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_SPECIAL = re.compile(
    r"<\|[^<>|]{1,40}\|>|<(?:s|bos|pad|unk|mask)>|</?(?:answer|final|response|output|solution)>",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[\w+-]*[ \t]*$", re.MULTILINE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z]{2,8}\d?);", re.IGNORECASE)
# Joiners shape words of Persian, of Indic scripts and emoji; all other format characters are noise.
_JOINERS = "\u200c\u200d"
_FILLERS = "\u115f\u1160\u3164\uffa0"
"""Letters of Hangul without a shape, the only such letters in Unicode."""
_ANGLE = re.compile(r"\\u003([ce])", re.IGNORECASE)


class ReplyText(NamedTuple):
    """The answer in a reply, which may be blank, and whether reasoning was removed."""

    text: str
    reasoned: bool


def answer_in(reply: str) -> ReplyText:
    """Find the answer in a reply. Never raises."""
    reply = _ANGLE.sub(lambda match: "<>"[match[1] in "eE"], encodable(reply))
    if _ENTITY.search(reply):
        reply = html.unescape(reply)
    text, in_channels = _final_channel(reply)
    text, blocks = _BLOCK.subn("", text)
    text, in_tags = _outside_tags(text)
    text, in_words = _announced_answer(text)
    text = text.lstrip()
    if end := _TURN_END.search(text):
        # A reply may begin with the header of its own turn.
        text = text[: end.start()] if end.start() else _TURN_END.sub("\n", text)
    text = _FENCE.sub("", _SPECIAL.sub("", text))
    return ReplyText(_visible(text).strip(), in_channels or blocks > 0 or in_tags or in_words)


def encodable(text: str) -> str:
    """Remove NUL and lone surrogates, which neither Arrow nor a tokenizer accepts."""
    text = text.replace("\x00", "")
    return text if text.isascii() else text.encode("utf-8", "ignore").decode("utf-8")


def is_blank(text: str) -> bool:
    """Whether a text has no visible letter or digit."""
    return not any(char.isalnum() and char not in _FILLERS for char in text)


def _final_channel(reply: str) -> tuple[str, bool]:
    headers = list(_CHANNEL.finditer(reply))
    if headers:
        final = [header for header in headers if header[1].lower() == "final"]
        return (reply[final[-1].end() :] if final else ""), True
    if _BARE_ANALYSIS.match(reply):
        final = list(_BARE_FINAL.finditer(reply))
        if final:
            return reply[final[-1].end() :], True
        if _REASONS.match(reply):
            return "", True
    return reply, False


def _announced_answer(text: str) -> tuple[str, bool]:
    """The text after the last announcement of an answer."""
    if _ANNOUNCED.match(text):
        response = _RESPONSE.search(text)
        return (text[response.end() :] if response else ""), True
    labelled = _LABEL.match(text) is not None
    # "Answer:" may be a factor's name, except after a label of reasoning.
    ends = [match.end() for match in _ANSWER.finditer(text) if labelled or not match[1]]
    if not ends or is_blank(text[ends[-1] :]):
        return text, False
    return text[ends[-1] :], True


def _outside_tags(text: str) -> tuple[str, bool]:
    """The text outside reasoning tags.

    A closing tag without an opening one ends reasoning that began with the reply: chat templates
    often put the opening tag into the prompt. An opening tag without a closing one means that the
    reply ended during the reasoning.
    """
    marks = [(m.start(), m.end(), not _CLOSES.match(m[0])) for m in _MARK.finditer(text)]
    if not marks:
        return text, False
    kept: list[str] = []
    start, inside = 0, False
    for begin, end, opens in marks:
        if opens and not inside:
            kept.append(text[start:begin])
        if not opens and not inside:
            kept.clear()
        inside, start = opens, end
    if not inside:
        kept.append(text[start:])
    return "".join(kept), True


def _visible(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char
        for char in text
        if char in "\n\t"
        or char in _JOINERS
        or (char not in _FILLERS and unicodedata.category(char) not in ("Cc", "Cf"))
    )
