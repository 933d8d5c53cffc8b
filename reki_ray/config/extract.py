"""Sections of prompts and of stage extract."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from reki_ray.config.base import OPERATIONAL, ReplicaPool, Section


class PromptsConfig(Section):
    """Factorization prompts."""

    scenario: str = "movies"
    """movies, books, news, music, products, or the path of your own YAML file."""
    factors: tuple[str, ...] | None = None
    """Subset of the scenario's factors to ask for; null asks for all."""
    few_shot: bool = False
    """Show a worked example first. Small models need it; strong ones do not."""
    form: Literal["text", "json"] = "text"
    """text: the whole answer is one piece of knowledge; json: one field per factor, validated,
    retried once if broken, and kept factor by factor."""
    min_factors: float = Field(0.1, ge=0, le=1)
    """Share of the factors that an answer must name to count as knowledge, unknown ones included;
    one that names less than half is retried once in any case. 0 also takes answers without lines
    `factor: text`."""
    hidden_attributes: tuple[str, ...] = ()
    """Attributes of items and users hidden from all prompts, such as year."""
    max_title_chars: int = Field(120, ge=8, description="Longer titles are cut, characters.")
    max_text_chars: int = Field(600, ge=0, description="Longer descriptions are cut, characters.")
    max_history: int = Field(30, ge=1, description="Interactions shown in a user prompt.")
    max_members: int = Field(8, ge=1, description="Members shown in a cluster prompt.")


class VllmEngine(Section):
    """vLLM inside Ray Data's batch inference processor."""

    kind: Literal["vllm"] = "vllm"
    device: Literal["cpu", "gpu"] = Field("cpu", description="Preset of engine settings.")
    model: str = "packaged:smollm2-135m-instruct"
    """packaged:<name>, a local folder, or a Hugging Face id."""
    revision: str = Field("main", description="Revision of a Hugging Face id.")
    chat_template_kwargs: dict[str, Any] = Field({})
    """Arguments of the model's chat template, such as {enable_thinking: false}."""
    max_model_len: int = Field(2048, ge=128, description="Longest prompt + answer, tokens.")
    engine_kwargs: dict[str, Any] = Field({})
    """Passed to vLLM unrenamed, over the preset: tensor_parallel_size, ..."""
    cpu_threads: int = Field(0, ge=0, json_schema_extra=OPERATIONAL)
    """OpenMP threads of the CPU engine; 0 takes all cores but one, at least 1."""
    env: dict[str, str] = Field({}, description="Environment of the engine, over the preset.")


class ScriptedEngine(Section):
    """Answers computed from the prompt without a model, for tests and dry runs."""

    kind: Literal["scripted"] = "scripted"
    model: str = Field("scripted", description="Model name written into the answer cache.")
    revision: str = Field("1", description="Revision written into the answer cache.")
    fail_containing: str = ""
    """Prompts with this text fail; empty lets every prompt succeed."""
    seconds: float = Field(0.0, ge=0, description="Time per answer, seconds.")


class OpenAiEngine(Section):
    """Any endpoint with the OpenAI chat completions protocol."""

    kind: Literal["openai"] = "openai"
    base_url: str
    """Root of the endpoint, such as https://host/v1; a query, such as Azure's ?api-version=..., is
    sent with each request."""
    model: str = Field(description="Model as the endpoint names it.")
    revision: str = ""
    """Your label of the model's version: a change sends all prompts again."""
    api_key_variable: str = Field("OPENAI_API_KEY", json_schema_extra=OPERATIONAL)
    """Environment variable that holds the key; empty sends none."""
    api_key_header: str = Field("Authorization", json_schema_extra=OPERATIONAL)
    """Header that carries the key; Authorization sends it as a bearer token, Azure wants
    api-key."""
    max_in_flight: int = Field(16, ge=1, json_schema_extra=OPERATIONAL)
    """Concurrent requests per replica."""
    timeout_seconds: float = Field(120.0, gt=0, json_schema_extra=OPERATIONAL)
    """Time limit for a complete answer."""
    max_retries: int = Field(5, ge=0, json_schema_extra=OPERATIONAL)
    """Retries after 429, 5xx, a timeout or a lost connection."""
    max_retry_seconds: float = Field(300.0, gt=0, json_schema_extra=OPERATIONAL)
    """Time limit per prompt, retries included."""
    budget: float | None = Field(None, gt=0, json_schema_extra=OPERATIONAL)
    """Money (extract.prices.currency) that one run may spend; it stops before exceeding it. Needs
    extract.prices."""
    structured: bool = True
    """Request form json by response_format; false if unsupported."""
    withhold: tuple[str, ...] = ()
    """User attributes never sent to this endpoint, such as gender."""
    extra_body: dict[str, Any] = Field({}, description="Further fields of each request.")

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        if not _is_web_address(address):
            # Not shown, since it may hold a password.
            raise ValueError(
                "not a valid address such as https://host/v1 (http or https, a host, "
                "a port up to 65535, no blanks)"
            )
        return address


def _is_web_address(address: str) -> bool:
    import httpx  # takes a tenth of a second, and only this engine needs it

    if not address.isprintable() or " " in address:
        return False
    try:
        parts = urlsplit(address)
        # The client must accept it as well, especially its host.
        httpx.URL(address)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        return False


class PriceConfig(Section):
    """Prices of tokens and GPUs; 0 if free."""

    currency: str = Field("USD", description="Name of the currency, for display.")
    gpu_hour: float = Field(0.0, ge=0, description="Price per GPU hour.")
    cpu_hour: float = Field(0.0, ge=0, description="Price per core hour of serving nodes.")
    prompt_tokens: float = Field(0.0, ge=0, description="Price per million prompt tokens.")
    cached_tokens: float | None = Field(None, ge=0)
    """Price per million cached prompt tokens; null: the full price."""
    generated_tokens: float = Field(0.0, ge=0, description="Price per million generated tokens.")


class SpeedConfig(Section):
    """Speed of one engine replica, for estimates before any call."""

    tokens_per_second: float = Field(1000.0, gt=0, description="Tokens generated per second.")
    prefill_tokens_per_second: float = Field(10_000.0, gt=0)
    """Prompt tokens read per second, cached ones not counted."""


class SamplingConfig(Section):
    """Sampling of the LLM's answers."""

    max_tokens: int = Field(160, ge=1, description="Maximal tokens per answer.")
    temperature: float = Field(0.0, ge=0, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling.")
    repetition_penalty: float = Field(1.0, gt=0)
    """Above 1 discourages the loops of small models."""
    seed: int = Field(0, description="Seed of sampling.")
    stop: tuple[str, ...] = Field((), description="Texts that end an answer.")
    constrain: bool | Literal["choices"] = False
    """Structured output (vLLM). true: one short line per factor; choices: one or two phrases per
    factor from the scenario's closed lists, which very small models need; strong models keep the
    form by themselves."""


class ExtractConfig(ReplicaPool):
    """Stage extract."""

    mode: Literal["collective", "individual", "blend"] = "collective"
    """One prompt per cluster (REKI-C), one per id (REKI-I), or both, blended by the activity of an
    id."""
    min_interactions: int = Field(5, ge=0)
    """Mode blend: an id with fewer interactions before the history cutoff gets no prompt of its
    own, only the knowledge of its cluster."""
    engine: Annotated[VllmEngine | OpenAiEngine | ScriptedEngine, Field(discriminator="kind")] = (
        VllmEngine()
    )
    sampling: SamplingConfig = SamplingConfig()
    batch_size: int = Field(32, ge=1, json_schema_extra=OPERATIONAL)
    """Prompts per call of the engine."""
    unit_rows: int = Field(64, ge=1, json_schema_extra=OPERATIONAL)
    """Prompts per work unit; answers are saved unit by unit."""
    prompts_in_flight: int = Field(512, ge=1, json_schema_extra=OPERATIONAL)
    """Prompts that a vLLM replica works on at once, in whole work units and at least one; those
    that a lost replica repeats."""
    stall_minutes: float = Field(30.0, gt=0, json_schema_extra=OPERATIONAL)
    """Minutes without a finished work unit, while an engine is up, after which extract fails."""
    start_minutes: float = Field(60.0, gt=0, json_schema_extra=OPERATIONAL)
    """Minutes without any running engine after which extract fails: the start of a node and of the
    model on it."""
    prices: PriceConfig = Field(PriceConfig(), json_schema_extra=OPERATIONAL)
    speed: SpeedConfig = Field(SpeedConfig(), json_schema_extra=OPERATIONAL)
    metrics_port: int | None = Field(None, ge=0, le=65535, json_schema_extra=OPERATIONAL)
    """Port of the Prometheus metrics of a running extract; null: none."""
    max_dead_share: float = Field(0.05, ge=0, le=1, json_schema_extra=OPERATIONAL)
    """Share of prompts without an answer above which extract fails."""

    @model_validator(mode="after")
    def _budget_has_prices(self) -> ExtractConfig:
        capped = isinstance(self.engine, OpenAiEngine) and self.engine.budget is not None
        if capped and self.prices.prompt_tokens == self.prices.generated_tokens == 0:
            raise ValueError("extract.engine.budget needs the prices of extract.prices")
        return self
