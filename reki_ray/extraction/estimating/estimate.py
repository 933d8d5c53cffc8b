"""`reki plan`: what extraction will take, before any call.

Individual and collective extraction stand side by side. Prompts are sampled, never enumerated,
so that 100 million users take as long as a hundred; whatever is assumed is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel

from reki_ray.config import RekiConfig
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError
from reki_ray.extraction.answer_cache import LEDGER
from reki_ray.extraction.estimating import speeds
from reki_ray.extraction.estimating.figures import (
    KindEstimate,
    ModeEstimate,
    Speed,
    total_of_mode,
    total_storage,
)
from reki_ray.extraction.estimating.reading import distinct
from reki_ray.extraction.estimating.sample import KINDS, Sample, Sampler
from reki_ray.extraction.estimating.speeds import MeasuredSpeed
from reki_ray.extraction.estimating.storage import RowSizes, encoder_dimension, vector_bytes
from reki_ray.extraction.estimating.tokens import TOKENISED, Interval, Tokeniser, measured_answers
from reki_ray.extraction.shards import Mode
from reki_ray.llm.prices import gpus_of
from reki_ray.prompts.answer_stats import AnswerStats, describe
from reki_ray.prompts.output_format import worked_answer
from reki_ray.prompts.scenario import load_scenario
from reki_ray.schema import SubjectKind

_MODES: Final[dict[Mode, tuple[SubjectKind, ...]]] = {
    "individual": ("item", "user"),
    "collective": ("item_cluster", "user_cluster"),
}
_MOST = 1e15
_SOURCES: Final = {
    "given": "as given on the command line",
    "configured": "as extract.speed says, not measured",
    "measured": "measured with a few prompts",
    "observed": "observed in a run",
}


class Estimate(BaseModel):
    """What extraction takes, individual and collective.

    Attributes:
        name: Name of the run.
        model: Model that is asked.
        configured: Mode that the configuration names.
        currency: Currency of all money.
        engines: Engine replicas.
        tokens_per_second: Generated tokens a second and replica.
        prefill_tokens_per_second: Prompt tokens a second and replica.
        speed_source: `given`, `configured`, `measured` on this machine, or `observed` in a run.
        modes: Both modes, individual first.
        assumptions: All that was not measured.
    """

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


def estimate(  # noqa: PLR0913  # one argument per option of `reki plan`
    config: RekiConfig,
    workspace: Workspace | None,
    *,
    users: int | None = None,
    items: int | None = None,
    tokens_per_second: float | None = None,
    prefill_tokens_per_second: float | None = None,
    engines: int | None = None,
    measure: bool = False,
) -> Estimate:
    """Estimate extraction from a sample.

    Args:
        config: The run.
        workspace: After ingest, and perhaps after cluster; None, or one without tables, where
            there are no data yet.
        users: Number of users; None takes that of the workspace.
        items: Number of items; None takes that of the workspace.
        tokens_per_second: Generated tokens a second and replica; None takes what was measured
            here, or else `extract.speed`.
        prefill_tokens_per_second: Prompt tokens a second and replica, cached ones not counted;
            None as above.
        engines: Engine replicas; None takes `extract.max_replicas`.
        measure: Start the engine and measure it where this machine can run it and its speed is
            not known yet.

    Raises:
        ConfigError: A number is missing, or no positive one.
        DataError: A table is damaged.
        EngineError: No tokenizer can be loaded.
    """
    _require_positive(users, items, tokens_per_second, prefill_tokens_per_second, engines)
    sampler = Sampler(config, workspace)
    assumptions = sampler.assumptions
    samples = sampler.draw(users, items)
    given = (prefill_tokens_per_second, tokens_per_second)
    measured = None if all(given) else _measured(config, sampler, samples, measure=measure)
    expected = config.extract.speed
    speed = Speed(
        prefill=given[0] or (measured.prefill if measured else expected.prefill_tokens_per_second),
        generation=given[1] or (measured.generation if measured else expected.tokens_per_second),
        engines=engines or config.extract.max_replicas,
        source="given" if any(given) else measured.source if measured else "configured",
        machine=measured.machine if measured else "",
    )
    kinds = _kinds(config, sampler, samples)
    rows = RowSizes(config, sampler.renderer.template, assumptions)
    dimension = encoder_dimension(config, sampler.workspace, assumptions)
    vectors = vector_bytes(config, samples["item"].subjects + samples["user"].subjects, dimension)
    sizes = {
        kind: rows.of(kind, samples[kind].bodies, kinds[kind].generated_tokens.mean)
        for kind in kinds
    }
    assumptions += _standing_assumptions(config, sampler.workspace, speed)
    return Estimate(
        name=config.name,
        model=config.extract.engine.model,
        configured=config.extract.mode,
        currency=config.extract.prices.currency,
        engines=speed.engines,
        tokens_per_second=speed.generation,
        prefill_tokens_per_second=speed.prefill,
        speed_source=speed.source,
        modes=[
            total_of_mode(mode, pair, config.extract, speed, total_storage(pair, sizes, vectors))
            for mode, pair in (
                (mode, [kinds[kind] for kind in asked])
                for mode, asked in _modes(config.extract.mode).items()
            )
        ],
        assumptions=assumptions,
    )


def _modes(configured: Mode) -> dict[Mode, tuple[SubjectKind, ...]]:
    """Individual beside collective; and both together where the configuration asks for that."""
    return _MODES | ({"blend": KINDS} if configured == "blend" else {})


def _measured(
    config: RekiConfig, sampler: Sampler, samples: Mapping[SubjectKind, Sample], *, measure: bool
) -> MeasuredSpeed | None:
    """The engine's speed as known or measured here; None leaves `extract.speed`."""
    extract = config.extract
    found = speeds.known_speed(extract, sampler.workspace)
    if found is not None or not (measure and speeds.can_measure(extract)):
        return found
    kinds = _modes(extract.mode)[extract.mode]
    share = speeds.PROBED // len(kinds)
    bodies = [(kind, body) for kind in kinds for body in samples[kind].bodies[:share]]
    return speeds.measure(extract, sampler.renderer.template, bodies)


# --- prompts and tokens --------------------------------------------------------------------------
def _kinds(
    config: RekiConfig, sampler: Sampler, samples: Mapping[SubjectKind, Sample]
) -> dict[SubjectKind, KindEstimate]:
    assumptions = sampler.assumptions
    template = sampler.renderer.template
    tokeniser = Tokeniser(config.extract, assumptions)
    generated = _generated(config, sampler, tokeniser)
    found: dict[SubjectKind, KindEstimate] = {}
    for kind in KINDS:
        sample = samples[kind]
        tokens = tokeniser.prompts(template, kind, sample.bodies)
        if tokens.too_long:
            assumptions.append(
                f"{tokens.too_long} of {min(TOKENISED, len(sample.bodies))} sampled {kind} prompts "
                "do not fit extract.engine.max_model_len and would fail."
            )
        prompts = distinct(sample.bodies, sample.subjects) if sample.drawn else sample.subjects
        found[kind] = KindEstimate(
            kind=kind,
            subjects=sample.subjects,
            prompts=round(prompts),
            duplicate_share=1 - prompts / sample.subjects if sample.subjects else 0.0,
            sampled=len(sample.bodies),
            prompt_tokens=tokens.prompt,
            cached_tokens=tokens.cached,
            generated_tokens=generated[kind],
        )
    return found


def _generated(
    config: RekiConfig, sampler: Sampler, tokeniser: Tokeniser
) -> dict[SubjectKind, Interval]:
    """Tokens an answer: as measured here, or as the worked answer, at most what is allowed."""
    measured = measured_answers(sampler.workspace, config.extract)
    most = config.extract.sampling.max_tokens
    template = sampler.renderer.template
    examples = load_scenario(config.prompts.scenario).examples
    generated: dict[SubjectKind, Interval] = {}
    for kind in KINDS:
        answers = {factor: examples.answer(kind)[factor] for factor in template.factors}
        tokens = min(most, tokeniser.text(worked_answer(template.form, answers)) + 1)
        generated[kind] = measured.get(kind) or Interval(mean=tokens, low=tokens / 2, high=most)
    guessed = [kind for kind in KINDS if kind not in measured]
    if guessed:
        sampler.assumptions.append(
            f"Answers about {', '.join(guessed)} are as long as the scenario's worked ones; their "
            f"range is from half of that to extract.sampling.max_tokens ({most})."
        )
    return generated


# --- what is said and checked --------------------------------------------------------------------
def _standing_assumptions(
    config: RekiConfig, workspace: Workspace | None, speed: Speed
) -> list[str]:
    extract = config.extract
    gpus = gpus_of(extract)
    said = [
        f"Each engine reads {speed.prefill:,.0f} prompt tokens/s and generates "
        f"{speed.generation:,.0f} tokens/s, one after the other ({_SOURCES[speed.source]}"
        f"{f': {speed.machine}' if speed.machine else ''}); starting engines is not counted.",
        f"A replica takes {gpus} GPU{'s' if gpus > 1 else ''}."
        if gpus
        else "The engine takes no GPU of this cluster.",
        "Ranges are 95 % intervals of the sampled means, added up as if all erred the same way.",
    ]
    prices = extract.prices
    if not prices.prompt_tokens and not prices.generated_tokens and not gpus * prices.gpu_hour:
        said.append("extract.prices names no price of what is used: the money is 0.")
    if extract.mode == "blend" and extract.min_interactions:
        said.append("Ids below extract.min_interactions are counted as if they were asked about.")
    said.append(
        "No second asking is counted: each answer that is no knowledge costs one call more."
    )
    entry = workspace.stages().get("extract") if workspace is not None else None
    if entry is not None and entry.details.get("answers"):
        stats = AnswerStats(**entry.details["answers"])
        said.append(f"When stage extract last ran here, {describe(stats)}.")
    if workspace is not None and workspace.has_table(LEDGER):
        said.append("Answers that the ledger holds already are not subtracted.")
    return said


def _require_positive(
    users: int | None,
    items: int | None,
    generation: float | None,
    prefill: float | None,
    engines: int | None,
) -> None:
    given = {
        "--users": users,
        "--items": items,
        "--tokens-per-second": generation,
        "--prefill-tokens-per-second": prefill,
        "--engines": engines,
    }
    wrong = [name for name, value in given.items() if value is not None and not 0 < value < _MOST]
    if wrong:
        raise ConfigError(
            f"not a positive number: {', '.join(wrong)}",
            where="command line",
            todo="Give positive numbers.",
        )
