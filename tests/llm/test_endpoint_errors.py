"""Which errors of an endpoint are retried, after how long, and which end a run."""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from pathlib import Path

import certifi
import pytest
from pydantic import ValidationError

from reki_ray.config import ExtractConfig, OpenAiEngine, PriceConfig, PromptsConfig, SamplingConfig
from reki_ray.errors import ConfigError, EngineError
from reki_ray.extraction.engines.openai import OpenAiBatchEngine
from reki_ray.llm.completion import (
    EndpointError,
    MalformedError,
    NoAnswerError,
    RequestBuilder,
    read_completion,
)
from reki_ray.llm.openai_client import Address, Endpoint, RefusedError, require_certificates
from reki_ray.llm.reservation import Reservation
from reki_ray.llm.retry_policy import fatal, is_retried, retry_after, wait_seconds
from reki_ray.prompts.quality import problem_of
from reki_ray.prompts.renderer import Renderer
from reki_ray.prompts.scenario import load_scenario
from tests.support.openai_server import Server, raw

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


def test_retry_after_is_honoured_with_jitter() -> None:
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
        (b"data: {}\n\ndata: [DONE]", "sends a stream"),
        (b": ping\n\ndata: {}", "sends a stream"),
        (b"retry: 1000\n\ndata: {}", "sends a stream"),
        (b'{"choices": [{"delta": {"content": "x"}}]}', "sends a stream"),
        (b'{"object": "chat.completion.chunk", "choices": []}', "sends a stream"),
        (b'{"message": {"content": "x"}, "done": false}\n{"done": true}', "sends a stream"),
        (b"{}", '"{}"'),
        (b'{"id": "x", "choices": null}', "not a chat completion"),
        (b'{"status": "loading"}', "loading"),
    ],
)
def test_a_body_that_is_not_a_completion_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(MalformedError, match=said) as caught:
        read_completion(content)
    assert caught.value.retry == (said != "sends a stream")
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
        body({"content": [{"text": "genre: "}, {"text": "noir", "type": None}]}),
        body({"content": {"type": "text", "text": "genre: noir"}}),
        body({"content": [{"text": "SECRET", "thought": True}, {"text": "genre: noir"}]}),
        body({"content": [{"type": "reasoning", "text": "SECRET"}, {"text": "genre: noir"}]}),
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
        (body({"content": [{"type": "refusal", "refusal": "no way"}]}), "refusal", "no way"),
        (body({"content": "", "thinking": "hm"}), "reasoning", "only its reasoning"),
        (body({"content": "", "reasoning_details": [{}]}), "reasoning", "only its reasoning"),
        (body({"content": "", "thinking_blocks": None}), "other", ""),
        (
            b'{"choices": [{"message": {"content": null}, "finish_reason": "MAX_TOKENS"}]}',
            "blank",
            "extract.sampling.max_tokens",
        ),
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
        ({"message": "Insufficient Balance"}, 402),
        ({"message": "Payment required"}, 402),
        ({"message": "Unauthorized"}, 401),
        ({"message": "invalid token"}, 401),
        ({"message": "x", "code": "InvalidApiKey"}, 401),
        ({"message": "Forbidden"}, 403),
        ({"message": "no such model: small"}, 404),
        ({"message": "The model `small` does not exist"}, 404),
        ({"message": "This model's maximum context length is 4096 tokens"}, 400),
        ({"message": "x", "status": "RESOURCE_EXHAUSTED"}, 429),
        ({"message": "x", "code": "RateLimitReached"}, 429),
        ({"error": {"message": "Unauthorized", "code": None}}, 401),
        ({"error": {"error": {"message": "x", "code": 404}}}, 404),
        ([{"message": "slow down", "code": 429}], 429),
        ({"code": 12345}, 500),
    ],
)
@pytest.mark.parametrize("where", ["beside null choices", "alone", "in a choice"])
def test_an_error_with_status_200_maps_to_a_status(error: object, status: int, where: str) -> None:
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
    ("tree", "status", "said"),
    [
        ({"object": "error", "message": "bad seed", "type": "BadRequestError", "code": 400}, 400,
         "bad seed"),
        ({"detail": "Invalid API key"}, 401, "Invalid API key"),
        ({"detail": [{"loc": ["body"], "msg": "field required"}]}, 500, "field required"),
        ({"code": "Arrearage", "message": "Access denied, account overdue"}, 402, "overdue"),
        ({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, 402, "bal"),
        ({"choices": None, "base_resp": {"status_code": 1004, "status_msg": "login fail"}}, 500,
         "login fail"),
        ({"errors": [{"message": "Unauthorized"}]}, 401, "Unauthorized"),
        ({"errors": ["rate limit"]}, 429, "rate limit"),
        ({"success": False, "msg": "token expired"}, 401, "token expired"),
        ([{"error": {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED"}}], 429,
         "quota"),
    ],
)  # fmt: skip
def test_an_error_in_the_place_of_choices_is_reported(tree: object, status: int, said: str) -> None:
    with pytest.raises(EndpointError) as caught:
        read_completion(json.dumps(tree).encode())
    assert caught.value.status == status
    assert said in caught.value.message


def test_an_empty_list_of_choices_is_not_an_error_of_the_body() -> None:
    with pytest.raises(NoAnswerError):
        read_completion(b'{"choices": [], "usage": {"prompt_tokens": 1}}')


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
    "address", ["host/v1", "localhost:8000/v1", "ftp://host/v1", "http://", "", "//host/v1",
                "http://h:abc/v1", "http://h\u200b/v1", "http://ho st/v1", "http://host/v1 ",
                "http://h:99999/v1", "http://h:0/v1", "http://[::1/v1", "http://h\n/v1",
                "http://me:SECRET@h:abc/v1?key=SECRET"]
)  # fmt: skip
def test_an_address_without_a_scheme_is_refused(address: str) -> None:
    with pytest.raises(
        ValidationError, match="not a valid address such as https://host/v1"
    ) as caught:
        OpenAiEngine(base_url=address, model="small")
    assert "SECRET" not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    "address",
    ["https://host/v1", "http://127.0.0.1:8000/v1", "http://[::1]:8000/v1", "http://a_b:1/v1",
     "https://me:p%40ss@host/v1?api-version=7", "https://b\u00fccher.example/v1"],
)  # fmt: skip
def test_an_address_that_the_client_takes_is_taken(address: str) -> None:
    assert OpenAiEngine(base_url=address, model="small").base_url == address


def test_the_hint_to_set_a_key_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    secret = "https://me:SECRET@host/v1?sig=SECRET&api-version=7"
    config = CONFIG.model_copy(update={"base_url": secret})
    template = Renderer(load_scenario("movies"), PromptsConfig()).template
    engine = OpenAiBatchEngine(config, ExtractConfig(engine=config), template)
    with pytest.raises(ConfigError) as caught:
        engine._key()
    assert "SECRET" not in str(caught.value)
    assert "host/v1" in caught.value.todo


def test_certificates_that_cannot_be_loaded_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    require_certificates()
    (tmp_path / "empty.pem").touch()
    (tmp_path / "garbage.pem").write_bytes(b"\x00garbage")
    wrong = {
        "SSL_CERT_FILE": ("empty.pem", "garbage.pem", "gone.pem", "."),
        "SSL_CERT_DIR": ("gone", "empty.pem", "gone:also_gone"),
    }
    monkeypatch.chdir(tmp_path)
    for variable, paths in wrong.items():
        for path in paths:
            with monkeypatch.context() as patch:
                patch.setenv(variable, path)
                with pytest.raises(ConfigError, match=variable):
                    require_certificates()
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path}:{tmp_path}/gone")
    require_certificates()


def test_the_shown_address_hides_secrets() -> None:
    address = Address.of("https://me:secret@host:8443/v1/?api-version=7&key=secret")
    assert address.query == {"api-version": "7", "key": "secret"}
    assert address.base == "https://me:secret@host:8443/v1"
    assert address.shown == "https://host:8443/v1/chat/completions?api-version=7&key=***"
    assert Address.of("http://host/v1/chat/completions").base == "http://host/v1"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"status": "loading"}', "loading"),
        (b'{"id": "x", "choices": []}', "without any choice"),
        (b'{"success": false, "msg": "the back end is gone"}', "the back end is gone"),
    ],
)
def test_prompt_after_prompt_without_an_answer_ends_a_run(content: bytes, said: str) -> None:
    async def ask(url: str) -> None:
        config = OpenAiEngine(base_url=url, model="small", api_key_variable="", max_retries=0)
        template = Renderer(load_scenario("movies"), PromptsConfig()).template
        wording = RequestBuilder(config, SamplingConfig(), template)
        endpoint = Endpoint(config, wording, PriceConfig(), None)
        deadline = asyncio.get_running_loop().time() + 60
        for number in range(10):
            endpoint.require_hope()
            messages = template.messages("item", f"<data>\ntitle: {number}\n</data>")
            with pytest.raises(RefusedError, match=said):
                await endpoint.ask(messages, deadline, Reservation(), reserved=True)
        with pytest.raises(EngineError, match="10 prompts in a row") as caught:
            endpoint.require_hope()
        assert said in caught.value.what
        await endpoint.close()

    with Server(lambda _: "") as server:
        server.script("title", raw(content))
        asyncio.run(ask(server.url))
