"""Chat template and tokenizer of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from reki_ray.core.downloads import model_here
from reki_ray.errors import EngineError
from reki_ray.prompts.chat import Message, plain_text

PLAIN_STOP = "\n###"
"""Stop text for base models, which go on to invent the next section."""


class ChatRenderer:
    """Chat template and tokenizer of one model; can be pickled, each process loads its own.

    Args:
        model: packaged:<name>, a folder, or an id; each node resolves it.
        options: Arguments of the template, such as `enable_thinking`.

    Raises:
        EngineError: The tokenizer cannot be loaded.
    """

    def __init__(self, model: str, revision: str, options: Mapping[str, Any] | None = None) -> None:
        self._model = model
        self._revision = revision
        self._options = dict(options or {})
        self._tokenizer  # noqa: B018  # fail early if the model cannot be loaded

    def __reduce__(self) -> tuple[type[ChatRenderer], tuple[str, str, dict[str, Any]]]:
        return type(self), (self._model, self._revision, self._options)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer  # seconds, and only needed here

        try:
            return AutoTokenizer.from_pretrained(model_here(self._model), revision=self._revision)
        except (OSError, ValueError) as error:
            raise EngineError(
                f"the tokenizer cannot be loaded: {error}",
                where=f"extract.engine.model = {self._model}",
                todo="Name packaged:<name>, a local folder with a tokenizer, or a reachable id.",
            ) from error

    @cached_property
    def _adds_beginning(self) -> bool:
        """Whether the tokenizer adds the beginning-of-text token."""
        return bool(self._tokenizer("", add_special_tokens=True)["input_ids"])

    @property
    def has_template(self) -> bool:
        """Whether the model is a chat model; a base model gets plain text."""
        return bool(self._tokenizer.chat_template)

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt as text, with special tokens if the model has a chat template."""
        if not self.has_template:
            return plain_text(messages)
        chat = [{"role": message.role, "content": message.content} for message in messages]
        rendered: str = self._tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True, **self._options
        )
        # The engine adds the beginning-of-text token; some templates write it as well.
        bos = self._tokenizer.bos_token
        return rendered.removeprefix(bos) if bos and self._adds_beginning else rendered

    def token_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt."""
        ids: list[int] = self._tokenizer(self.text(messages))["input_ids"]
        return ids

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text without any template."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
