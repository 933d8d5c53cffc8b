"""Which errors of an endpoint are retried, after how long, and which end a run."""

from __future__ import annotations

import email.utils
import json
import time

import pytest

from reki_ray.config import OpenAiEngine
from reki_ray.errors import EngineError
from reki_ray.extraction.engines.completion import MalformedError, read_completion
from reki_ray.extraction.engines.refusals import fatal
from reki_ray.extraction.engines.retrying import is_retried, retry_after, wait_seconds

CONFIG = OpenAiEngine(base_url="https://host/v1", model="small", api_key_variable="SOME_KEY")


@pytest.mark.parametrize(
    ("status", "code", "said", "what"),
    [
        (401, "", "who are you", "does not accept the API key"),
        (402, "", "pay", "no credit"),
        (429, "insufficient_quota", "pay", "no credit"),
        (403, "", "not for you", "forbids"),
        (404, "", "no such page", "does not know"),
        (400, "model_not_found", "no such model", "does not know"),
        (400, "unsupported_parameter", "no seed", "field of the request"),
    ],
)
def test_what_all_prompts_would_meet_ends_a_run(
    status: int, code: str, said: str, what: str
) -> None:
    error = fatal(CONFIG, status, code, said)
    assert isinstance(error, EngineError)
    assert what in error.what
    assert said in error.what
    assert "https://host/v1" in error.where


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (400, "context_length_exceeded", "too long"),
        (403, "", "your input was flagged by moderation"),
        (413, "", "too large"),
        (422, "", "cannot be read"),
        (429, "rate_limit_exceeded", "slow down"),
        (500, "", "oops"),
    ],
)
def test_what_one_prompt_meets_ends_no_run(status: int, code: str, said: str) -> None:
    assert fatal(CONFIG, status, code, said) is None


def test_only_what_may_get_better_is_retried() -> None:
    assert all(is_retried(status) for status in (408, 409, 425, 429, 500, 502, 503, 504, 529))
    assert not any(is_retried(status) for status in (400, 403, 404, 413, 422))


def test_a_wait_that_is_asked_for_is_kept_and_spread() -> None:
    waits = {wait_seconds(1, {"retry-after": "30"}) for _ in range(50)}
    assert len(waits) > 1
    assert all(30 <= seconds <= 33 for seconds in waits)
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    later = email.utils.formatdate(time.time() + 3600, usegmt=True)
    assert 3500 < (retry_after({"retry-after": later}) or 0) <= 3600


@pytest.mark.parametrize("value", ["", "soon", "-3", "0", "nan", "inf", "1e999", "Mon, 99 Foo"])
def test_a_wait_that_makes_no_sense_is_ignored(value: str) -> None:
    assert retry_after({"retry-after": value}) is None
    assert 0.25 <= wait_seconds(1, {"retry-after": value}) <= 0.5


def test_waits_grow_up_to_a_limit() -> None:
    assert 1 <= wait_seconds(3, {}) <= 2
    assert all(10 <= wait_seconds(tried, {}) <= 20 for tried in (8, 100, 10**6))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"choices": [{"message": {"content": [1]}}]}',
        b'{"choices": [{"message"',
        b"[" * 100_000,
        json.dumps({"error": {"message": "overloaded"}}).encode(),
    ],
)
def test_a_body_that_is_no_completion_is_told(content: bytes) -> None:
    with pytest.raises(MalformedError):
        read_completion(content)
