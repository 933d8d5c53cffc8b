"""Chat completions of an OpenAI-compatible endpoint: what is asked, what is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from reki_ray.config import OpenAiEngine, SamplingConfig
from reki_ray.prompts.frame import Frame, Message, Reply

_MAX_COUNT = 2**31 - 1
_MAX_NAME = 32
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
    """The body of an answer is not a chat completion."""


class NoAnswerError(ValueError):
    """A whole completion in which the model does not answer.

    Args:
        reason: What it says instead.
        read: Its tokens.
    """

    def __init__(self, reason: str, read: Read) -> None:
        super().__init__(reason)
        self.reason = reason
        self.read = read


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice] | None
    usage: dict[str, Any] | None = None


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
        MalformedError: The body is something else: cut off, a page of a proxy, an error.
        NoAnswerError: There is no choice, or a refusal.
    """
    try:
        # Python's parser takes lone surrogates, which end as question marks; Arrow takes none.
        tree = json.dumps(json.loads(content), ensure_ascii=False).encode(errors="replace")
        completion = _Completion.model_validate_json(tree)
    except ValidationError as error:
        raise MalformedError("the body of the answer is no chat completion") from error
    except (ValueError, RecursionError) as error:
        raise MalformedError("the body of the answer is no JSON") from error
    usage = completion.usage or {}
    details = usage.get("prompt_tokens_details")
    tokens = {
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "cached_tokens": _count(details.get("cached_tokens") if isinstance(details, dict) else 0),
        "generated_tokens": _count(usage.get("completion_tokens")),
    }
    counted = completion.usage is not None
    if not completion.choices:
        nothing = Read(Reply("", None, **tokens), counted)
        raise NoAnswerError("the endpoint answered without any choice", nothing)
    choice = completion.choices[0]
    finish_reason = (choice.finish_reason or "")[:_MAX_NAME] or None
    read = Read(Reply(choice.message.content or "", finish_reason, **tokens), counted)
    if choice.message.refusal and not read.reply.text:
        raise NoAnswerError(f"the model refused: {one_line(choice.message.refusal)}", read)
    return read


def one_line(text: str, longest: int = 300) -> str:
    """A text of somebody else's in one line for a message."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[:longest]}..."


def _count(value: object) -> int:
    return min(max(value, 0), _MAX_COUNT) if isinstance(value, int) else 0


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    properties = {
        name: {word: value for word, value in rule.items() if word not in _NOT_STRICT}
        for name, rule in schema["properties"].items()
    }
    return {**schema, "properties": properties}
