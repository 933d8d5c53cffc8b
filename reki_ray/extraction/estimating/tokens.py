"""Tokens of prompts and answers, from a sampled tokenisation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import httpx
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from reki_ray.config import ExtractConfig, VllmEngine
from reki_ray.core.downloads import PACKAGED, resolve_model
from reki_ray.core.workspace import Workspace, reading
from reki_ray.errors import EngineError
from reki_ray.extraction.estimating.reading import row_groups
from reki_ray.llm.chat_template import ChatRenderer
from reki_ray.prompts.chat import delimited
from reki_ray.prompts.template import Message, PromptTemplate
from reki_ray.schema import (
    ENGINE,
    GENERATED_TOKENS,
    KNOWLEDGE,
    MODEL,
    REVISION,
    SUBJECT_KIND,
    SubjectKind,
)

TOKENISED: Final = 200
"""Sampled prompts of a kind that are tokenised."""

_FALLBACK = f"{PACKAGED}smollm2-135m-instruct"
_BLOCK_SIZES = {"cpu": 32, "gpu": 16}
"""Tokens a block of the key-value cache: the CPU preset's, and vLLM's own default on GPUs."""
_TOKENIZER = "tokenizer_config.json"
_PROBE_SECONDS = 5.0
_NORMAL_95 = 1.96
_FEW_ANSWERS = 30
_KNOWLEDGE_GROUPS = 8


class Interval(BaseModel):
    """A figure and the range in which it is expected.

    Attributes:
        mean: The figure.
        low: Lower end.
        high: Upper end.
    """

    mean: float
    low: float
    high: float

    def __mul__(self, factor: float) -> Interval:
        return Interval(mean=self.mean * factor, low=self.low * factor, high=self.high * factor)

    def __add__(self, other: Interval) -> Interval:
        # As if all errors had one sign: wider than independent ones would be.
        return Interval(
            mean=self.mean + other.mean, low=self.low + other.low, high=self.high + other.high
        )


@dataclass(frozen=True)
class PromptTokens:
    """Tokens of one kind's prompts.

    Attributes:
        prompt: Tokens a prompt, with the 95 % interval of the mean.
        cached: Tokens a prompt that the prefix cache holds already.
        too_long: Sampled prompts that leave no room for an answer in the model's context.
    """

    prompt: Interval
    cached: int
    too_long: int


class Tokeniser:
    """Counts tokens as the configured engine does.

    Args:
        extract: Engine and sampling.
        assumptions: Gets a sentence for everything that is assumed.

    Raises:
        EngineError: Not even the packaged tokenizer can be loaded.
    """

    def __init__(self, extract: ExtractConfig, assumptions: list[str]) -> None:
        self._extract = extract
        self._block = _block_size(extract)
        self._chat = _open(extract, assumptions)
        if not self._block:
            assumptions.append(
                "No prompt token is counted as cached: the engine's prefix cache is off or unknown."
            )

    def prompts(
        self, template: PromptTemplate, kind: SubjectKind, bodies: Sequence[str]
    ) -> PromptTokens:
        """Tokens of sampled prompts.

        Args:
            template: What the prompts share.
            kind: Their kind.
            bodies: At least one; those beyond `TOKENISED` are not looked at.
        """
        tokens = [self._chat.tokens(template.messages(kind, body)) for body in bodies[:TOKENISED]]
        engine = self._extract.engine
        longest = engine.max_model_len if isinstance(engine, VllmEngine) else None
        # A prompt of another body ends the shared prefix where there is one sampled prompt alone.
        shared = _common([*tokens, self._chat.tokens(template.messages(kind, delimited("?")))])
        return PromptTokens(
            prompt=mean_interval([len(found) for found in tokens]),
            cached=shared // self._block * self._block if self._block else 0,
            too_long=0 if longest is None else sum(len(found) >= longest for found in tokens),
        )

    def text(self, text: str) -> int:
        """Tokens of a text without any template."""
        return self._chat.plain_tokens(text)


class _CountingChat(ChatRenderer):
    """The model's chat template and tokenizer."""

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        found: list[int] = self._tokenizer(self.text(messages))["input_ids"]
        return found

    def plain_tokens(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with its 95 % interval; without a width where there is one value alone."""
    mean = statistics.fmean(values)
    error = 0.0
    if len(values) > 1:
        error = _NORMAL_95 * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean=mean, low=mean - error, high=mean + error)


def measured_answers(
    workspace: Workspace | None, extract: ExtractConfig
) -> dict[SubjectKind, Interval]:
    """Generated tokens an answer, by kind, where this model has answered here already.

    Args:
        workspace: May hold knowledge; None where there are no data.
        extract: The engine.

    Raises:
        DataError: The knowledge is damaged.
    """
    if workspace is None:
        return {}
    engine = extract.engine
    found: dict[SubjectKind, list[float]] = {}
    columns = [SUBJECT_KIND, GENERATED_TOKENS, MODEL, REVISION, ENGINE]
    for part, group in _spread(row_groups(workspace, KNOWLEDGE), _KNOWLEDGE_GROUPS):
        with reading(KNOWLEDGE, part), workspace.filesystem.open(part, "rb") as source:
            rows = pq.ParquetFile(source).read_row_group(group, columns=columns)
        same = pc.and_(
            pc.and_(pc.equal(rows[MODEL], engine.model), pc.equal(rows[REVISION], engine.revision)),
            pc.equal(rows[ENGINE], engine.kind),
        )
        for row in rows.filter(same).select([SUBJECT_KIND, GENERATED_TOKENS]).to_pylist():
            found.setdefault(row[SUBJECT_KIND], []).append(row[GENERATED_TOKENS])
    return {
        kind: mean_interval(tokens) for kind, tokens in found.items() if len(tokens) >= _FEW_ANSWERS
    }


def _spread(groups: Sequence[Any], number: int) -> list[Any]:
    return list(groups[:: max(1, len(groups) // number)])


def _common(tokens: Sequence[Sequence[int]]) -> int:
    """Length of the longest prefix that all share."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*tokens)))  # noqa: B905


def _block_size(extract: ExtractConfig) -> int:
    """Tokens a block of the prefix cache; 0 where there is none, or nobody knows."""
    engine = extract.engine
    if not isinstance(engine, VllmEngine):
        return 0
    if not engine.engine_kwargs.get("enable_prefix_caching", True):
        return 0
    return int(engine.engine_kwargs.get("block_size") or _BLOCK_SIZES[engine.device])


def _open(extract: ExtractConfig, assumptions: list[str]) -> _CountingChat:
    engine = extract.engine
    problem = f"engine {engine.kind} has no tokenizer here"
    if isinstance(engine, VllmEngine):
        try:
            return _CountingChat(
                _reachable(engine.model, engine.revision),
                engine.revision,
                engine.chat_template_kwargs,
            )
        except EngineError as error:
            problem = f"the tokenizer of {engine.model} cannot be loaded ({error.what[:120]})"
    assumptions.append(
        f"Tokens are counted with the tokenizer of SmolLM2-135M-Instruct: {problem}."
    )
    return _CountingChat(resolve_model(_FALLBACK), "main")


def _reachable(model: str, revision: str) -> str:
    """Where a tokenizer is loaded from, found out at once: the hub's own retries take a minute.

    Raises:
        EngineError: It is neither here nor can it be fetched.
    """
    source = resolve_model(model)
    if Path(source).is_dir():
        return source
    import huggingface_hub  # slow to import, and rarely needed

    try:
        known = huggingface_hub.try_to_load_from_cache(source, _TOKENIZER, revision=revision)
        if isinstance(known, str):
            return str(Path(known).parent)
        httpx.head(huggingface_hub.constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except (httpx.HTTPError, ValueError) as error:  # the latter: no such id is possible
        raise EngineError(
            f"neither here nor on the hub: {error}",
            where=f"extract.engine.model = {model}",
            todo="Name packaged:<name>, a local folder with a tokenizer, or a reachable id.",
        ) from error
    return source
