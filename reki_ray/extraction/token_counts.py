"""Tokens of sampled prompts, and of answers as measured or as in the scenario's examples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Final

import httpx
import pyarrow.compute as pc
from pydantic import BaseModel

from reki_ray import schema
from reki_ray.config import ExtractConfig, RekiConfig, VllmEngine
from reki_ray.core.downloads import PACKAGED, resolve_model
from reki_ray.core.workspace import Workspace, reading
from reki_ray.errors import EngineError
from reki_ray.extraction.prompt_sample import PromptSample
from reki_ray.extraction.shards import KINDS
from reki_ray.llm.chat_template import ChatRenderer
from reki_ray.prompts.chat import delimited
from reki_ray.prompts.output_format import worked_answer
from reki_ray.prompts.renderer import Renderer
from reki_ray.schema import SubjectKind

_TOKENIZED: Final = 200
"""Sampled prompts of a kind that are tokenized."""
_FALLBACK: Final = f"{PACKAGED}smollm2-135m-instruct"
_BLOCK_SIZES: Final = {"cpu": 32, "gpu": 16}
"""Tokens per block of the key-value cache: of the CPU preset, and vLLM's default on GPUs."""
_HUB_SECONDS: Final = 5.0
_NORMAL_95: Final = 1.96
_MIN_ANSWERS, _MAX_ANSWERS = 30, 10_000


class Interval(BaseModel):
    """A number and the range in which it is expected."""

    mean: float
    low: float
    high: float

    @classmethod
    def of_mean(cls, values: Sequence[float]) -> Interval:
        """Mean with its 95 % interval, which has no width for a single value."""
        mean, error = statistics.fmean(values), 0.0
        if len(values) > 1:
            error = _NORMAL_95 * statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean=mean, low=mean - error, high=mean + error)

    def __mul__(self, factor: float) -> Interval:
        return Interval(mean=self.mean * factor, low=self.low * factor, high=self.high * factor)

    def __add__(self, other: Interval) -> Interval:
        # As if all errors had the same sign: wider than for independent ones.
        return Interval(
            mean=self.mean + other.mean, low=self.low + other.low, high=self.high + other.high
        )


class KindEstimate(BaseModel):
    """Prompts of one kind of subject; tokens are per prompt and per answer.

    Attributes:
        duplicate_share: Share of subjects whose prompt equals another's, in [0, 1].
    """

    kind: SubjectKind
    subjects: int
    prompts: int
    duplicate_share: float
    sampled: int
    prompt_tokens: Interval
    cached_tokens: int
    generated_tokens: Interval


def estimate_kinds(
    config: RekiConfig,
    workspace: Workspace | None,
    samples: Mapping[SubjectKind, PromptSample],
    renderer: Renderer,
    assumptions: list[str],
) -> dict[SubjectKind, KindEstimate]:
    """Count the tokens of sampled prompts of each kind.

    Raises:
        DataError: The knowledge of an earlier run is damaged.
        EngineError: No tokenizer can be loaded.
    """
    chat = token_counter(config.extract, assumptions)
    engine = config.extract.engine
    block = 0  # tokens per block of the prefix cache
    if isinstance(engine, VllmEngine) and engine.engine_kwargs.get("enable_prefix_caching", True):
        block = int(engine.engine_kwargs.get("block_size") or _BLOCK_SIZES[engine.device])
    if not block:
        assumptions.append(
            "No prompt token is counted as cached: the engine's prefix cache is off or unknown."
        )
    measured = _measured_answers(workspace, config.extract)
    template, examples = renderer.template, renderer.scenario.examples
    most = config.extract.sampling.max_tokens
    longest = getattr(engine, "max_model_len", math.inf)
    kinds: dict[SubjectKind, KindEstimate] = {}
    for kind, sample in samples.items():
        prompts = [
            chat.token_ids(template.messages(kind, body)) for body in sample.bodies[:_TOKENIZED]
        ]
        if too_long := sum(len(tokens) >= longest for tokens in prompts):
            assumptions.append(
                f"{too_long} of {len(prompts)} sampled {kind} prompts do not fit "
                "extract.engine.max_model_len and would fail."
            )
        # A prompt of another body ends the shared prefix if only one prompt was sampled.
        other = chat.token_ids(template.messages(kind, delimited("?")))
        columns = zip(*prompts, other)  # noqa: B905  # the shortest ends the prefix
        shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        answers = {factor: examples.answer(kind)[factor] for factor in template.factors}
        worked = min(most, chat.count_tokens(worked_answer(template.form, answers)) + 1)
        kinds[kind] = KindEstimate(
            kind=kind,
            subjects=sample.subjects,
            prompts=round(sample.distinct),
            duplicate_share=1 - sample.distinct / sample.subjects if sample.subjects else 0.0,
            sampled=len(sample.bodies),
            prompt_tokens=Interval.of_mean([len(tokens) for tokens in prompts]),
            cached_tokens=shared // block * block if block else 0,
            generated_tokens=measured.get(kind) or Interval(mean=worked, low=worked / 2, high=most),
        )
    if guessed := [kind for kind in KINDS if kind not in measured]:
        assumptions.append(
            f"Answers about {', '.join(guessed)} are as long as the scenario's worked ones; their "
            f"range is from half of that to extract.sampling.max_tokens ({most})."
        )
    return kinds


def _measured_answers(
    workspace: Workspace | None, extract: ExtractConfig
) -> dict[SubjectKind, Interval]:
    """Generated tokens per answer, by kind, of earlier answers of this model."""
    engine, measured = extract.engine, dict[SubjectKind, Interval]()
    if workspace is None or not workspace.has_table(schema.KNOWLEDGE):
        return measured
    same = pc.field(schema.MODEL) == engine.model
    same = (
        same
        & (pc.field(schema.REVISION) == engine.revision)
        & (pc.field(schema.ENGINE) == engine.kind)
    )
    with reading(schema.KNOWLEDGE, workspace.path(schema.KNOWLEDGE.path)):
        for kind in KINDS:
            rows = workspace.dataset(schema.KNOWLEDGE, schema.KNOWLEDGE.schema).head(
                _MAX_ANSWERS,
                columns=[schema.GENERATED_TOKENS],
                filter=same & (pc.field(schema.SUBJECT_KIND) == kind),
            )
            if rows.num_rows >= _MIN_ANSWERS:
                measured[kind] = Interval.of_mean(rows[schema.GENERATED_TOKENS].to_pylist())
    return measured


def token_counter(extract: ExtractConfig, assumptions: list[str]) -> ChatRenderer:
    """The engine's chat template and tokenizer, or else the bundled ones.

    Raises:
        EngineError: Not even the bundled tokenizer can be loaded.
    """
    engine = extract.engine
    problem = f"engine {engine.kind} has no tokenizer here"
    if isinstance(engine, VllmEngine):
        try:
            source = _reachable_tokenizer(engine.model, engine.revision)
            return ChatRenderer(source, engine.revision, engine.chat_template_kwargs)
        except EngineError as error:
            problem = f"the tokenizer of {engine.model} cannot be loaded ({error.what[:120]})"
    assumptions.append(
        f"Tokens are counted with the tokenizer of SmolLM2-135M-Instruct: {problem}."
    )
    return ChatRenderer(resolve_model(_FALLBACK), "main")


def _reachable_tokenizer(model: str, revision: str) -> str:
    """Folder or id of a tokenizer; fails at once, while the hub's own retries take a minute."""
    source = resolve_model(model)
    if Path(source).is_dir():
        return source
    import huggingface_hub  # slow to import, and rarely needed

    try:
        cached = huggingface_hub.try_to_load_from_cache(
            source, "tokenizer_config.json", revision=revision
        )
        if isinstance(cached, str):
            return str(Path(cached).parent)
        httpx.head(huggingface_hub.constants.ENDPOINT, timeout=_HUB_SECONDS)
    except (httpx.HTTPError, ValueError) as error:  # ValueError: not a valid id
        raise EngineError(
            f"neither a local folder nor reachable on the hub: {error}",
            where=f"extract.engine.model = {model}",
            todo="Name packaged:<name>, a local folder with a tokenizer, or a reachable id.",
        ) from error
    return source
