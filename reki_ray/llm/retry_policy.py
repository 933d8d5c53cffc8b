"""Which errors of an endpoint are fatal, which are retried, and when."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Mapping

from reki_ray.config import OpenAiEngine
from reki_ray.errors import EngineError

_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
# Refused fields of the request, which are the same for every prompt.
_WRONG_FIELDS = frozenset({"unsupported_parameter", "unsupported_value", "unknown_parameter"})

_FILTERED = ("content_filter", "content filter", "content_policy", "moderation", "flagged")


def filtered(code: str, message: str) -> bool:
    """Whether an error means that a content filter refused the prompt."""
    return any(word in f"{code} {message}".lower() for word in _FILTERED)


def fatal(
    config: OpenAiEngine, url: str, status: int, code: str, message: str
) -> EngineError | None:
    """The error that ends a run because every prompt would meet it; None for others.

    Args:
        url: URL of the request, without secrets.
        code: Code in the body, such as `insufficient_quota`; may be empty.
        message: Message in the body, without secrets.
    """
    where = f"{url} (extract.engine.base_url)"
    model = f"{where}, extract.engine.model = {config.model}"
    if status == 401:
        variable = config.api_key_variable or "none: extract.engine.api_key_variable is empty"
        return EngineError(
            f"the endpoint does not accept the API key (HTTP 401): {message}",
            where=f"{where}, key from {variable}",
            todo="Put a valid key into that environment variable.",
        )
    if status == 402 or code in _NO_CREDIT:
        return EngineError(
            f"the account at the endpoint has no credit left (HTTP {status}): {message}",
            where=where,
            todo="Add credit there, then run again: only the missing prompts are sent.",
        )
    if status == 403 and not filtered(code, message):
        return EngineError(
            f"the endpoint forbids the request (HTTP 403): {message}",
            where=model,
            todo="Use a key that may use this model.",
        )
    if status == 404 or code == "model_not_found":
        return EngineError(
            f"the endpoint does not know the model or the address (HTTP {status}): {message}",
            where=model,
            todo="Name a model that it lists under /models, and an address that ends as /v1.",
        )
    if code in _WRONG_FIELDS:
        return EngineError(
            f"the endpoint does not take a field of the request (HTTP {status}): {message}",
            where=where,
            todo="Change extract.sampling, extract.engine.extra_body (max_completion_tokens there "
            "replaces max_tokens) or extract.engine.structured.",
        )
    return None


_FIRST_SECONDS, _LONGEST_SECONDS = 0.5, 20.0
_SPREAD = 0.1
RETRIED = frozenset({408, 409, 425, 429})
"""Retried statuses below 500; all from 500 on are retried too."""


def is_retried(status: int) -> bool:
    """Whether a call with this HTTP status is retried."""
    return status in RETRIED or status >= 500


def wait_seconds(tried: int, headers: Mapping[str, str]) -> float:
    """Seconds to wait before the next call.

    `Retry-After` of the endpoint is honoured, with up to a tenth more, so that calls refused
    together do not return together. Otherwise the wait doubles from half a second to 20 seconds,
    times a random factor from 0.5 to 1.
    """
    requested = retry_after(headers)
    if requested is not None:
        return requested * (1 + _SPREAD * random.random())
    return min(_FIRST_SECONDS * 2.0 ** min(tried - 1, 10), _LONGEST_SECONDS) * random.uniform(
        0.5, 1
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of `retry-after-ms` or `retry-after` (seconds or a date); None if unusable."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        seconds = _seconds(headers.get(name)) if name in headers else None
        if seconds is not None and 0 < seconds < float("inf"):
            return seconds * unit
    return None


def _seconds(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        pass
    try:
        return email.utils.parsedate_to_datetime(text or "").timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
