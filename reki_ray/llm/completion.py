"""Requests and responses of OpenAI-compatible chat completions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from reki_ray.config import OpenAiEngine, SamplingConfig
from reki_ray.prompts.chat import Message
from reki_ray.prompts.quality import ending
from reki_ray.prompts.template import PromptTemplate, Reply

_MAX_COUNT = 2**31 - 1
_MAX_NAME = 32
# Status of an error without one, by its words; the first match counts. Names are split into words:
# `insufficient_quota`, `RateLimitReached`.
_STATUS_OF_WORDS = (
    (400, r"context length|context window|too long"),
    (429, r"resource exhausted|rate limit|too many requests|throttl"),
    (402, r"insufficient (?:quota|balance)|payment required|arrear|credit|billing|quota|balance"),
    (529, r"overload"),
    (503, r"capacity"),
    (401, r"unauth|authenticat|api ?key|invalid token|token expired"),
    (403, r"forbidden|permission|access denied"),
    (404, r"not found|does not exist|no such model|(?:unknown|invalid) model"),
    (400, r"(?:invalid|bad) request|invalid argument"),
)
_WORD_STARTS = re.compile(r"(?<=[a-z])(?=[A-Z])|[\W_]+")
# Keys under which different endpoints put an error and its message, most reliable first.
_WRAPPER_KEYS = ("error", "errors", "base_resp", "detail")
_MESSAGE_KEYS = (
    "message",
    "msg",
    "status_msg",
    "error_msg",
    "error_message",
    "detail",
    "error",
    "errors",
)
_STATUS_KEYS = ("status", "status_code", "code", "error_code", "errcode")
_MAX_WRAPPERS = 4
# Upper bounds of what a chat template adds to each message and to a prompt.
_TOKENS_PER_MESSAGE = 16
_TOKENS_PER_PROMPT = 64
# Strict endpoints refuse these keywords of a schema; the template validates lengths itself.
_NOT_STRICT = ("minLength", "maxLength")


@dataclass(frozen=True)
class Read:
    """A parsed chat completion.

    Attributes:
        counted: Whether the endpoint reported its tokens; they are 0 otherwise.
    """

    reply: Reply
    counted: bool


class MalformedError(ValueError):
    """The body of a response is not a chat completion."""

    def __init__(self, reason: str, *, retry: bool = True) -> None:
        super().__init__(reason)
        self.retry = retry


@dataclass(eq=False)
class EndpointError(ValueError):
    """An error in the body of a response with HTTP status 200, and its equivalent status."""

    status: int
    code: str
    message: str


@dataclass(eq=False)
class NoAnswerError(ValueError):
    """A complete response without any answer."""

    reason: str
    read: Read


class _Message(BaseModel, extra="allow"):
    content: str | dict[str, Any] | list[Any] | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None

    @property
    def reasons(self) -> bool:
        """Whether any field, such as `reasoning_content`, holds reasoning."""
        return any(
            value and _is_reasoning(name) for name, value in (self.model_extra or {}).items()
        )


class _Choice(BaseModel):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: dict[str, Any] | None = None


class RequestBuilder:
    """Builds the requests of a run."""

    def __init__(
        self, config: OpenAiEngine, sampling: SamplingConfig, template: PromptTemplate
    ) -> None:
        fields = sampling.model_dump(include={"max_tokens", "temperature", "top_p", "seed"})
        if sampling.stop:
            fields["stop"] = list(sampling.stop)
        schema = template.json_schema() if config.structured else None
        if schema is not None:
            fields["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": _strict(schema)},
            }
        extra = dict(config.extra_body)
        if sampling.repetition_penalty != 1:  # of vLLM and others, not of OpenAI
            extra.setdefault("repetition_penalty", sampling.repetition_penalty)
        if "max_completion_tokens" in extra:  # endpoints refuse both
            del fields["max_tokens"]
        self._fields = {"model": config.model, **fields, "extra_body": extra or None}
        self._shared_bytes = len(json.dumps([fields.get("response_format"), extra]).encode())
        self.longest_answer = max(sampling.max_tokens, int(extra.get("max_completion_tokens", 0)))
        """Maximal tokens of an answer."""

    def request(self, messages: Sequence[Message]) -> dict[str, Any]:
        """Arguments of the client's `chat.completions.create`."""
        return {
            **self._fields,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
        }

    def most_prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Upper bound of a prompt's tokens: no tokenizer makes two tokens of one byte."""
        text = sum(len(message.content.encode()) + _TOKENS_PER_MESSAGE for message in messages)
        return text + self._shared_bytes + _TOKENS_PER_PROMPT


def read_completion(content: bytes) -> Read:
    """Parse the body of a response.

    Raises:
        MalformedError: It is truncated, a proxy's page, a stream, or an object without choices.
        EndpointError: It reports an error.
        NoAnswerError: Its list of choices is empty.
    """
    tree = _tree(content)
    error = _error_in(tree)
    if error:
        raise _reported(error)
    try:
        # Python's parser accepts lone surrogates, but Arrow does not: they become question marks.
        plain = json.dumps(tree, ensure_ascii=False).encode(errors="replace")
        completion = _Completion.model_validate_json(plain)
    except ValidationError as error:
        raise MalformedError(
            f"the body of the answer is not a chat completion: {_quoted(content)}"
        ) from error
    usage = completion.usage or {}
    details = usage.get("prompt_tokens_details")
    tokens: dict[str, Any] = {
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "cached_tokens": _count(details.get("cached_tokens") if isinstance(details, dict) else 0),
        "generated_tokens": _count(usage.get("completion_tokens")),
    }
    counted = completion.usage is not None
    if not completion.choices:
        nothing = Read(Reply("", None, **tokens), counted)
        raise NoAnswerError("error: the endpoint answered without any choice", nothing)
    choice = completion.choices[0]
    message = choice.message or _Message(content=choice.text)
    content_parts = _parse_content(message.content)
    finish_reason = (choice.finish_reason or "")[:_MAX_NAME] or None
    blank = not content_parts.text.strip()
    silence = _silence(message, content_parts, finish_reason) if blank else ""
    return Read(Reply(content_parts.text, finish_reason, silence=silence, **tokens), counted)


def _silence(message: _Message, content: _Content, finish_reason: str | None) -> str:
    """Why a message has no text, beginning with a `Problem`; empty if unknown."""
    reasoning = content.reasoning or message.reasons
    refusal = message.refusal or content.refusal
    if refusal:
        return f"refusal: the model declines: {one_line(refusal)}"
    if message.tool_calls or finish_reason in {"tool_calls", "function_call"}:
        return "missing: the model calls a tool instead of answering"
    if ending(finish_reason) == "cut":
        return (
            f"{'reasoning' if reasoning else 'blank'}: the model used all tokens before its answer "
            "began: raise extract.sampling.max_tokens, or lower its reasoning effort by "
            "extract.engine.extra_body"
        )
    return "reasoning: the model wrote only its reasoning" if reasoning else ""


def _tree(content: bytes) -> Any:
    start = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith((b"data:", b"event:", b":", b"id:", b"retry:")):
        raise _streamed()
    try:
        # Some proxies append the end mark of a stream to a whole answer.
        text = content.decode("utf-8-sig", errors="replace").strip()
        text = text.removesuffix("data: [DONE]").rstrip()
        tree, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"the body of the answer is not JSON: {_quoted(content)}") from error
    if text[end:].lstrip().startswith("{") or _is_chunk(tree):
        raise _streamed()
    return tree


def _streamed() -> MalformedError:
    return MalformedError(
        "the endpoint sends a stream although none was requested: turn streaming off in the "
        "proxy before it",
        retry=False,
    )


def _is_chunk(tree: Any) -> bool:
    if not isinstance(tree, dict):
        return False
    choice = _first(tree.get("choices"))
    delta = isinstance(choice, dict) and "delta" in choice and not choice.get("message")
    return delta or str(tree.get("object")).endswith(".chunk")


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else None


def _error_in(tree: Any) -> Any:
    """The error in a body, in its own field or instead of choices."""
    if isinstance(tree, list):
        tree = _first(tree)
    if not isinstance(tree, dict):
        return None
    choice = _first(tree.get("choices"))
    error = tree.get("error") or (choice.get("error") if isinstance(choice, dict) else None)
    if error or tree.get("choices"):
        return error
    return tree if _words(_unwrapped(tree)) else None


def _unwrapped(error: Any) -> dict[str, Any]:
    """The fields of an error; those of the innermost wrapped error take precedence."""
    fields: dict[str, Any] = {}
    for _ in range(_MAX_WRAPPERS):
        if isinstance(error, list):
            error = _first(error)
        if not isinstance(error, dict):
            return {**fields, "message": error} if isinstance(error, str) else fields
        fields |= error
        error = next(
            (error[key] for key in _WRAPPER_KEYS if isinstance(error.get(key), dict | list)), None
        )
    return fields


def _words(fields: dict[str, Any]) -> str:
    """Message of an error; empty if there is none."""
    texts = (fields.get(key) for key in _MESSAGE_KEYS)
    return next((text for text in texts if text and isinstance(text, str)), "")


def _reported(error: Any) -> EndpointError:
    """The reported error, with its equivalent status."""
    fields = _unwrapped(error)
    code = fields.get("code")
    name = str(code if isinstance(code, str) else fields.get("type") or "")
    message = _words(fields) or str(error)
    status = next((known for key in _STATUS_KEYS if (known := _status(fields.get(key)))), 0)
    if not status:
        parts = (name, fields.get("type"), fields.get("status"), message)
        text = " ".join(_WORD_STARTS.sub(" ", str(part)) for part in parts if part).lower()
        status = next((known for known, words in _STATUS_OF_WORDS if re.search(words, text)), 500)
    return EndpointError(status, name, message)


def _status(value: object) -> int:
    text = str(value)
    number = int(text) if text.isdigit() and len(text) == 3 else 0
    return number if 400 <= number < 600 else 0


class _Content(NamedTuple):
    """Parts of a message: text, refusal, and whether there is reasoning."""

    text: str
    refusal: str
    reasoning: bool


def _parse_content(content: str | dict[str, Any] | list[Any] | None) -> _Content:
    parts = content if isinstance(content, list) else [content]
    texts, refusals, reasoning = [], [], False
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            kind = str(part.get("type") or "")
            reasoning |= _is_reasoning(kind) or any(_is_reasoning(key) for key in part)
            if kind in {"", "text", "output_text"} and not part.get("thought"):
                texts.append(str(part.get("text") or part.get("content") or ""))
            refusals.append(str(part.get("refusal") or ""))
    return _Content("".join(texts), "".join(refusals), reasoning)


def _is_reasoning(name: str) -> bool:
    return any(word in name.lower() for word in ("reason", "think", "thought"))


def _quoted(content: bytes) -> str:
    """The beginning of a body, printable characters only."""
    text = re.sub(r"<[^>]*>", " ", content[:2000].decode(errors="replace"))
    shown = one_line("".join(char if char.isprintable() else " " for char in text), 120)
    return f'"{shown}"' if shown else "it is empty"


def one_line(text: str, longest: int = 300) -> str:
    """A foreign text as one line for a message."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[:longest]}..."


def _count(value: object) -> int:
    known = isinstance(value, int | float) and math.isfinite(value)
    return min(max(int(value), 0), _MAX_COUNT) if known else 0  # type: ignore[call-overload]


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    properties = {
        name: {word: value for word, value in rule.items() if word not in _NOT_STRICT}
        for name, rule in schema["properties"].items()
    }
    return {**schema, "properties": properties}
