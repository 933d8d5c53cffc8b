"""Which errors of an endpoint end a run, and which only a prompt."""

from __future__ import annotations

from reki_ray.config import OpenAiEngine
from reki_ray.errors import EngineError

_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
# Refusals of the request's fields, which are the same for every prompt.
_WRONG_FIELDS = frozenset({"unsupported_parameter", "unsupported_value", "unknown_parameter"})
_FILTERED = ("content_filter", "content filter", "content_policy", "moderation", "flagged")


def filtered(code: str, said: str) -> bool:
    """Whether an error means that a filter took offence at one prompt."""
    return any(word in f"{code} {said}".lower() for word in _FILTERED)


def fatal(config: OpenAiEngine, url: str, status: int, code: str, said: str) -> EngineError | None:
    """The error that ends a run, where all prompts would meet it.

    Args:
        config: The endpoint.
        url: What was asked, without secrets.
        status: HTTP status.
        code: Code in the body, as `insufficient_quota`; may be empty.
        said: Message in the body, without secrets.

    Returns:
        None where another prompt, or another try, may do better.
    """
    where = f"{url} (extract.engine.base_url)"
    if status == 401:
        variable = config.api_key_variable or "none: extract.engine.api_key_variable is empty"
        return EngineError(
            f"the endpoint does not accept the API key (HTTP 401): {said}",
            where=f"{where}, key from {variable}",
            todo="Put a valid key into that environment variable.",
        )
    if status == 402 or code in _NO_CREDIT:
        return EngineError(
            f"the account at the endpoint has no credit left (HTTP {status}): {said}",
            where=where,
            todo="Pay there, then run again: only what is missing is asked.",
        )
    if status == 403 and not filtered(code, said):
        return EngineError(
            f"the endpoint forbids the request (HTTP 403): {said}",
            where=f"{where}, extract.engine.model = {config.model}",
            todo="Use a key that may use this model.",
        )
    if status == 404 or code == "model_not_found":
        return EngineError(
            f"the endpoint does not know the model or the address (HTTP {status}): {said}",
            where=f"{where}, extract.engine.model = {config.model}",
            todo="Name a model that it lists under /models, and an address that ends as /v1.",
        )
    if code in _WRONG_FIELDS:
        return EngineError(
            f"the endpoint does not take a field of the request (HTTP {status}): {said}",
            where=where,
            todo="Change extract.sampling, extract.engine.extra_body (max_completion_tokens there "
            "replaces max_tokens) or extract.engine.structured.",
        )
    return None
