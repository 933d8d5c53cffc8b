"""What all prompts of a run share: the messages before the subject, and the form of an answer.

An engine asks `Frame.messages` and lets `Frame.judge` decide what the reply is worth; it needs
to know neither scenarios nor forms.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reki_ray.prompts.form import (
    SHORT_FACTOR_CHARS,
    Fields,
    Form,
    json_schema,
    quoted,
    read_fields,
)
from reki_ray.prompts.messages import TEMPLATE_VERSION, Message
from reki_ray.prompts.parse import LENGTH, clean, encodable, factor_lines, prompt_lines
from reki_ray.prompts.text import sanitise
from reki_ray.schema import WHOLE_ANSWER, SubjectKind

__all__ = ["Form", "Frame", "Message", "Reply", "Verdict"]

MAX_REPLY_CHARS = 32_768
"""What an engine may hand over beyond this is not read: no answer is that long."""

_CONTENT_FILTER = "content_filter"
_MAX_SHOWN_CHARS = 600
_MAX_WORDS = 15


@dataclass(frozen=True)
class Reply:
    """What a model said to one call.

    Attributes:
        text: Its words.
        finish_reason: `stop`, `length`, ...; None where the engine does not tell.
        prompt_tokens: Tokens of the prompt.
        cached_tokens: Those of them that came from the prefix cache.
        generated_tokens: Tokens of the answer.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True)
class Verdict:
    """What a reply is worth.

    Attributes:
        texts: Factor to text, "*" for a whole answer; None where there is no knowledge.
        reason: Why there is none; empty where there is some.
        repair: What to ask once more; None gives up.
    """

    texts: dict[str, str] | None
    reason: str = ""
    repair: tuple[Message, ...] | None = None


class Frame:
    """What all prompts of a run share. Can be pickled.

    Args:
        factors: Keys of the factors that are asked for, in order.
        form: `text`: the whole answer is one piece of knowledge; `json`: one text a factor.
        shared: Messages before the subject, by kind.
    """

    def __init__(
        self,
        factors: Sequence[str],
        form: Form,
        shared: Mapping[SubjectKind, Sequence[Message]],
    ) -> None:
        self.factors = tuple(factors)
        self.form: Form = form
        self._shared = {kind: tuple(messages) for kind, messages in shared.items()}
        self._identity = {kind: self._digest(messages) for kind, messages in self._shared.items()}
        self._asked = {
            kind: prompt_lines("\n".join(message.content for message in messages), self.factors)
            for kind, messages in self._shared.items()
        }

    def messages(self, kind: SubjectKind, body: str) -> tuple[Message, ...]:
        """The whole prompt about one subject.

        Args:
            kind: Kind of the subject.
            body: What the prompt says of it, as `Prompt.body`.
        """
        return (*self._shared[kind], Message("user", body))

    def identity(self, kind: SubjectKind) -> str:
        """Digest of the shared messages, the factors and the form: 64 hexadecimal digits.

        Two frames with the same identity make the same prompts of the same bodies, and read
        the same knowledge out of the same reply.
        """
        return self._identity[kind]

    def _digest(self, messages: Sequence[Message]) -> str:
        content = {
            "messages": [[message.role, message.content] for message in messages],
            "factors": self.factors,
            "form": self.form,
            "template": TEMPLATE_VERSION,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    # --- structured output ---------------------------------------------------------------------

    def json_schema(self) -> dict[str, Any] | None:
        """JSON schema of an answer; None for form `text`."""
        return json_schema(self.factors) if self.form == "json" else None

    def structured(self, *, constrain: bool) -> dict[str, Any] | None:
        """Structured output as vLLM wants it.

        Args:
            constrain: Whether the sampling forces short texts (`extract.sampling.constrain`).

        Returns:
            `{"regex": ...}` or `{"json": schema}`; None lets the model write freely.
        """
        if self.form == "json":
            # Without it small models write no valid object at all, so it is never left out.
            if constrain:
                return {"json": json_schema(self.factors, SHORT_FACTOR_CHARS)}
            return {"json": json_schema(self.factors)}
        return {"regex": factor_lines(self.factors)} if constrain else None

    # --- replies -------------------------------------------------------------------------------

    def judge(
        self, kind: SubjectKind, body: str, reply: Reply, *, repaired: bool = False
    ) -> Verdict:
        """Decide what a reply is worth. Never raises on what a model wrote.

        Form `text` has no repair: whatever the model says of the subject is knowledge. Form
        `json` wants every factor; a reply that lacks one is asked for once more, as a whole.

        Args:
            kind: Kind of the subject.
            body: What the prompt said of it.
            reply: What the model said.
            repaired: Whether the reply answers a repair: there is no second one.
        """
        if reply.finish_reason == _CONTENT_FILTER:
            return Verdict(None, "the content filter of the endpoint stopped the answer")
        answer, finish_reason = reply.text, reply.finish_reason
        if len(answer) > MAX_REPLY_CHARS:
            answer, finish_reason = answer[:MAX_REPLY_CHARS], LENGTH
        asked = self._asked[kind] | prompt_lines(body, self.factors)
        if self.form == "text":
            parsed = clean(answer, finish_reason, asked)
            return Verdict(
                None if parsed.text is None else {WHOLE_ANSWER: parsed.text}, parsed.reason
            )
        answer = encodable(answer)
        fields = read_fields(answer, self.factors, asked)
        if len(fields.texts) == len(self.factors):
            return Verdict(fields.texts)
        cut = finish_reason == LENGTH
        reason = _reason(answer, fields, cut=cut)
        if repaired:
            return Verdict(None, f"{reason}, also after the repair")
        wish = f"{reason}: be much shorter" if cut else reason
        return Verdict(None, reason, self._repair(kind, body, answer, wish))

    def _repair(
        self, kind: SubjectKind, body: str, answer: str, problem: str
    ) -> tuple[Message, ...]:
        # Only a line without markup goes back into a prompt, and not more of it than is needed.
        shown = sanitise(answer, _MAX_SHOWN_CHARS) or "{}"
        wish = (
            f"Your answer cannot be used: {problem}. Answer once more with the whole JSON object: "
            f"exactly the keys {quoted(self.factors)}, each with one text of at most {_MAX_WORDS} "
            "words, and nothing before or after it."
        )
        return (*self.messages(kind, body), Message("assistant", shown), Message("user", wish))


def _reason(answer: str, fields: Fields, *, cut: bool) -> str:
    if not answer.strip():
        return "the answer is empty"
    if cut:
        return "the answer was cut off before its end"
    if not fields.found:
        return "the answer holds no JSON object with the factors as keys"
    parts = []
    if fields.missing:
        parts.append(f"without the keys {quoted(fields.missing)}")
    if fields.unusable:
        parts.append(f"without a text of its own for {quoted(fields.unusable)}")
    return f"the answer is {' and '.join(parts)}"
