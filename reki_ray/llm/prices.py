"""Cost of tokens, and the GPUs of an engine."""

from __future__ import annotations

from reki_ray.config import ExtractConfig, PriceConfig, VllmEngine

_MILLION = 1_000_000


def token_cost(
    prices: PriceConfig, prompt_tokens: float, cached_tokens: float, generated_tokens: float
) -> float:
    """Cost of tokens in `prices.currency`, GPU hours excluded.

    Args:
        prices: Prices per million tokens.
        prompt_tokens: Tokens of prompts, cached ones included.
    """
    cached_price = prices.prompt_tokens if prices.cached_tokens is None else prices.cached_tokens
    cached = min(cached_tokens, prompt_tokens)
    return (
        (prompt_tokens - cached) * prices.prompt_tokens
        + cached * cached_price
        + generated_tokens * prices.generated_tokens
    ) / _MILLION


def gpus_of(extract: ExtractConfig) -> int:
    """GPUs per engine replica; 0 if the engine uses none of this cluster."""
    engine = extract.engine
    if not isinstance(engine, VllmEngine) or engine.device != "gpu":
        return 0
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    gpus = 1
    for size in sizes:
        gpus *= int(engine.engine_kwargs.get(size, 1))
    return gpus
