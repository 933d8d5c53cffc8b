"""Figures of an estimate: prompts of one kind, and what a mode of extraction takes in all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel

from reki_ray.config import ExtractConfig
from reki_ray.extraction.answer_cache import LEDGER
from reki_ray.extraction.estimating.storage import Storage
from reki_ray.extraction.estimating.tokens import Interval
from reki_ray.extraction.plan_table import PLAN
from reki_ray.extraction.shards import Mode
from reki_ray.llm.prices import gpus_of, token_cost
from reki_ray.schema import KNOWLEDGE, SubjectKind, Table

_SECONDS_AN_HOUR: Final = 3600


class KindEstimate(BaseModel):
    """Prompts about one kind of subject.

    Attributes:
        kind: Kind of the subjects.
        subjects: Number of subjects.
        prompts: Different prompts among theirs.
        duplicate_share: Share of subjects whose prompt is another's as well, in [0, 1].
        sampled: Prompts that were rendered for the estimate.
        prompt_tokens: Tokens a prompt.
        cached_tokens: Tokens a prompt that the prefix cache serves.
        generated_tokens: Tokens an answer.
    """

    kind: SubjectKind
    subjects: int
    prompts: int
    duplicate_share: float
    sampled: int
    prompt_tokens: Interval
    cached_tokens: int
    generated_tokens: Interval


class ModeEstimate(BaseModel):
    """What one mode of extraction takes.

    Attributes:
        mode: Individual or collective.
        kinds: Its prompts, items first.
        subjects: Number of subjects.
        prompts: Different prompts.
        prompt_tokens: Tokens of all prompts.
        cached_tokens: Those of them that the prefix cache serves.
        generated_tokens: Tokens of all answers.
        engine_hours: Hours of work of one engine replica.
        gpu_hours: The same, times the GPUs of a replica.
        cost: Money for GPU hours and tokens.
        wall_hours: Hours until all is asked, with all engines at work.
        storage: Disk space.
    """

    mode: Mode
    kinds: list[KindEstimate]
    subjects: int
    prompts: int
    prompt_tokens: Interval
    cached_tokens: int
    generated_tokens: Interval
    engine_hours: Interval
    gpu_hours: Interval
    cost: Interval
    wall_hours: Interval
    storage: Storage


@dataclass(frozen=True)
class Speed:
    """What the engines do.

    Attributes:
        prefill: Prompt tokens a second and replica, cached ones not counted.
        generation: Generated tokens a second and replica.
        engines: Replicas.
        source: Where the rates are from, see `Estimate.speed_source`.
        machine: Where they were measured; empty where they were not.
    """

    prefill: float
    generation: float
    engines: int
    source: str = "configured"
    machine: str = ""


def total_of_mode(
    mode: Mode, kinds: list[KindEstimate], extract: ExtractConfig, speed: Speed, storage: Storage
) -> ModeEstimate:
    """Add up the prompts of one mode.

    Args:
        mode: Individual or collective.
        kinds: Its prompts.
        extract: Engine and prices.
        speed: What the engines do.
        storage: Disk space.
    """
    prompt = _total([kind.prompt_tokens * kind.prompts for kind in kinds])
    generated = _total([kind.generated_tokens * kind.prompts for kind in kinds])
    cached = sum(kind.cached_tokens * kind.prompts for kind in kinds)
    computed = prompt + Interval(mean=-cached, low=-cached, high=-cached)
    seconds = computed * (1 / speed.prefill) + generated * (1 / speed.generation)
    engine_hours = seconds * (1 / _SECONDS_AN_HOUR)
    gpu_hours = engine_hours * gpus_of(extract)
    tokens_cost = Interval(
        mean=token_cost(extract.prices, prompt.mean, cached, generated.mean),
        low=token_cost(extract.prices, prompt.low, cached, generated.low),
        high=token_cost(extract.prices, prompt.high, cached, generated.high),
    )
    return ModeEstimate(
        mode=mode,
        kinds=kinds,
        subjects=sum(kind.subjects for kind in kinds),
        prompts=sum(kind.prompts for kind in kinds),
        prompt_tokens=prompt,
        cached_tokens=cached,
        generated_tokens=generated,
        engine_hours=engine_hours,
        gpu_hours=gpu_hours,
        cost=gpu_hours * extract.prices.gpu_hour + tokens_cost,
        wall_hours=engine_hours * (1 / speed.engines),
        storage=storage,
    )


def _total(parts: list[Interval]) -> Interval:
    return sum(parts, Interval(mean=0.0, low=0.0, high=0.0))


def total_storage(
    kinds: list[KindEstimate],
    sizes: Mapping[SubjectKind, Mapping[str, float]],
    vectors: tuple[int, int],
) -> Storage:
    """Disk space of one mode.

    Args:
        kinds: Its prompts.
        sizes: Bytes a row, by kind and path of the table.
        vectors: Bytes of representations and of published vectors.
    """

    def of(table: Table, rows: Callable[[KindEstimate], int]) -> int:
        return round(sum(sizes[kind.kind][table.path] * rows(kind) for kind in kinds))

    return Storage(
        plan=of(PLAN, lambda kind: kind.subjects),
        ledger=of(LEDGER, lambda kind: kind.prompts),
        knowledge=of(KNOWLEDGE, lambda kind: kind.subjects),
        representations=vectors[0],
        published=vectors[1],
    )
