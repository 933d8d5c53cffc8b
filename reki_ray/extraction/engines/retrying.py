"""When a failed call is made again, and after how long."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Mapping

_FIRST_SECONDS = 0.5
_LONGEST_SECONDS = 20.0
_SPREAD = 0.1

RETRIED = frozenset({408, 409, 425, 429})
"""Answers below 500 that another try may better; all from 500 on are retried too."""


def is_retried(status: int) -> bool:
    """Whether another try may better an HTTP status."""
    return status in RETRIED or status >= 500


def wait_seconds(tried: int, headers: Mapping[str, str]) -> float:
    """How long to wait before the next try.

    What the endpoint asks for by `Retry-After` is kept, with up to a tenth more, so that all that
    were refused at a time do not come back at a time. Otherwise the wait doubles from half a
    second to 20 seconds, of which a random half is taken off.

    Args:
        tried: Calls made so far, at least 1.
        headers: Of the endpoint's answer; empty where there was none.

    Returns:
        Seconds.
    """
    asked = retry_after(headers)
    if asked is not None:
        return asked * (1 + _SPREAD * random.random())
    return min(_FIRST_SECONDS * 2.0 ** min(tried - 1, 10), _LONGEST_SECONDS) * random.uniform(
        0.5, 1
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """What an answer asks for: `retry-after-ms`, or `retry-after` in seconds or as a date.

    Args:
        headers: Of the answer, names in lower case or a mapping that does not mind.

    Returns:
        Seconds above 0; None where nothing usable is asked for.
    """
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
