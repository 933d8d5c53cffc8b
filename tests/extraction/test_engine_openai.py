"""The engine for OpenAI-compatible endpoints, through Ray Data, at a server that misbehaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from reki_ray.config import ExtractConfig, OpenAiEngine, PriceConfig, SamplingConfig
from reki_ray.errors import ConfigError, EngineError
from reki_ray.extraction.engines.openai import OpenAiBatchEngine
from reki_ray.llm.completion import RequestBuilder
from reki_ray.prompts.output_format import Form
from reki_ray.prompts.template import Reply
from reki_ray.schema import (
    BODY,
    CACHED_TOKENS,
    CALLS,
    FINISH_REASON,
    GENERATED_TOKENS,
    PROMPT_TOKENS,
    REASON,
    TEXTS,
    WHOLE_ANSWER,
)
from tests.contracts import engine_contract as contract
from tests.contracts.engine_contract import FACTORS, Row
from tests.support.openai_server import (
    KEY,
    MODEL,
    Server,
    Step,
    choice,
    completion,
    cut,
    drip,
    hang,
    raw,
    reset,
    slow,
    status,
)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

VARIABLE = "TESTS_KEY"
TEXT = "genre: warm and slow\nmood: calm"
CUT = "genre: warm and slow\nmood: calm, and th"
RETRIES = 3
ALWAYS = 99

Build = Callable[..., OpenAiBatchEngine]

RECOVERING: dict[str, tuple[Step, ...]] = {
    "too many requests": (status(429, "slow down", retry_after="1"),),
    "a limit in milliseconds": (status(429, "slow down", retry_after_ms="20"),),
    "three kinds of 5xx": (status(503), status(500), status(502)),
    "a time-out of the endpoint": (status(408),),
    "silence": (hang(3),),
    "a body that drips": (drip(4),),
    "a connection that is reset": (reset,),
    "a body that is cut": (cut,),
    "half a JSON document": (raw(b'{"choices": [{"mess'),),
    "a page of a proxy": (raw(b"<html>try later</html>"),),
    "an error under status 200": (raw(b'{"error": {"message": "overloaded"}}'),),
    "a limit under status 200": (
        raw(b'{"choices": null, "error": {"message": "slow down", "code": 429}}'),
    ),
    "an error in a choice": (
        raw(b'{"choices": [{"finish_reason": "error", "error": {"code": 502}, "message": {}}]}'),
    ),
    "a refusal": (choice(None, refusal="I will not"),),
    "an answer that loops": (choice("genre: so so so so so so so"),),
    "reasoning alone": (choice("<think>hm, let", "length"),),
}
FAILING: dict[str, tuple[int, str, tuple[Step, ...]]] = {
    "hangs for ever": (RETRIES + 1, "no whole answer within 1.0 s", (hang(3),) * ALWAYS),
    "is always refused": (RETRIES + 1, "HTTP 503: busy", (status(503, "busy"),) * ALWAYS),
    "must wait for hours": (
        1,
        "given up after 1 call",
        (status(429, retry_after="9999"),) * ALWAYS,
    ),
    "is a bad request": (1, "refused the prompt (HTTP 400): bad", (status(400, "bad"),)),
    "is too large": (1, "(HTTP 413)", (status(413),)),
    "offends the filter": (1, "content filter", (status(400, "no", code="content_filter"),)),
    "offends a moderator": (1, "content filter", (status(403, "your input was flagged"),)),
    "offends in the answer": (1, "content filter", (choice("genre: x", "content_filter"),)),
    "is refused by the model": (
        2,
        "declines: I will not",
        (choice(None, refusal="I will not"),) * 2,
    ),
    "gets no choice": (1, "without any choice", (completion("", choices=[]),)),
    "gets no words": (2, "empty", (choice(None),) * 2),
    "gets nothing but reasoning": (2, "max_tokens", (choice("<think>hm, let", "length"),) * 2),
    "calls a tool": (2, "a tool", (choice(None, "tool_calls", tool_calls=[{"id": "1"}]),) * 2),
    "loops": (2, "repeats itself", (choice("genre: so so so so so so so"),) * 2),
    "is answered as a stream": (1, "sends a stream", (raw(b'data: {"choices": []}\n\n'),)),
    "is called bad under status 200": (
        1,
        "refused the prompt (HTTP 400): no",
        (raw(b'{"choices": null, "error": {"message": "no", "code": 400}}'),),
    ),
}


def body(about: str) -> str:
    return f"title: a film that meets this: {about}"


@pytest.fixture(scope="module")
def storm(ray_local: None) -> Iterator[tuple[Server, dict[str, Row]]]:
    """One pipeline in which every prompt meets something else, good ones between them."""
    del ray_local
    odd = {
        "a cut answer": (choice(CUT, "length"),),
        "no usage": (completion(TEXT, usage=None),),
        "odd usage": (
            completion(TEXT, usage={"prompt_tokens": "many", "completion_tokens": 9**20}),
        ),
        "lone surrogates": (
            raw(rb'{"choices": [{"message": {"content": "genre: a\ud800b film"}}]}'),
        ),
    }
    scripts = {**RECOVERING, **{about: steps for about, (_, _, steps) in FAILING.items()}, **odd}
    with pytest.MonkeyPatch.context() as patch, Server(lambda _: TEXT) as server:
        patch.setenv(VARIABLE, KEY)
        for about, steps in scripts.items():
            server.script(body(about), *steps)
        bodies = [each for about in scripts for each in (body(about), f"title: calm, not {about}")]
        config = engine_config(server, timeout_seconds=1.0)
        rows = contract.ask(engine(config), bodies, unit_rows=8)
        yield server, {row[BODY]: row for row in rows}


def engine_config(server: Server, **fields: Any) -> OpenAiEngine:
    defaults = {
        "base_url": server.url,
        "model": MODEL,
        "api_key_variable": VARIABLE,
        "max_retries": RETRIES,
        "max_retry_seconds": 30.0,
    }
    return OpenAiEngine(**{**defaults, **fields})


def engine(
    config: OpenAiEngine,
    form: Form = "text",
    sampling: SamplingConfig | None = None,
    prices: PriceConfig | None = None,
) -> OpenAiBatchEngine:
    extract = ExtractConfig(
        engine=config,
        sampling=sampling or SamplingConfig(),
        prices=prices or PriceConfig(),
        unit_rows=4,
    )
    return OpenAiBatchEngine(config, extract, contract.template(form))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(VARIABLE, KEY)
    with Server(lambda _: TEXT) as started:
        yield started


def fails(asked: OpenAiBatchEngine, bodies: list[str]) -> EngineError:
    with pytest.raises(ray.exceptions.RayError) as caught:
        contract.ask(asked, bodies, unit_rows=4)
    assert isinstance(caught.value, ray.exceptions.RayTaskError)
    assert isinstance(caught.value.cause, EngineError), caught.value.cause
    assert KEY not in str(caught.value)
    return caught.value.cause


# --- one prompt fails or recovers --------------------------------------------------------------


@pytest.mark.parametrize("about", RECOVERING)
def test_a_prompt_recovers_from(about: str, storm: tuple[Server, dict[str, Row]]) -> None:
    server, rows = storm
    row = rows[body(about)]
    assert row[TEXTS] == [(WHOLE_ANSWER, TEXT)], row[REASON]
    assert row[FINISH_REASON] == "stop"
    # Calls that brought a completion are paid for, also where it was no answer.
    paid = row[CALLS]
    counts = (100 * paid, 64 * paid, 20 * paid)
    assert (row[PROMPT_TOKENS], row[CACHED_TOKENS], row[GENERATED_TOKENS]) == counts
    assert server.calls[body(about)] == len(RECOVERING[about]) + 1


@pytest.mark.parametrize("about", FAILING)
def test_a_prompt_fails_alone_that(about: str, storm: tuple[Server, dict[str, Row]]) -> None:
    server, rows = storm
    calls, reason, _ = FAILING[about]
    row = rows[body(about)]
    assert row[TEXTS] is None
    assert reason in row[REASON]
    assert server.calls[body(about)] == calls


def test_neighbours_of_failing_prompts_are_sent_once(storm: tuple[Server, dict[str, Row]]) -> None:
    server, rows = storm
    neighbours = [text for text in rows if text.startswith("title: calm")]
    assert len(neighbours) == len(rows) / 2
    for text in neighbours:
        assert rows[text][TEXTS], rows[text][REASON]
        assert server.calls[text] == 1


def test_a_truncated_answer_is_distinguished_from_a_whole_one(
    storm: tuple[Server, dict[str, Row]],
) -> None:
    row = storm[1][body("a cut answer")]
    assert row[FINISH_REASON] == "length"
    parsed = contract.template().parse_reply("item", row[BODY], Reply(CUT, "length"))
    assert row[TEXTS] == (list(parsed.texts.items()) if parsed.texts else None)
    assert row[REASON] == parsed.reason


def test_missing_and_odd_token_counts_become_numbers(storm: tuple[Server, dict[str, Row]]) -> None:
    counts = (PROMPT_TOKENS, CACHED_TOKENS, GENERATED_TOKENS, CALLS)
    assert [storm[1][body("no usage")][name] for name in counts] == [0, 0, 0, 1]
    assert [storm[1][body("odd usage")][name] for name in counts] == [0, 0, 2**31 - 1, 1]


def test_lone_surrogates_of_an_answer_are_replaced(storm: tuple[Server, dict[str, Row]]) -> None:
    row = storm[1][body("lone surrogates")]
    assert row[TEXTS] == [(WHOLE_ANSWER, "genre: a?b film")]
    assert row[FINISH_REASON] is None


# --- what is sent ------------------------------------------------------------------------------


def test_a_request_holds_the_sampling_and_the_key(server: Server) -> None:
    sampling = SamplingConfig(
        max_tokens=7, temperature=0.5, top_p=0.9, seed=3, stop=("###",), repetition_penalty=1.2
    )
    config = engine_config(server, extra_body={"top_k": 5})
    contract.ask(engine(config, "json", sampling), [body("nothing")])
    request = server.requests[0]
    assert server.keys == {f"Bearer {KEY}"}
    schema = request.pop("response_format")["json_schema"]
    assert schema["strict"]
    assert schema["schema"]["required"] == list(FACTORS)
    messages = request.pop("messages")
    assert [message["role"] for message in messages] == ["system", "user"]
    assert request == {
        "model": MODEL,
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["###"],
        "repetition_penalty": 1.2,
        "top_k": 5,
    }


def test_no_key_and_no_schema_where_none_is_wanted(server: Server) -> None:
    config = engine_config(
        server, api_key_variable="", structured=False, extra_body={"max_completion_tokens": 9}
    )
    contract.ask(engine(config, "json"), [body("nothing")])
    assert server.keys == {None}
    assert not {"response_format", "max_tokens", "stop", "repetition_penalty"} & set(
        server.requests[0]
    )


def test_a_broken_answer_is_repaired_once_and_then_given_up(server: Server) -> None:
    whole = json.dumps(dict.fromkeys(FACTORS, "warm and slow"))
    server.script("broken once", completion('{"genre": "warm'), completion(whole))
    server.script("broken twice", completion("words"), completion("words"), completion(whole))
    server.script("fails in the repair", completion("words"), status(400, "enough"))
    bodies = ["broken once", "broken twice", "fails in the repair"]
    repaired, dead, failed = contract.ask(engine(engine_config(server), "json"), bodies)
    assert [key for key, _ in repaired[TEXTS]] == list(FACTORS)
    assert (repaired[CALLS], repaired[PROMPT_TOKENS], repaired[GENERATED_TOKENS]) == (2, 200, 40)
    assert dead[TEXTS] is None
    assert (dead[CALLS], server.calls["broken twice"]) == (2, 2)
    assert "also when asked again" in dead[REASON]
    assert "enough" in failed[REASON]
    assert (failed[CALLS], failed[PROMPT_TOKENS]) == (1, 100)


def test_no_more_requests_are_in_flight_than_allowed(server: Server) -> None:
    server.script("title", *[slow(0.1)] * ALWAYS)
    bodies = [f"title: {number}" for number in range(24)]
    rows = contract.ask(engine(engine_config(server, max_in_flight=5)), bodies, unit_rows=4)
    assert all(row[TEXTS] for row in rows)
    assert 1 < server.most_flying <= 5


# --- errors of all prompts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "what", "todo"),
    [
        (status(401, f"wrong key {KEY}"), "does not accept the API key", VARIABLE),
        (status(429, "pay", code="insufficient_quota"), "no credit", "only the missing prompts"),
        (
            raw(b'{"choices": null, "error": {"message": "daily quota used up", "code": 402}}'),
            "daily quota used up",
            "only the missing prompts",
        ),
    ],
    ids=["401", "quota", "quota under status 200"],
)
def test_an_error_of_all_prompts_ends_the_pipeline(
    server: Server, step: Step, what: str, todo: str
) -> None:
    server.script("title", step, step, step)
    error = fails(engine(engine_config(server)), [f"title: {n}" for n in range(8)])
    assert what in error.what
    assert server.url in error.where
    assert todo in error.where + error.todo
    assert max(server.calls.values()) == 1


def test_an_endpoint_that_stays_down_ends_the_pipeline(server: Server) -> None:
    server.script("title", *[status(503, "down for repair")] * ALWAYS)
    bodies = [f"title: {number}" for number in range(80)]
    error = fails(engine(engine_config(server, max_retries=0)), bodies)
    assert "in a row without an answer" in error.what
    assert "down for repair" in error.what
    assert sum(server.calls.values()) < len(bodies)


def test_the_key_is_in_no_log_and_no_representation(server: Server) -> None:
    server.script("echo", status(400, f"your key is {KEY}"))
    asked = engine(engine_config(server))
    dataset = asked.answer(ray.data.from_arrow(contract.units(["echo", "fine"], 4)))
    rows = dataset.take_all()
    assert "your key is ***" in next(row[REASON] for row in rows if row[REASON])
    assert KEY not in repr(dataset) + dataset.stats() + repr(rows) + repr(vars(asked))
    node = ray._private.worker._global_node
    assert node is not None
    logs = Path(node.get_session_dir_path())
    files = [path for path in logs.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_missing_key_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ConfigError, match=VARIABLE):
        engine(engine_config(server)).answer(ray.data.from_arrow(contract.units(["a"], 1)))
    with pytest.raises(ConfigError, match="stream"):
        engine(engine_config(server, extra_body={"stream": True}))


def test_a_gone_certificate_file_is_named(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cacert.pem"))
    with pytest.raises(ConfigError, match=r"SSL_CERT_FILE names .*cacert\.pem"):
        engine(engine_config(server)).answer(ray.data.from_arrow(contract.units(["a"], 1)))


def test_a_query_and_a_header_of_the_key_go_along(server: Server) -> None:
    config = engine_config(
        server,
        base_url=f"{server.url}/deployments/small?api-version=2026-01-01&sig={KEY}",
        api_key_header="api-key",
    )
    (row,) = contract.ask(engine(config), [body("nothing")])
    assert row[TEXTS]
    assert server.keys == {None}
    assert server.headers[-1]["api-key"] == KEY
    assert server.paths[-1] == (
        f"/v1/deployments/small/chat/completions?api-version=2026-01-01&sig={KEY}"
    )
    server.script("other", status(404, "no such page"))
    error = fails(engine(config), ["other"])
    shown = f"{server.url}/deployments/small/chat/completions?api-version=2026-01-01&sig=***"
    assert shown in error.where


# --- budget ------------------------------------------------------------------------------------

EACH = PriceConfig(prompt_tokens=1e6, generated_tokens=1e6)
"""One unit of money a token."""


def most(config: OpenAiEngine, about: str) -> float:
    template = contract.template()
    wording = RequestBuilder(config, SamplingConfig(), template)
    return wording.most_prompt_tokens(template.messages("item", about)) + wording.longest_answer


def test_a_budget_is_never_exceeded(server: Server) -> None:
    config = engine_config(server, budget=3000.0, max_in_flight=16)
    bodies = [f"title: {number:03}" for number in range(64)]
    unit = 4 * most(config, bodies[0])
    error = fails(engine(config, prices=EACH), bodies)
    assert "budget of 3000 USD does not last" in error.what
    assert "only the missing prompts" in error.todo
    assert 3000 - unit < sum(server.billed.values()) <= 3000
    assert max(server.calls.values()) == 1


def test_pipelines_of_one_engine_share_its_budget(server: Server) -> None:
    bodies = [f"title: {number:03}" for number in range(4)]
    config = engine_config(server, budget=4 * most(engine_config(server), bodies[0]))
    asked = engine(config, prices=EACH)
    assert all(row[TEXTS] for row in contract.ask(asked, bodies, unit_rows=4))
    assert "480 USD are spent" in fails(asked, [f"title: {number:03}" for number in range(4)]).what


def test_calls_that_may_be_billed_count_in_full(server: Server) -> None:
    config = engine_config(server, budget=1e6)
    server.script("a", status(429, retry_after_ms="10"))
    server.script("b", status(503))
    server.script("c", completion(TEXT, usage=None))
    server.script("d", status(400))
    asked = engine(config, prices=EACH)
    rows = contract.ask(asked, ["a", "b", "c", "d", "x" * 999_999], unit_rows=8)
    assert "more than the whole budget" in rows[-1][REASON]
    assert asked._guard is not None
    spent: float = ray.get(asked._guard.spent.remote())
    assert spent == 120 + (most(config, "b") + 120) + most(config, "c")
