"""Sections of prompting and of stage extract."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from reki_ray.config.base import OPERATIONAL, Section
from reki_ray.config.pool import ReplicaPool


class PromptsConfig(Section):
    """Factorization prompts."""

    scenario: str = Field(
        "movies",
        description="movies, books, news, music, products, or the path of your own YAML file.",
    )
    factors: tuple[str, ...] | None = Field(
        None, description="Subset of the scenario's factors to ask for; null asks for all."
    )
    few_shot: bool = Field(
        False, description="Show a worked example first. Small models need it; strong ones do not."
    )
    form: Literal["text", "json"] = Field(
        "text",
        description="text: the whole answer is one piece of knowledge; json: one field a factor, "
        "validated, asked once more where it is broken, and kept factor by factor.",
    )
    min_factors: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of the factors that an answer must name to count as knowledge, unknown "
        "ones included; one that names less than half is asked for once more in any case. 0 also "
        "takes answers without lines `factor: text`.",
    )
    hidden_attributes: tuple[str, ...] = Field(
        (), description="Attributes of items and users that no prompt shows, as year."
    )
    max_title_chars: int = Field(120, ge=8, description="Longer titles are cut, characters.")
    max_text_chars: int = Field(600, ge=0, description="Longer descriptions are cut, characters.")
    max_history: int = Field(30, ge=1, description="Interactions shown in a user prompt.")
    max_members: int = Field(8, ge=1, description="Members shown in a cluster prompt.")


class VllmEngine(Section):
    """vLLM inside Ray Data's batch inference processor."""

    kind: Literal["vllm"] = "vllm"
    device: Literal["cpu", "gpu"] = Field("cpu", description="Preset of engine settings.")
    model: str = Field(
        "packaged:smollm2-135m-instruct",
        description="packaged:<name>, a local folder, or a Hugging Face id.",
    )
    revision: str = Field("main", description="Revision of a Hugging Face id.")
    chat_template_kwargs: dict[str, Any] = Field(
        {},
        description="Arguments of the model's chat template, as {enable_thinking: false}.",
    )
    max_model_len: int = Field(2048, ge=128, description="Longest prompt + answer, tokens.")
    engine_kwargs: dict[str, Any] = Field(
        {}, description="Passed to vLLM unrenamed, over the preset: tensor_parallel_size, ..."
    )
    cpu_threads: int = Field(
        0,
        ge=0,
        description="OpenMP threads of the CPU engine; 0 takes all cores but one, at least 1.",
        json_schema_extra=OPERATIONAL,
    )
    env: dict[str, str] = Field({}, description="Environment of the engine, over the preset.")


class ScriptedEngine(Section):
    """Answers computed from the prompt without a model, for tests and dry runs."""

    kind: Literal["scripted"] = "scripted"
    model: str = Field("scripted", description="Model name written into the ledger.")
    revision: str = Field("1", description="Revision written into the ledger.")
    fail_containing: str = Field(
        "", description="Prompts with this text fail; empty lets every prompt succeed."
    )
    seconds: float = Field(0.0, ge=0, description="Time that an answer takes, seconds.")


class OpenAiEngine(Section):
    """Any endpoint that speaks the OpenAI chat completions protocol."""

    kind: Literal["openai"] = "openai"
    base_url: str = Field(
        description="Root of the endpoint, as https://host/v1; a query, as Azure's "
        "?api-version=..., goes along with each request."
    )
    model: str = Field(description="Model as the endpoint names it.")
    revision: str = Field(
        "", description="Your label of the model's version: changing it asks everything again."
    )
    api_key_variable: str = Field(
        "OPENAI_API_KEY",
        description="Environment variable that holds the key; empty sends none.",
        json_schema_extra=OPERATIONAL,
    )
    api_key_header: str = Field(
        "Authorization",
        description="Header that carries the key; Authorization sends it as a bearer token, Azure "
        "wants api-key.",
        json_schema_extra=OPERATIONAL,
    )
    max_in_flight: int = Field(
        16, ge=1, description="Requests at a time of one replica.", json_schema_extra=OPERATIONAL
    )
    timeout_seconds: float = Field(
        120.0,
        gt=0,
        description="Longest wait for a whole answer, however slowly it drips.",
        json_schema_extra=OPERATIONAL,
    )
    max_retries: int = Field(
        5,
        ge=0,
        description="Repetitions after 429, 5xx, a time-out or a lost connection.",
        json_schema_extra=OPERATIONAL,
    )
    max_retry_seconds: float = Field(
        300.0,
        gt=0,
        description="Longest time spent on one prompt, its retries included.",
        json_schema_extra=OPERATIONAL,
    )
    budget: float | None = Field(
        None,
        gt=0,
        description="Money (extract.prices.currency) that one run may spend; asking stops before "
        "it is exceeded. Needs extract.prices.",
        json_schema_extra=OPERATIONAL,
    )
    structured: bool = Field(
        True, description="Ask for form json by response_format; false where it is not supported."
    )
    withhold: tuple[str, ...] = Field(
        (), description="User attributes that never leave for this endpoint, as gender."
    )
    extra_body: dict[str, Any] = Field({}, description="Further fields of each request.")

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        if not _is_web_address(address):
            # It may hold a password, and is not shown.
            raise ValueError(
                "it is not an address such as https://host/v1 (http or https, a host, "
                "a port up to 65535, no blanks)"
            )
        return address


def _is_web_address(address: str) -> bool:
    import httpx  # a tenth of a second, for this engine alone

    if not address.isprintable() or " " in address:
        return False
    try:
        parts = urlsplit(address)
        # The client must take it as well, above all its host.
        httpx.URL(address)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        return False


class PriceConfig(Section):
    """What asking costs; 0 where it costs nothing."""

    currency: str = Field("USD", description="Name of the currency, for display.")
    gpu_hour: float = Field(0.0, ge=0, description="Price of one GPU for one hour.")
    prompt_tokens: float = Field(0.0, ge=0, description="Price of a million prompt tokens.")
    cached_tokens: float | None = Field(
        None, ge=0, description="Price of a million cached prompt tokens; null: the full price."
    )
    generated_tokens: float = Field(0.0, ge=0, description="Price of a million generated tokens.")


class SpeedConfig(Section):
    """What one engine replica does, for estimates before any call."""

    tokens_per_second: float = Field(1000.0, gt=0, description="Tokens generated per second.")
    prefill_tokens_per_second: float = Field(
        10_000.0, gt=0, description="Prompt tokens read per second, cached ones not counted."
    )


class SamplingConfig(Section):
    """Sampling of the LLM's answers."""

    max_tokens: int = Field(160, ge=1, description="Longest answer, tokens.")
    temperature: float = Field(0.0, ge=0, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling.")
    repetition_penalty: float = Field(
        1.0, gt=0, description="Above 1 discourages the loops of small models."
    )
    seed: int = Field(0, description="Seed of sampling.")
    stop: tuple[str, ...] = Field((), description="Texts that end an answer.")
    constrain: bool | Literal["choices"] = Field(
        False,
        description="Structured output (vLLM). true: one short line per factor; choices: one or "
        "two phrases per factor from the scenario's closed lists, which very small models need; "
        "strong models keep the form by themselves.",
    )


class ExtractConfig(ReplicaPool):
    """Asking the LLM."""

    mode: Literal["collective", "individual", "blend"] = Field(
        "collective",
        description="One prompt per cluster (REKI-C), one per id (REKI-I), or both, blended by how "
        "active an id is.",
    )
    min_interactions: int = Field(
        5,
        ge=0,
        description="Mode blend: an id with fewer interactions before the cut is not asked about "
        "alone; the knowledge of its cluster stands for it.",
    )
    engine: Annotated[VllmEngine | OpenAiEngine | ScriptedEngine, Field(discriminator="kind")] = (
        VllmEngine()
    )
    sampling: SamplingConfig = SamplingConfig()
    batch_size: int = Field(
        32, ge=1, description="Prompts per call of the engine.", json_schema_extra=OPERATIONAL
    )
    unit_rows: int = Field(
        64,
        ge=1,
        description="Prompts a work unit: what is finished is saved unit by unit.",
        json_schema_extra=OPERATIONAL,
    )
    stall_minutes: float = Field(
        30.0,
        gt=0,
        description="Minutes without any finished work unit after which extract fails; longer than "
        "the engine's start.",
        json_schema_extra=OPERATIONAL,
    )
    prices: PriceConfig = Field(PriceConfig(), json_schema_extra=OPERATIONAL)
    speed: SpeedConfig = Field(SpeedConfig(), json_schema_extra=OPERATIONAL)
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of Prometheus metrics of a running extract; null: none.",
        json_schema_extra=OPERATIONAL,
    )
    max_dead_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of prompts without an answer above which extract fails.",
        json_schema_extra=OPERATIONAL,
    )

    @model_validator(mode="after")
    def _budget_has_prices(self) -> ExtractConfig:
        capped = isinstance(self.engine, OpenAiEngine) and self.engine.budget is not None
        if capped and self.prices.prompt_tokens == self.prices.generated_tokens == 0:
            raise ValueError("extract.engine.budget needs the prices of extract.prices")
        return self
