"""What every engine promises, and the Ray Data path that all of them share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import pyarrow as pa
import ray
import ray.data

from reki_ray.errors import EngineError
from reki_ray.prompts.render import Message
from reki_ray.schema import (
    FINISH_REASON,
    GENERATED_TOKENS,
    PROMPT,
    PROMPT_HASH,
    PROMPT_TOKENS,
    REASON,
    TEXT,
)

if TYPE_CHECKING:
    from ray.data import Dataset


@dataclass(frozen=True)
class Question:
    """One prompt to ask, under its address in the ledger."""

    prompt_hash: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Answer:
    """What came back for one question: a text, or the reason why there is none.

    The prompt comes back as the model saw it, so that the driver need not hold all of them.
    """

    prompt_hash: str
    text: str = ""
    prompt: str = ""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finish_reason: str | None = None
    error: str = ""


class Engine(Protocol):
    """Something that answers prompts.

    Every question comes back exactly once, in any order, as an answer or as a failure. A
    question that fails harms no other; what makes all questions fail raises `EngineError`.
    """

    @property
    def name(self) -> str:
        """Kind of engine, as the ledger names it."""

    @property
    def model(self) -> str:
        """Model as the configuration names it."""

    @property
    def revision(self) -> str:
        """Revision of the model."""

    def ask(self, questions: Iterable[Question], unit_rows: int) -> Iterator[list[Answer]]:
        """Ask questions on the Ray cluster.

        Args:
            questions: Consumed before the first answer comes.
            unit_rows: Questions a block; answers come block by block.

        Raises:
            EngineError: The engine cannot start, or died for good.
        """


ANSWER_SCHEMA = pa.schema(
    [
        (PROMPT_HASH, pa.string()),
        (PROMPT, pa.string()),
        (TEXT, pa.string()),
        (PROMPT_TOKENS, pa.int32()),
        (GENERATED_TOKENS, pa.int32()),
        (FINISH_REASON, pa.string()),
        (REASON, pa.string()),
    ]
)
"""Rows that an engine's pipeline yields; an empty reason means success."""

INFERENCE_ERROR = "__inference_error__"
"""Ray Data's processors hand a failed row on with its inputs and this column."""


def question_blocks(rows: Iterable[tuple[str, str]], unit_rows: int) -> Dataset | None:
    """Questions as a Ray dataset with one block a work unit.

    Blocks go to the object store one by one, where they spill to disk, so that the driver's
    memory does not grow with their number.

    Args:
        rows: Prompt hash and rendered prompt.
        unit_rows: Rows a block.

    Returns:
        The dataset; None where there is no question.
    """
    blocks: list[Any] = []
    hashes: list[str] = []
    prompts: list[str] = []

    def put() -> None:
        if hashes:
            blocks.append(ray.put(pa.table({PROMPT_HASH: hashes, PROMPT: prompts})))
            hashes.clear()
            prompts.clear()

    for prompt_hash, prompt in rows:
        hashes.append(prompt_hash)
        prompts.append(prompt)
        if len(hashes) == unit_rows:
            put()
    put()
    return ray.data.from_arrow_refs(blocks) if blocks else None


def answer_blocks(dataset: Dataset, where: str) -> Iterator[list[Answer]]:
    """Run a pipeline that ends in `ANSWER_SCHEMA` and yield its blocks as they are finished.

    Args:
        dataset: The pipeline.
        where: Engine and model, for the error message.

    Raises:
        EngineError: The pipeline died.
    """
    try:
        for block in dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            yield [_answer(row) for row in cast(pa.Table, block).to_pylist()]
    except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
        raise EngineError(
            f"the engine failed: {_last_line(error)}",
            where=where,
            todo="What was answered is kept; correct the cause and run `reki extract` again.",
        ) from error


def _answer(row: dict[str, Any]) -> Answer:
    # A block takes the columns of all its rows; a failed one has no answer's columns.
    return Answer(
        prompt_hash=row[PROMPT_HASH],
        text=row.get(TEXT) or "",
        prompt=row.get(PROMPT) or "",
        prompt_tokens=row.get(PROMPT_TOKENS) or 0,
        generated_tokens=row.get(GENERATED_TOKENS) or 0,
        finish_reason=row.get(FINISH_REASON),
        error=row.get(REASON) or row.get(INFERENCE_ERROR) or "",
    )


def _last_line(error: BaseException) -> str:
    """The cause, which Ray puts below the traceback of the worker."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
