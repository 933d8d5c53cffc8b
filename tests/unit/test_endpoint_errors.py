"""Which errors of an endpoint are retried, after how long, and which end a run."""

from __future__ import annotations

import email.utils
import json
import time

import pytest
from pydantic import ValidationError

from reki_ray.config import OpenAiEngine
from reki_ray.errors import EngineError
from reki_ray.extraction.engines.address import Address
from reki_ray.extraction.engines.completion import (
    EndpointError,
    MalformedError,
    read_completion,
)
from reki_ray.extraction.engines.refusals import fatal
from reki_ray.extraction.engines.retrying import is_retried, retry_after, wait_seconds
from reki_ray.prompts.quality import problem_of

URL = "https://host/v1/chat/completions"
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
    error = fatal(CONFIG, URL, status, code, said)
    assert isinstance(error, EngineError)
    assert what in error.what
    assert said in error.what
    assert URL in error.where


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
    assert fatal(CONFIG, URL, status, code, said) is None


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
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a chat completion"),
        (b"null", "not a chat completion"),
        (b'{"choices": [{"message": {"content": 1}}]}', "not a chat completion"),
        (b'{"choices": [{"message"', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"<html><b>Gateway is warming up</b></html>", '"Gateway is warming up"'),
        (b"data: {}\n\ndata: [DONE]", "as a stream"),
        (b": ping\n\ndata: {}", "as a stream"),
    ],
)
def test_a_body_that_is_no_completion_is_told(content: bytes, said: str) -> None:
    with pytest.raises(MalformedError, match=said) as caught:
        read_completion(content)
    assert caught.value.retry == (said != "as a stream")
    assert str(caught.value).isprintable()


def body(message: object = None, **fields: object) -> bytes:
    tree = {"choices": [{"message": message, "finish_reason": "stop"}], **fields}
    return json.dumps(tree).encode()


@pytest.mark.parametrize(
    "content",
    [
        body({"content": "genre: noir"}),
        b"\xef\xbb\xbf" + body({"content": "genre: noir"}),
        body({"content": "genre: noir"}) + b"\n\ndata: [DONE]",
        body({"content": "genre: noir", "reasoning_content": "SECRET"}),
        body({"content": [{"type": "text", "text": "genre: "}, {"type": "text", "text": "noir"}]}),
        body(
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "SECRET"}]},
                    {"type": "text", "text": "genre: noir"},
                ]
            }
        ),
        body({"content": ["genre: ", "noir"]}),
        json.dumps({"choices": [{"text": "genre: noir", "finish_reason": "stop"}]}).encode(),
    ],
)
def test_the_text_of_a_completion_is_read_whatever_its_parts(content: bytes) -> None:
    assert read_completion(content).reply.text == "genre: noir"


@pytest.mark.parametrize(
    ("content", "problem", "said"),
    [
        (body({"content": None, "refusal": "no way"}), "refusal", "no way"),
        (body({"content": "", "reasoning_content": "hm"}), "reasoning", "only its reasoning"),
        (body({"content": [{"type": "thinking", "thinking": "hm"}]}), "reasoning", "reasoning"),
        (body({"content": None, "tool_calls": [{}]}), "missing", "tool"),
        (body({"content": None}), "other", ""),
        (
            b'{"choices": [{"message": {"content": null, "reasoning": "hm"}, '
            b'"finish_reason": "length"}]}',
            "reasoning",
            "extract.sampling.max_tokens",
        ),
        (
            b'{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}',
            "blank",
            "extract.sampling.max_tokens",
        ),
        (b'{"choices": [{"finish_reason": "stop"}]}', "other", ""),
    ],
)
def test_silence_has_a_reason(content: bytes, problem: str, said: str) -> None:
    reply = read_completion(content).reply
    assert reply.text == ""
    assert problem_of(reply.silence) == problem
    assert said in reply.silence


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "slow down", "code": 429}, 429),
        ({"message": "slow down", "code": "429"}, 429),
        ({"message": "slow down", "type": "rate_limit_error"}, 429),
        ({"message": "add credits", "code": 402}, 402),
        ({"message": "x", "code": "insufficient_quota"}, 402),
        ({"message": "Incorrect API key provided"}, 401),
        ({"message": "x", "type": "overloaded_error"}, 529),
        ({"message": "x", "type": "invalid_request_error"}, 400),
        ({"message": "too many to generate", "code": None}, 500),
        ("upstream failed", 500),
        ({"code": 12345}, 500),
    ],
)
@pytest.mark.parametrize("where", ["beside null choices", "alone", "in a choice"])
def test_an_error_under_status_200_stands_for_a_status(
    error: object, status: int, where: str
) -> None:
    tree: dict[str, object] = {"error": error}
    if where == "beside null choices":
        tree["choices"] = None
    elif where == "in a choice":
        tree = {"choices": [{"message": {"content": ""}, "finish_reason": "error", **tree}]}
    with pytest.raises(EndpointError) as caught:
        read_completion(json.dumps(tree).encode())
    assert caught.value.status == status
    assert caught.value.message


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 50.0, "completion_tokens": 10.0}, (50, 10)),
        ({"prompt_tokens": None, "completion_tokens": None}, (0, 0)),
        ({"prompt_tokens": "many", "completion_tokens": -3}, (0, 0)),
        ({"prompt_tokens": 1e999, "completion_tokens": 9**20}, (0, 2**31 - 1)),
        (None, (0, 0)),
    ],
)
def test_token_counts_are_numbers(usage: object, tokens: tuple[int, int]) -> None:
    reply = read_completion(body({"content": "x"}, usage=usage)).reply
    assert (reply.prompt_tokens, reply.generated_tokens) == tokens


@pytest.mark.parametrize(
    "address", ["host/v1", "localhost:8000/v1", "ftp://host/v1", "http://", "", "//host/v1"]
)
def test_an_address_without_a_scheme_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="is not an address such as https://host/v1"):
        OpenAiEngine(base_url=address, model="small")


def test_the_shown_address_is_the_one_that_is_asked_without_secrets() -> None:
    address = Address.of("https://me:secret@host:8443/v1/?api-version=7&key=secret")
    assert address.query == {"api-version": "7", "key": "secret"}
    assert address.base == "https://me:secret@host:8443/v1"
    assert address.shown == "https://host:8443/v1/chat/completions?api-version=7&key=***"
    assert Address.of("http://host/v1/chat/completions").base == "http://host/v1"
