"""The shared part of all prompts of a run: messages before the subject, and the form of answers.

An engine sends `PromptTemplate.messages` and gives the reply to `PromptTemplate.parse_reply`; it
knows neither scenarios nor forms.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from reki_ray.prompts.chat import TEMPLATE_VERSION, Message
from reki_ray.prompts.languages import foreign_factors, is_other_language
from reki_ray.prompts.output_format import (
    SHORT_FACTOR_CHARS,
    Form,
    json_schema,
    quoted,
    read_fields,
)
from reki_ray.prompts.quality import (
    OTHER,
    Problem,
    Shown,
    ending,
    flaw_of,
    is_loop,
    is_refusal,
    is_unknown,
    problem_of,
    same_texts,
    says_nothing,
    without_repeats,
)
from reki_ray.prompts.reply_parser import (
    by_factor,
    factor_lines,
    own_lines,
    prompt_lines,
    without_cut_end,
)
from reki_ray.prompts.reply_text import answer_in, is_blank
from reki_ray.prompts.sanitize import sanitise
from reki_ray.schema import WHOLE_ANSWER, SubjectKind

Constraint = bool | Literal["choices"]
"""Whether structured output forces one short line per factor, or choices from closed lists."""

MAX_REPLY_CHARS = 32_768
"""Longer replies are cut: no answer is that long."""

_MAX_SHOWN_CHARS: Final = 600
_MAX_WORDS: Final = 15


@dataclass(frozen=True)
class Reply:
    """Reply of a model to one call.

    Attributes:
        finish_reason: `stop`, `length`, ...; None if unknown.
        cached_tokens: Tokens of the prompt from the prefix cache.
        silence: Reason for an empty text, beginning with a `Problem`; empty if unknown.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    silence: str = ""


@dataclass(frozen=True)
class ParsedReply:
    """Knowledge in a reply.

    Attributes:
        texts: Factor to text, "*" for a whole answer; None for no knowledge.
        reason: Reason for no knowledge, beginning with a `Problem`; else empty.
        flaws: Problem of each empty factor.
        repair: Prompt of the retry; None gives up.
        spare: Knowledge to use if the retry brings nothing better.
    """

    texts: dict[str, str] | None
    reason: str = ""
    flaws: Mapping[str, Problem] = field(default_factory=dict)
    repair: tuple[Message, ...] | None = None
    spare: ParsedReply | None = None


def best_of(first: ParsedReply, second: ParsedReply) -> ParsedReply:
    """Choose between the first reply and that to the retry."""
    spare = first.spare
    if spare is None or (second.texts is not None and len(second.flaws) <= len(spare.flaws)):
        return second
    return spare


@dataclass(frozen=True)
class _Content:
    """Content of a reply.

    Attributes:
        texts: Factor to text that is knowledge.
        flaws: Problem of each other factor.
        form: Problem of the form as a whole, or empty.
    """

    texts: dict[str, str]
    flaws: dict[str, Problem]
    form: str = ""

    @property
    def named(self) -> int:
        """Number of factors that it names, also as unknown."""
        return len(self.texts) + sum(flaw == "unknown" for flaw in self.flaws.values())


class PromptTemplate:
    """The shared part of all prompts of a run. Can be pickled.

    Args:
        factors: Keys of the requested factors, in order.
        form: `text`: the whole answer is one piece of knowledge; `json`: one text per factor.
        shared: Messages before the subject, by kind.
        min_factors: Share of the factors that an answer must name to count; 0 also accepts form
            `text` without any.
        language: Language of the answers, ISO 639-1; None accepts any.
        choices: Factor to the closed list of its texts.
    """

    def __init__(
        self,
        factors: Sequence[str],
        form: Form,
        shared: Mapping[SubjectKind, Sequence[Message]],
        *,
        min_factors: float = 0.1,
        language: str | None = None,
        choices: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.factors = tuple(factors)
        self.form: Form = form
        self._least = math.ceil(min_factors * len(self.factors))
        self._language = language
        self._choices = {key: tuple(values) for key, values in (choices or {}).items()}
        self._shared = {kind: tuple(messages) for kind, messages in shared.items()}
        self._identity = {kind: self._digest(messages) for kind, messages in self._shared.items()}
        self._prompt_lines = {
            kind: prompt_lines("\n".join(message.content for message in messages), self.factors)
            for kind, messages in self._shared.items()
        }
        self._shown = {kind: Shown(self._passages(msgs)) for kind, msgs in self._shared.items()}

    def messages(self, kind: SubjectKind, body: str) -> tuple[Message, ...]:
        """The whole prompt about one subject with this `Prompt.body`."""
        return (*self._shared[kind], Message("user", body))

    def identity(self, kind: SubjectKind) -> str:
        """Digest of what determines prompts and the parsing of replies, 64 hexadecimal digits."""
        return self._identity[kind]

    def _digest(self, messages: Sequence[Message]) -> str:
        content = {
            "messages": [[message.role, message.content] for message in messages],
            "factors": self.factors,
            "form": self.form,
            "template": TEMPLATE_VERSION,
            "gate": [self._least, self._language],
            "choices": self._choices,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    # --- structured output ---------------------------------------------------------------------

    def json_schema(self) -> dict[str, Any] | None:
        """JSON schema of an answer; None for form `text`."""
        return json_schema(self.factors) if self.form == "json" else None

    def structured(self, constrain: Constraint) -> dict[str, Any] | None:
        """Structured output for vLLM: `{"regex": ...}`, `{"json": schema}`; None for free text."""
        choices = self._choices if constrain == "choices" else {}
        if self.form == "json":
            # Always set: without it, small models write no valid object.
            longest = SHORT_FACTOR_CHARS if constrain else None
            return {"json": json_schema(self.factors, longest, choices)}
        return {"regex": factor_lines(self.factors, choices)} if constrain else None

    # --- replies -------------------------------------------------------------------------------

    def parse_reply(
        self, kind: SubjectKind, body: str, reply: Reply, *, repaired: bool = False
    ) -> ParsedReply:
        """Find the knowledge in a reply. Never raises on any text of a model.

        A text that repeats itself, copies the prompt, declines or is cut off is not knowledge: its
        factor stays empty. If less than half of the factors remain, or less than `min_factors`,
        in form `json` if any is missing, the prompt is retried in other words.

        Args:
            repaired: Whether this is the reply to a retry: there is only one.
        """
        ended = ending(reply.finish_reason)
        named = (reply.finish_reason or "")[:40]
        if ended == "filter":
            what = "the content filter of the endpoint stopped the answer"
            return ParsedReply(None, f"filter: {what} ({named})")
        cut = ended == "cut" or len(reply.text) > MAX_REPLY_CHARS
        answer = answer_in(reply.text[:MAX_REPLY_CHARS])
        excluded = self._prompt_lines[kind] | prompt_lines(body, self.factors)
        content = _Content({}, {})
        problem: Problem
        if ended == "error":
            problem, reason = "error", f"the engine broke the answer off ({named})"
        elif is_blank(answer.text):
            problem, reason = _blank(reply, reasoned=answer.reasoned, cut=cut)
        elif self.form == "text" and not self._least:
            content = self._whole(answer.text, kind, excluded, cut=cut)
            if content.texts:
                return ParsedReply(content.texts)
            problem = content.flaws[WHOLE_ANSWER]
            reason = self._sentence(problem, content)
        else:
            content = self._factors(answer.text, kind, excluded, cut=cut)
            usable = self._verdict(content)
            if usable is not None and (repaired or self._is_enough(content)):
                return usable
            problem = self._main_problem(answer.text, content, cut=cut)
            reason = self._sentence(problem, content)
        reason = f"{problem}: {reason}"
        if repaired:
            return ParsedReply(None, f"{reason}, also when asked again", content.flaws)
        repair = self._repair(kind, body, answer.text, problem, reason)
        return ParsedReply(None, reason, content.flaws, repair, self._verdict(content))

    def _verdict(self, content: _Content) -> ParsedReply | None:
        """The content of a reply as knowledge, if there is enough of it."""
        if not content.texts or content.named < self._least:
            return None
        texts = content.texts
        if self.form == "text":
            texts = {WHOLE_ANSWER: "\n".join(f"{key}: {text}" for key, text in texts.items())}
        return ParsedReply(texts, flaws=content.flaws)

    def _is_enough(self, content: _Content) -> bool:
        """Whether a first reply needs no retry: form `json` promises every factor."""
        if self.form == "json":
            return content.named == len(self.factors)
        return 2 * content.named >= len(self.factors)

    def _whole(
        self, text: str, kind: SubjectKind, excluded: frozenset[str], *, cut: bool
    ) -> _Content:
        """The whole answer as one text, whatever its form."""
        lines = own_lines(text, excluded)
        whole = "\n".join(lines)
        if cut and lines:
            end = without_cut_end(lines[-1])
            whole = "\n".join([*lines[:-1], end]).strip() or whole
        flaw = flaw_of(whole)
        if not whole or self._shown[kind].copied(whole):
            flaw = "copy"
        elif self._language and is_other_language(whole, self._language):
            flaw = "language"
        return _Content({}, {WHOLE_ANSWER: flaw}) if flaw else _Content({WHOLE_ANSWER: whole}, {})

    def _factors(
        self, text: str, kind: SubjectKind, excluded: frozenset[str], *, cut: bool
    ) -> _Content:
        """The factors of a reply, and the problems of the others."""
        flaws: dict[str, Problem] = {}
        lines = "\n".join(own_lines(text, excluded))
        texts = by_factor(lines, self.factors) if self.form == "text" else {}
        form = ""
        if not texts and "{" in text:
            fields = read_fields(text, self.factors, excluded)
            if cut and not is_blank(fields.before) and not is_blank(fields.after):
                # It may be a draft in reasoning that was cut off before the answer.
                return _Content({}, dict.fromkeys(self.factors, "cut"))
            texts, cut = fields.texts, cut and not fields.found
            flaws |= fields.flaws
        if not texts and not flaws:
            form = self._wrong_form(lines)
        if cut and texts:
            last = list(texts)[-1]
            begun = texts.pop(last)
            if is_loop(begun):
                flaws[last] = "loop"
            elif whole := without_cut_end(begun):
                texts[last] = whole
            else:
                flaws[last] = "cut"
        for factor in list(texts):
            texts[factor] = without_repeats(texts[factor])
            if (broken := self._flaw(texts[factor], factor, kind)) is not None:
                flaws[factor] = broken
                del texts[factor]
        shared: tuple[tuple[Problem, list[str]], ...] = (
            ("unknown", says_nothing(texts)),
            ("loop", same_texts(texts)),
            ("language", foreign_factors(texts, self._language) if self._language else []),
        )
        for flaw, factors in shared:
            flaws = dict.fromkeys(factors, flaw) | flaws
        texts = {factor: text for factor, text in texts.items() if factor not in flaws}
        absent: Problem = "cut" if cut else "missing"
        ordered = {key: texts[key] for key in self.factors if key in texts}
        rest = {key: flaws.get(key, absent) for key in self.factors if key not in texts}
        return _Content(ordered, rest, form)

    def _flaw(self, text: str, factor: str, kind: SubjectKind) -> Problem | None:
        # Choices from a closed list may equal those of a worked example.
        if set(text.split(", ")) <= set(self._choices.get(factor, ())):
            return "unknown" if is_unknown(text) else None
        return flaw_of(text, factor) or ("copy" if self._shown[kind].copied(text) else None)

    def _wrong_form(self, lines: str) -> str:
        if not lines:
            return "the answer only repeats the prompt"
        if self.form == "json":
            return "the answer holds no JSON object with the factors as keys"
        return "the answer has no line `factor: text`"

    def _passages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sentences and lines of the shared messages, and the texts of a worked answer."""
        for message in messages:
            if message.role == "assistant":
                worked = by_factor(message.content, self.factors)
                if not worked:
                    worked = read_fields(message.content, self.factors, ()).texts
                yield from worked.values()
                continue
            for line in message.content.splitlines():
                yield line
                yield from line.split(". ")
                yield line.partition(":")[2]

    def _main_problem(self, text: str, content: _Content, *, cut: bool) -> Problem:
        """The problem to report for an answer with too little knowledge."""
        counts = Counter(flaw for flaw in content.flaws.values() if flaw != "unknown")
        if not content.texts and is_refusal(text):
            return "refusal"
        if not content.texts and not counts:
            return "unknown"
        if content.form and not content.texts:
            if self._language and is_other_language(text.replace('"', " "), self._language):
                return "language"
            # Looping prose has no factors either.
            whole: Problem = "loop" if is_loop(text) else "cut" if cut else "missing"
            return "copy" if not counts or content.form.endswith("prompt") else whole
        # Factors are often missing or cut off because an earlier one never ended.
        causes = [pair for pair in counts.most_common() if pair[0] not in {"missing", "cut"}]
        return (causes or counts.most_common() or [("missing", 0)])[0][0]

    def _sentence(self, problem: Problem, content: _Content) -> str:
        """Describe a problem; the text may become part of a retry."""
        named = quoted([factor for factor, flaw in content.flaws.items() if flaw == problem])
        word = "keys" if self.form == "json" else "factors"
        return {
            "missing": content.form or f"the answer is without the {word} {named}",
            "blank": f"the answer is without a text of its own for {named}",
            "refusal": "the model declines to answer",
            "loop": "the answer repeats itself",
            "cut": "the answer was cut off before its end",
            "copy": "the answer only repeats the prompt or its worked example",
            "language": f"the answer is not in the language {self._language}",
            "unknown": "the model knows nothing of the subject",
        }[problem]

    # --- retries -------------------------------------------------------------------------------

    def _repair(
        self, kind: SubjectKind, body: str, answer: str, problem: Problem, reason: str
    ) -> tuple[Message, ...]:
        """The prompt in other words, or with the broken answer and its problem."""
        if self.form == "json" and problem in {"missing", "cut", "blank"}:
            # Only a short line without markup goes back into a prompt.
            shown = sanitise(answer, _MAX_SHOWN_CHARS) or "{}"
            shorter = ": be much shorter" if problem == "cut" else ""
            wish = (
                f"Your answer cannot be used: {reason.partition(': ')[2]}{shorter}. Answer once "
                f"more with the whole JSON object: exactly the keys {quoted(self.factors)}, each "
                f"with one text of at most {_MAX_WORDS} words, and nothing before or after it."
            )
            return (*self.messages(kind, body), Message("assistant", shown), Message("user", wish))
        # Models repeat a loop, a copy or a refusal that they are shown.
        what = (
            f"one JSON object with the keys {quoted(self.factors)}"
            if self.form == "json"
            else f"one line `factor: text` for each of {quoted(self.factors)}"
        )
        wish = (
            f"Write {what}, and nothing else. Each text has at most {_MAX_WORDS} words of your "
            "own: no sentence of the data, nothing twice, no list of years. Where you do not "
            "know, write unknown."
        )
        return self.messages(kind, f"{body}\n\n{wish}")


def _blank(reply: Reply, *, reasoned: bool, cut: bool) -> tuple[Problem, str]:
    problem = problem_of(reply.silence)
    if problem != OTHER:
        return cast(Problem, problem), reply.silence.partition(": ")[2]
    more = ", and was cut off: raise extract.sampling.max_tokens" if cut else ""
    if reasoned:
        return "reasoning", f"the model wrote only its reasoning{more}"
    return "blank", f"the answer is empty{more}"
