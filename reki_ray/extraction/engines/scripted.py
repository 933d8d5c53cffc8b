"""Answers computed from the prompt without a model: the whole stage is tested without an LLM.

The text is plausible, deterministic, and made of words of the subject, so that subjects alike
get answers alike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import partial

import pyarrow as pa

from reki_ray.config import ScriptedEngine as ScriptedConfig
from reki_ray.extraction.engines.protocol import (
    ANSWER_SCHEMA,
    Answer,
    Question,
    answer_blocks,
    question_blocks,
)
from reki_ray.prompts.render import plain_text
from reki_ray.schema import (
    FINISH_REASON,
    GENERATED_TOKENS,
    PROMPT,
    PROMPT_HASH,
    PROMPT_TOKENS,
    REASON,
    TEXT,
)

_FACTOR = re.compile(r"^- ([^:\n]+): ", re.MULTILINE)
_WORD = re.compile(r"[^\W\d_]{4,}")
_WORDS_A_FACTOR = 3
_SUBJECT = "### Subject"
_FRAME = frozenset({"data", "answer"})


class ScriptedEngine:
    """Engine for tests and dry runs; runs through the same Ray Data path as a real one.

    Args:
        config: Names for the ledger, and the text that makes a prompt fail.
        batch_size: Prompts a call.
    """

    name = "scripted"

    def __init__(self, config: ScriptedConfig, batch_size: int) -> None:
        self.model = config.model
        self.revision = config.revision
        self._fail_containing = config.fail_containing
        self._batch_size = batch_size

    def ask(self, questions: Iterable[Question], unit_rows: int) -> Iterator[list[Answer]]:
        """See `Engine.ask`."""
        dataset = question_blocks(
            ((question.prompt_hash, plain_text(question.messages)) for question in questions),
            unit_rows,
        )
        if dataset is None:
            return
        dataset = dataset.map_batches(
            partial(answer_batch, fail_containing=self._fail_containing),
            batch_size=self._batch_size,
            batch_format="pyarrow",
        )
        yield from answer_blocks(dataset, f"{self.name}: {self.model}")


def answer_batch(batch: pa.Table, fail_containing: str) -> pa.Table:
    """Answer a batch.

    Args:
        batch: Prompt hashes and prompts as `plain_text` renders them.
        fail_containing: Text of prompts that fail; empty lets every prompt succeed.

    Returns:
        Rows of `ANSWER_SCHEMA`, in the order of the batch.
    """
    rows = []
    for prompt_hash, prompt in zip(
        batch[PROMPT_HASH].to_pylist(), batch[PROMPT].to_pylist(), strict=True
    ):
        fails = fail_containing and fail_containing in _subject(prompt)
        text = "" if fails else answer(prompt)
        rows.append(
            {
                PROMPT_HASH: prompt_hash,
                PROMPT: prompt,
                TEXT: text,
                PROMPT_TOKENS: len(prompt.split()),
                GENERATED_TOKENS: len(text.split()),
                FINISH_REASON: None if fails else "stop",
                REASON: f"the prompt contains {fail_containing!r}" if fails else "",
            }
        )
    return pa.Table.from_pylist(rows, schema=ANSWER_SCHEMA)


def answer(prompt: str) -> str:
    """One line a factor, of words of the subject chosen by hash.

    Args:
        prompt: As `plain_text` renders it.
    """
    instruction = prompt.partition(_SUBJECT)[0]
    factors = _FACTOR.findall(instruction) or ["knowledge"]
    words = sorted({word.lower() for word in _WORD.findall(_subject(prompt))} - _FRAME)
    lines = []
    for factor in factors:
        chosen = sorted(words, key=lambda word: _rank(factor, word))[:_WORDS_A_FACTOR]
        lines.append(f"{factor}: {', '.join(chosen) or 'nothing is known'}")
    return "\n".join(lines)


def _subject(prompt: str) -> str:
    return prompt.rpartition(_SUBJECT)[2]


def _rank(factor: str, word: str) -> bytes:
    return hashlib.sha256(f"{factor}\0{word}".encode()).digest()
