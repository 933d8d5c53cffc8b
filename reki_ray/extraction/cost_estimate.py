"""`reki plan`: prompts, tokens, GPU hours, money, storage and time of extraction before any call.

Individual and collective extraction stand side by side. Prompts are sampled, so that 100 million
users take as long as a hundred; every assumption is part of the result.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ByteSize, computed_field

from reki_ray.config import ExtractConfig, RekiConfig
from reki_ray.core.downloads import PACKAGED, resolve_model
from reki_ray.core.formats import counted, duration
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError, EngineError
from reki_ray.extraction import engine_speed
from reki_ray.extraction.answer_cache import LEDGER
from reki_ray.extraction.capacity import Capacity, Renewal, service_capacity
from reki_ray.extraction.engine_speed import EngineSpeed
from reki_ray.extraction.prompt_sample import PromptSample, sample_prompts
from reki_ray.extraction.shards import KINDS, Mode
from reki_ray.extraction.token_counts import Interval, KindEstimate, estimate_kinds
from reki_ray.llm.prices import gpus_of, token_cost
from reki_ray.prompts.answer_stats import AnswerStats, describe
from reki_ray.prompts.renderer import build_renderer
from reki_ray.schema import ITEMS, Side, SubjectKind

_DIMENSION: Final = 768
_CHARS_PER_TOKEN: Final = 4
_COMPRESSED: Final = 0.5
"""Bytes of a text in Parquet to its length: histories .43, answers .50 on MovieLens-1M."""
# Bytes per row beside the texts, which Parquet hardly compresses: hashes, ids, counts.
_PLAN_ROW, _LEDGER_ROW, _KNOWLEDGE_ROW, _FACTOR_BYTES = 84, 80, 94, 4
_ID_BYTES, _FLOAT_BYTES, _PUBLISHED_ROW = 10, 4, 31


class StorageEstimate(BaseModel):
    """Disk space, bytes; representations are those of knowledge and of source texts."""

    plan: ByteSize
    ledger: ByteSize
    knowledge: ByteSize
    representations: ByteSize
    published: ByteSize

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> ByteSize:
        """Sum of all parts."""
        return ByteSize(sum(getattr(self, part) for part in type(self).model_fields))


class ModeEstimate(BaseModel):
    """Totals of one mode of extraction.

    Attributes:
        engine_hours: Work of one engine replica.
        gpu_hours: The same, times the GPUs of a replica.
        cost: Money for GPU hours and tokens.
        wall_hours: Time with all engines at work.
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
    storage: StorageEstimate


class Estimate(BaseModel):
    """Both modes of extraction, individual first, and all that was assumed."""

    name: str
    model: str
    configured: Mode
    currency: str
    engines: int
    tokens_per_second: float
    prefill_tokens_per_second: float
    speed_source: str = "configured"
    modes: list[ModeEstimate]
    assumptions: list[str]
    capacity: Capacity | None = None

    def summary(self) -> list[str]:
        """One line per mode."""
        lines = []
        for mode in self.modes:
            parts = [
                f"{mode.mode}{' (configured)' if mode.mode == self.configured else ''}: "
                f"{mode.prompts:,} prompts for {mode.subjects:,} subjects, "
                f"{short_number(mode.prompt_tokens.mean)} prompt and "
                f"{short_number(mode.generated_tokens.mean)} generated tokens"
            ]
            if mode.gpu_hours.mean:
                parts.append(f"{short_number(mode.gpu_hours.mean)} GPU hours")
            if mode.cost.mean:
                parts.append(f"{short_number(mode.cost.mean)} {self.currency}")
            parts.append(mode.storage.total.human_readable(separator=" "))
            if self.speed_source == "configured":
                parts.append("time not measured yet (`reki plan` measures it)")
            else:
                engines = counted(self.engines, "engine")
                parts.append(f"{duration(3600 * mode.wall_hours.mean)} with {engines}")
            lines.append(", ".join(parts))
        return lines


def estimate(  # noqa: PLR0913  # one argument per option of `reki plan`
    config: RekiConfig,
    workspace: Workspace | None,
    *,
    users: int | None = None,
    items: int | None = None,
    tokens_per_second: float | None = None,
    prefill_tokens_per_second: float | None = None,
    engines: int | None = None,
    requests_per_second: float | None = None,
    refresh_days: float = 30.0,
    measure: bool = False,
) -> Estimate:
    """Estimate extraction from a sample.

    Args:
        workspace: After ingest, and perhaps after cluster; None, or one without tables, if there
            are no data yet.
        users: None takes the number of the workspace, as does `items`.
        tokens_per_second: Generated tokens per second and replica; None takes the measured
            speed, or else `extract.speed`.
        prefill_tokens_per_second: Prompt tokens, cached ones not counted; None as above.
        engines: None takes `extract.max_replicas`.
        requests_per_second: Of the service; None leaves out `Estimate.capacity`.
        refresh_days: Time in which all knowledge is to be renewed once.
        measure: Start and measure the engine if this machine can run it and its speed is unknown.

    Raises:
        ConfigError: A number is missing or not positive.
        DataError: A table is damaged.
        EngineError: No tokenizer can be loaded, or the engine cannot be measured.
    """
    given = {
        "--users": users,
        "--items": items,
        "--tokens-per-second": tokens_per_second,
        "--prefill-tokens-per-second": prefill_tokens_per_second,
        "--engines": engines,
        "--requests-per-second": requests_per_second,
        "--refresh-days": refresh_days,
    }
    wrong = [name for name, value in given.items() if value is not None and not 0 < value < 1e15]
    if wrong:
        raise ConfigError(
            f"not a positive number: {', '.join(wrong)}",
            where="command line",
            todo="Give positive numbers.",
        )
    if workspace is not None and not workspace.has_table(ITEMS):
        workspace = None
    extract, assumptions = config.extract, list[str]()
    renderer = build_renderer(config.prompts, extract)
    totals: dict[Side, int | None] = {"users": users, "items": items}
    samples = sample_prompts(config, workspace, renderer, assumptions, totals)
    modes: dict[Mode, tuple[SubjectKind, ...]] = {"individual": KINDS[:2], "collective": KINDS[2:]}
    if extract.mode == "blend":
        modes["blend"] = KINDS
    speed = engine_speed.known_speed(extract, workspace)
    if speed is None and measure and engine_speed.can_measure(extract):
        share = engine_speed.PROBED // len(modes[extract.mode])
        bodies = [(k, body) for k in modes[extract.mode] for body in samples[k].bodies[:share]]
        speed = engine_speed.measure(extract, renderer.template, bodies)
    if speed is None:
        speed = EngineSpeed(
            prefill=extract.speed.prefill_tokens_per_second,
            generation=extract.speed.tokens_per_second,
            source="configured",
        )
    if tokens_per_second or prefill_tokens_per_second:
        rates = {"prefill": prefill_tokens_per_second, "generation": tokens_per_second}
        known = {name: rate for name, rate in rates.items() if rate}
        speed = speed.model_copy(update={**known, "source": "given"})
    kinds = estimate_kinds(config, workspace, samples, renderer, assumptions)
    sizes = _storage_sizes(config, workspace, len(renderer.factors), samples, kinds, assumptions)
    replicas = engines or extract.max_replicas
    assumptions += _assumptions(config, workspace, speed)
    estimates = {
        mode: _estimate_mode(
            mode, [kinds[kind] for kind in members], extract, speed, replicas, sizes
        )
        for mode, members in modes.items()
    }
    needs = None
    if requests_per_second:
        sides = (samples["user"].subjects, samples["item"].subjects)
        mode = estimates[extract.mode]
        hours = (mode.engine_hours.mean, mode.gpu_hours.mean, mode.wall_hours.mean)
        sizes_on_disk = (mode.storage.total, mode.storage.published)
        renewal = Renewal(mode.prompts, *hours, mode.cost.mean, *sizes_on_disk)
        needs = service_capacity(config, renewal, sides, requests_per_second, refresh_days)
        assumptions.append(
            "Serving and clustering cost what docs/results/benchmarks.md measured on 2 cores, 100 "
            "candidates per request; encoding, training and retrieval are not counted."
        )
    return Estimate(
        name=config.name,
        model=extract.engine.model,
        configured=extract.mode,
        currency=extract.prices.currency,
        engines=replicas,
        tokens_per_second=speed.generation,
        prefill_tokens_per_second=speed.prefill,
        speed_source=speed.source,
        modes=list(estimates.values()),
        assumptions=assumptions,
        capacity=needs,
    )


# --- totals --------------------------------------------------------------------------------------
def _estimate_mode(
    mode: Mode,
    kinds: list[KindEstimate],
    extract: ExtractConfig,
    speed: EngineSpeed,
    replicas: int,
    sizes: Mapping[SubjectKind, StorageEstimate],
) -> ModeEstimate:
    zero = Interval(mean=0.0, low=0.0, high=0.0)
    prompt = sum((kind.prompt_tokens * kind.prompts for kind in kinds), zero)
    generated = sum((kind.generated_tokens * kind.prompts for kind in kinds), zero)
    cached = sum(kind.cached_tokens * kind.prompts for kind in kinds)
    computed = prompt + Interval(mean=-cached, low=-cached, high=-cached)
    seconds = computed * (1 / speed.prefill) + generated * (1 / speed.generation)
    gpu_hours = seconds * (gpus_of(extract) / 3600)
    price = {
        end: token_cost(extract.prices, getattr(prompt, end), cached, getattr(generated, end))
        for end in ("mean", "low", "high")
    }
    storage = [sizes[kind.kind].model_dump(exclude={"total"}) for kind in kinds]
    vectors = {name: storage[0][name] for name in ("representations", "published")}
    tables = {name: sum(size[name] for size in storage) for name in storage[0]}
    return ModeEstimate(
        mode=mode,
        kinds=kinds,
        subjects=sum(kind.subjects for kind in kinds),
        prompts=sum(kind.prompts for kind in kinds),
        prompt_tokens=prompt,
        cached_tokens=cached,
        generated_tokens=generated,
        engine_hours=seconds * (1 / 3600),
        gpu_hours=gpu_hours,
        cost=gpu_hours * extract.prices.gpu_hour + Interval(**price),
        wall_hours=seconds * (1 / 3600 / replicas),
        storage=StorageEstimate(**tables | vectors),
    )


def _storage_sizes(
    config: RekiConfig,
    workspace: Workspace | None,
    factors: int,
    samples: Mapping[SubjectKind, PromptSample],
    kinds: Mapping[SubjectKind, KindEstimate],
    assumptions: list[str],
) -> dict[SubjectKind, StorageEstimate]:
    """Bytes of the tables of each kind; vectors are those of all ids, whatever the kind."""
    assumptions.append(
        f"Parquet takes {_COMPRESSED:g} bytes per character of prompts and answers; a generated "
        f"token has {_CHARS_PER_TOKEN} characters."
    )
    ids = samples["item"].subjects + samples["user"].subjects
    # Two tables per side: encoded knowledge, and encoded source text.
    vector = encoder_dimension(config, workspace, assumptions) * _FLOAT_BYTES + _ID_BYTES
    published = config.train.hein.output * _FLOAT_BYTES + _ID_BYTES + _PUBLISHED_ROW
    texts = factors if config.prompts.form == "json" else 1
    sizes: dict[SubjectKind, StorageEstimate] = {}
    for kind, sample in samples.items():
        body = _COMPRESSED * statistics.fmean(map(len, sample.bodies))
        answer = _COMPRESSED * kinds[kind].generated_tokens.mean * _CHARS_PER_TOKEN
        answer += _FACTOR_BYTES * (texts - 1)
        sizes[kind] = StorageEstimate(
            plan=round(kinds[kind].subjects * (_PLAN_ROW + body)),
            ledger=round(kinds[kind].prompts * (_LEDGER_ROW + answer)),
            knowledge=round(kinds[kind].subjects * (_KNOWLEDGE_ROW + answer)),
            representations=2 * ids * vector,
            published=ids * published,
        )
    return sizes


def encoder_dimension(
    config: RekiConfig, workspace: Workspace | None, assumptions: list[str]
) -> int:
    """Length of a representation, as far as known without loading the encoder."""
    entry = None if workspace is None else workspace.stages().get("encode")
    details = entry.details if entry is not None else {}
    if details.get("model") == config.encode.model and "dimension" in details:
        return int(details["dimension"])
    try:
        model = config.encode.model
        folder = Path(resolve_model(model) if model.startswith(PACKAGED) else model)
        return int(json.loads((folder / "config.json").read_text("utf-8"))["hidden_size"])
    except (OSError, ValueError, KeyError, EngineError):
        assumptions.append(
            f"Representations of {config.encode.model} are assumed to have {_DIMENSION} dimensions."
        )
        return _DIMENSION


def _assumptions(config: RekiConfig, workspace: Workspace | None, speed: EngineSpeed) -> list[str]:
    extract, prices, gpus = config.extract, config.extract.prices, gpus_of(config.extract)
    source = {
        "given": "as given on the command line",
        "configured": "as in extract.speed, not measured",
        "measured": "measured with a few prompts",
        "observed": "observed in a run",
    }[speed.source] + (f": {speed.machine}" if speed.machine else "")
    sentences = [
        f"Each engine reads {speed.prefill:,.0f} prompt tokens/s and generates "
        f"{speed.generation:,.0f} tokens/s, one after the other ({source}); starting engines is "
        "not counted.",
        f"A replica takes {gpus} GPU{'s' if gpus > 1 else ''}."
        if gpus
        else "The engine takes no GPU of this cluster.",
        "Ranges are 95 % intervals of the sampled means, added up as if all errors had one sign.",
    ]
    if not prices.prompt_tokens and not prices.generated_tokens and not gpus * prices.gpu_hour:
        sentences.append("extract.prices has no price for what is used: the cost is 0.")
    if extract.mode == "blend" and extract.min_interactions:
        sentences.append("Ids below extract.min_interactions are counted as if they had prompts.")
    sentences.append("Retries of invalid answers are not counted: each costs one more call.")
    if workspace is not None:
        entry = workspace.stages().get("extract")
        if entry is not None and entry.details.get("answers"):
            stats = AnswerStats(**entry.details["answers"])
            sentences.append(f"In the last run of stage extract, {describe(stats)}.")
        if workspace.has_table(LEDGER):
            sentences.append("Cached answers are not subtracted.")
    return sentences


# --- numbers as text -----------------------------------------------------------------------------
def short_number(value: float) -> str:
    """A number in at most six characters and a unit, as `1.50 M`."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:,.2f} {unit}"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2g}" if value < 1 else f"{value:.1f}"
