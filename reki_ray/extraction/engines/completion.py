"""Chat completions of an OpenAI-compatible endpoint: what is asked, what is read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from reki_ray.config import OpenAiEngine, SamplingConfig
from reki_ray.prompts.frame import Frame, Message, Reply

_MAX_COUNT = 2**31 - 1
_MAX_NAME = 32
_LENGTH = "length"
# What the words of an error mean that comes without a status of its own.
_STATUS_OF_WORDS = (
    ("insufficient_quota", 402),
    ("credit", 402),
    ("billing", 402),
    ("quota", 402),
    ("rate limit", 429),
    ("rate_limit", 429),
    ("too many requests", 429),
    ("overload", 529),
    ("capacity", 503),
    ("authentication", 401),
    ("api key", 401),
    ("api_key", 401),
    ("permission", 403),
    ("not_found", 404),
    ("not found", 404),
    ("invalid_request", 400),
    ("context_length", 400),
)
# What the template of a chat adds to each message and to a prompt; templates of known models
# stay far below.
_TOKENS_A_MESSAGE = 16
_TOKENS_A_PROMPT = 64
# Strict endpoints refuse these words of a schema; the frame validates lengths itself.
_NOT_STRICT = ("minLength", "maxLength")


@dataclass(frozen=True)
class Read:
    """A chat completion as far as it matters.

    Attributes:
        reply: What the model said.
        counted: Whether the endpoint told its tokens; they are 0 where it did not.
    """

    reply: Reply
    counted: bool


class MalformedError(ValueError):
    """The body of an answer is not a chat completion.

    Args:
        reason: What it is instead.
        retry: Whether another call may bring a better one.
    """

    def __init__(self, reason: str, *, retry: bool = True) -> None:
        super().__init__(reason)
        self.retry = retry


class EndpointError(ValueError):
    """An error that the endpoint reports in the body of an answer whose HTTP status is 200.

    Args:
        status: HTTP status that it stands for.
        code: Code of the error, as `insufficient_quota`; may be empty.
        message: What the endpoint says.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class NoAnswerError(ValueError):
    """A whole completion without any answer.

    Args:
        reason: What it says instead.
        read: Its tokens.
    """

    def __init__(self, reason: str, read: Read) -> None:
        super().__init__(reason)
        self.reason = reason
        self.read = read


class _Message(BaseModel):
    content: str | list[Any] | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[Any] | None = None


class _Choice(BaseModel):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    error: Any = None


class _Completion(BaseModel):
    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


class Wording:
    """What all requests of a run share.

    Args:
        config: Endpoint and model.
        sampling: Sampling of the answers.
        frame: Form of the answers.
    """

    def __init__(self, config: OpenAiEngine, sampling: SamplingConfig, frame: Frame) -> None:
        fields: dict[str, Any] = {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        if sampling.stop:
            fields["stop"] = list(sampling.stop)
        schema = frame.json_schema() if config.structured else None
        if schema is not None:
            fields["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": _strict(schema)},
            }
        extra = dict(config.extra_body)
        if sampling.repetition_penalty != 1:  # not of OpenAI's, but vLLM's and others'
            extra.setdefault("repetition_penalty", sampling.repetition_penalty)
        longest = max(sampling.max_tokens, int(extra.get("max_completion_tokens", 0)))
        if "max_completion_tokens" in extra:  # endpoints refuse both
            del fields["max_tokens"]
        self._fields = fields
        self._extra = extra
        self._model = config.model
        self._shared_bytes = len(json.dumps([fields.get("response_format"), extra]).encode())
        self.longest_answer: int = longest
        """Most tokens that an answer may have."""

    def request(self, messages: Sequence[Message]) -> dict[str, Any]:
        """Arguments of the client's `chat.completions.create`."""
        return {
            "model": self._model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            **self._fields,
            "extra_body": self._extra or None,
        }

    def most_prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Upper bound of a prompt's tokens: no tokenizer in use makes two of one byte."""
        text = sum(len(message.content.encode()) + _TOKENS_A_MESSAGE for message in messages)
        return text + self._shared_bytes + _TOKENS_A_PROMPT


def read_completion(content: bytes) -> Read:
    """Read a chat completion.

    Args:
        content: Body of the HTTP answer.

    Raises:
        MalformedError: The body is something else: cut off, a page of a proxy, a stream.
        EndpointError: The body reports an error.
        NoAnswerError: There is no choice.
    """
    completion = _parse(content)
    usage = completion.usage or {}
    details = usage.get("prompt_tokens_details")
    tokens: dict[str, Any] = {
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "cached_tokens": _count(details.get("cached_tokens") if isinstance(details, dict) else 0),
        "generated_tokens": _count(usage.get("completion_tokens")),
    }
    counted = completion.usage is not None
    choice = completion.choices[0] if completion.choices else None
    error = completion.error or (choice.error if choice else None)
    if error:
        raise _reported(error)
    if choice is None:
        nothing = Read(Reply("", None, **tokens), counted)
        raise NoAnswerError("error: the endpoint answered without any choice", nothing)
    message = choice.message or _Message(content=choice.text)
    text, reasoning = _texts(message.content)
    finish_reason = (choice.finish_reason or "")[:_MAX_NAME] or None
    silence = ""
    if not text.strip():
        reasoning = reasoning or bool(message.reasoning_content or message.reasoning)
        silence = _silence(message, finish_reason, reasoning=reasoning)
    return Read(Reply(text, finish_reason, silence=silence, **tokens), counted)


def _silence(message: _Message, finish_reason: str | None, *, reasoning: bool) -> str:
    """Why a message has no text, beginning with a `Problem`; empty where it does not tell."""
    if message.refusal:
        return f"refusal: the model declines: {one_line(message.refusal)}"
    if message.tool_calls or finish_reason in {"tool_calls", "function_call"}:
        return "missing: the model calls a tool instead of answering"
    if finish_reason == _LENGTH:
        return (
            f"{'reasoning' if reasoning else 'blank'}: the model used all tokens before its answer "
            "began: raise extract.sampling.max_tokens, or lower its reasoning effort by "
            "extract.engine.extra_body"
        )
    return "reasoning: the model wrote only its reasoning" if reasoning else ""


def _parse(content: bytes) -> _Completion:
    start = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith((b"data:", b"event:", b":", b"id:")):
        raise MalformedError(
            "the endpoint answers as a stream though none was asked for: turn streaming off in the "
            "proxy before it",
            retry=False,
        )
    try:
        # Some proxies append the end mark of a stream to a whole answer.
        text = content.decode("utf-8-sig", errors="replace").strip()
        tree, _ = json.JSONDecoder().raw_decode(text.removesuffix("data: [DONE]").rstrip())
        # Python's parser takes lone surrogates, which end as question marks; Arrow takes none.
        plain = json.dumps(tree, ensure_ascii=False).encode(errors="replace")
        return _Completion.model_validate_json(plain)
    except ValidationError as error:
        raise MalformedError(
            f"the body of the answer is not a chat completion: {_quoted(content)}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"the body of the answer is not JSON: {_quoted(content)}") from error


def _reported(error: Any) -> EndpointError:
    """The error that a body reports, with the status that it stands for."""
    fields = error if isinstance(error, dict) else {"message": str(error)}
    code = fields.get("code")
    name = str(code if isinstance(code, str) else fields.get("type") or "")
    numbers = [fields.get("status"), fields.get("status_code"), code]
    status = next((_status(number) for number in numbers if _status(number)), 0)
    if not status:
        text = f"{name} {fields.get('type')} {fields.get('message')}".lower()
        status = next((known for word, known in _STATUS_OF_WORDS if word in text), 500)
    return EndpointError(status, name, str(fields.get("message") or error))


def _status(value: object) -> int:
    text = str(value)
    number = int(text) if text.isdigit() and len(text) == 3 else 0
    return number if 400 <= number < 600 else 0


def _texts(content: str | list[Any] | None) -> tuple[str, bool]:
    """The text of a message, and whether it held reasoning beside it."""
    if content is None or isinstance(content, str):
        return content or "", False
    texts, reasoning = [], False
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            if part.get("type") in {"text", "output_text"} and isinstance(part.get("text"), str):
                texts.append(part["text"])
            else:
                reasoning |= part.get("type") in {"thinking", "reasoning"}
    return "".join(texts), reasoning


def _quoted(content: bytes) -> str:
    """The beginning of a body, as far as it can be shown."""
    text = re.sub(r"<[^>]*>", " ", content[:2000].decode(errors="replace"))
    shown = one_line("".join(char if char.isprintable() else " " for char in text), 120)
    return f'"{shown}"' if shown else "it is empty"


def one_line(text: str, longest: int = 300) -> str:
    """A text of somebody else's in one line for a message."""
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
