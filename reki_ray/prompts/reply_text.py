"""The answer inside a reply: without reasoning, chat markup and invisible characters.

Serving stacks differ in what they leave around an answer: some strip a model's reasoning, some
return it between tags, some lose the opening or the closing tag on the way. Whatever comes back,
only what the model meant as its answer may become knowledge.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import NamedTuple

_TAGS = (
    "think",
    "thinking",
    "thought",
    "thoughts",
    "reason",
    "reasoning",
    "reflection",
    "analysis",
    "scratchpad",
    "inner_monologue",
)
_NAMES = "|".join(_TAGS)
# DeepSeek, Qwen, Seed-OSS: <think>; Magistral: [THINK]; Kimi: \u25c1think\u25b7; Cohere:
# <|START_THINKING|>; OpenThinker: <|begin_of_thought|>; Apertus: <|inner_prefix|>; MedGemma:
# <unused94>. Blanks and attributes inside a tag do not matter.
_OPENING = re.compile(
    rf"<\s*(?:[a-z]+:)?(?:{_NAMES})\b[^<>]{{0,64}}>|\[think(?:ing)?\]"
    r"|\u25c1\s*think\s*\u25b7|<\|(?:start|begin)_?(?:of_)?(?:think\w*|thought)\|>"
    r"|<\|think\w*\|>|<\|inner_prefix\|>|<unused94>",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    rf"<\s*/\s*(?:[a-z]+:)?(?:{_NAMES})\s*>|\[/think(?:ing)?\]"
    r"|\u25c1\s*/\s*think\s*\u25b7|<\|end_?(?:of_)?(?:think\w*|thought)\|>"
    r"|<\|/think\w*\|>|<\|inner_suffix\|>|<unused95>",
    re.IGNORECASE,
)
# gpt-oss writes channels; the answer is what follows the last header of channel `final`. Where
# special tokens are stripped, their words remain: `analysisWe need ...assistantfinalgenre: ...`.
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>\w*)?<\|message\|>")
_BARE_ANALYSIS = re.compile(r"\s*(?:analysis|commentary)(?=[A-Z])")
_BARE_FINAL = re.compile(r"assistant\s*final(?:message)?")
# Granite announces both parts in words.
_ANNOUNCED = re.compile(r"\s*here(?:'s| is) my thought process:", re.IGNORECASE)
_RESPONSE = re.compile(r"here(?:'s| is) my (?:final )?(?:response|answer):", re.IGNORECASE)

# What ends a turn: a model that writes on invents the next one.
_TURN_END = re.compile(
    r"<\|(?:im_end|end|eot_id|eom_id|endoftext|end_of_text|end_of_turn|return|user|im_start"
    r"|start_header_id|END_OF_TURN_TOKEN|END_RESPONSE)\|>"
    r"|<end_of_turn>|<start_of_turn>|<eos>|</s>|\[/?INST\]|<\uff5c[^<>|]{1,40}\uff5c>",
    re.IGNORECASE,
)
_SPECIAL = re.compile(
    r"<\|[^<>|]{1,40}\|>|<(?:s|bos|pad|unk|mask)>|</?(?:answer|final|response|output|solution)>",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[\w+-]*[ \t]*$", re.MULTILINE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z]{2,8}\d?);", re.IGNORECASE)
# Joiners shape words of Persian, of Indic scripts and emoji; all other format characters are noise.
_JOINERS = "\u200c\u200d"


class ReplyText(NamedTuple):
    """What a reply says.

    Attributes:
        text: The answer; may be blank.
        reasoned: Whether reasoning was removed.
    """

    text: str
    reasoned: bool


def answer_in(reply: str) -> ReplyText:
    """Find the answer in a reply. Never raises.

    Args:
        reply: What the model wrote.
    """
    reply = encodable(reply)
    text, in_channels = _final_channel(reply)
    text, in_tags = _outside_tags(text)
    end = _TURN_END.search(text.lstrip())
    if end is not None:
        stripped = text.lstrip()
        # A reply may begin with the header of its own turn.
        text = stripped[: end.start()] if end.start() else _TURN_END.sub("\n", stripped)
    text = _FENCE.sub("", _SPECIAL.sub("", text))
    if _ENTITY.search(text):
        text = html.unescape(text)
    return ReplyText(_visible(text).strip(), in_channels or in_tags)


def encodable(text: str) -> str:
    """The text without NUL and lone surrogates, which neither Arrow nor a tokenizer takes."""
    text = text.replace("\x00", "")
    return text if text.isascii() else text.encode("utf-8", "ignore").decode("utf-8")


def is_blank(text: str) -> bool:
    """Whether a text holds no letter and no digit."""
    return not any(map(str.isalnum, text))


def _final_channel(reply: str) -> tuple[str, bool]:
    headers = list(_CHANNEL.finditer(reply))
    if headers:
        final = [header for header in headers if header[1].lower() == "final"]
        return (reply[final[-1].end() :] if final else ""), True
    if _BARE_ANALYSIS.match(reply):
        final = list(_BARE_FINAL.finditer(reply))
        return (reply[final[-1].end() :] if final else ""), True
    if _ANNOUNCED.match(reply):
        response = _RESPONSE.search(reply)
        return (reply[response.end() :] if response else ""), True
    return reply, False


def _outside_tags(text: str) -> tuple[str, bool]:
    """The text outside reasoning tags.

    A closing tag without its opening one ends reasoning that began with the reply: chat templates
    often write the opening tag into the prompt. An opening tag without a closing one means that
    the reply ended inside the reasoning.
    """
    marks = sorted(
        [(m.start(), m.end(), True) for m in _OPENING.finditer(text)]
        + [(m.start(), m.end(), False) for m in _CLOSING.finditer(text)]
    )
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
        if char in "\n\t" or char in _JOINERS or unicodedata.category(char) not in ("Cc", "Cf")
    )
