"""Sizes, request ids, headers of safety, and defects that show no trace."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from deployments.middleware.auth import PAGE, AccessControl, route_path
from deployments.middleware.request_context import RequestContext
from reki_ray.config.edge import EdgeSettings
from tests.support import edge_app
from tests.support.edge_app import client, error

LIMITS = EdgeSettings(
    allow_anonymous=True, max_body_bytes=2000, max_header_bytes=2000, max_url_bytes=500
)


def test_a_body_up_to_the_limit_passes_whole() -> None:
    made = client(edge_app.app(LIMITS))
    for size in (0, 1, 2000):
        assert made.post("/v1/score", content=b"x" * size).json()["length"] == size


def test_a_body_beyond_the_limit_is_refused() -> None:
    found = error(client(edge_app.app(LIMITS)).post("/v1/score", content=b"x" * 2001), 413)
    assert (found["code"], found["details"]) == ("body_too_large", {"max_bytes": 2000})


def test_a_chunked_body_is_refused_before_it_is_read_to_its_end() -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b"x" * 500

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(edge_app.app(LIMITS))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as asking:
            return await asking.post("/v1/score", content=endless())

    error(asyncio.run(ask()), 413)
    assert read == 5


def test_a_body_that_does_not_come_is_refused() -> None:
    sent: list[Message] = []

    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the application must not see it")

    settings = LIMITS.model_copy(update={"body_seconds": 0.01})
    access = AccessControl(settings, lambda _: None)
    context = RequestContext(app, settings, access, lambda *_: None)
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    asyncio.run(context(scope, never, send))
    assert sent[0]["status"] == 408


def test_long_urls_and_headers_are_refused() -> None:
    made = client(edge_app.app(LIMITS))
    assert error(made.get("/v1/score?" + "x" * 500), 414)["code"] == "url_too_long"
    assert error(made.get("/v1/" + "x" * 500), 414)["code"] == "url_too_long"
    found = error(made.post("/v1/score", headers={"X-Long": "x" * 2000}), 431)
    assert found["code"] == "headers_too_large"


@pytest.mark.parametrize("sent", ["r-1", "a" * 128, "2024:aB_c.d-e"])
def test_a_sane_request_id_is_kept(sent: str) -> None:
    answer = client(edge_app.app(LIMITS)).post("/v1/score", headers={"X-Request-ID": sent})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == sent


@pytest.mark.parametrize("sent", ["", "a" * 129, "a b", 'a"b', "ä", "a\\n"])
def test_any_other_request_id_is_replaced(sent: str) -> None:
    headers = {b"X-Request-ID": sent.encode("latin-1")}
    answer = client(edge_app.app(LIMITS)).post("/v1/score", headers=headers)
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_refusals_carry_a_request_id_too() -> None:
    answer = client(edge_app.app(LIMITS)).post("/v1/score", content=b"x" * 2001)
    assert answer.headers["x-request-id"]


def test_every_answer_carries_the_headers_of_safety() -> None:
    made = client(edge_app.app(LIMITS))
    for answer in (
        made.post("/v1/score"),
        made.get("/v1/nothing"),
        made.get("/v1/users/u1/knowledge"),
        made.get("/v1/admin/versions"),
        made.post("/v1/score", content=b"x" * 2001),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(("path", "media_type"), PAGE.items())
def test_the_page_runs_its_own_scripts_alone(path: str, media_type: str) -> None:
    answer = client(edge_app.app(LIMITS)).get(path)
    assert answer.headers["content-type"] == f"{media_type}; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "://" not in answer.text
    for forbidden in ("innerHTML", "insertAdjacentHTML", "localStorage", "sessionStorage", "eval("):
        assert forbidden not in answer.text


def test_a_defect_is_told_without_its_trace() -> None:
    answer = client(edge_app.app(LIMITS)).get("/v1/users/u17/knowledge")
    assert error(answer, 500)["code"] == "internal"
    assert "u17" not in answer.text
    assert "KeyError" not in answer.text


def test_other_failures_have_the_common_form() -> None:
    made = client(edge_app.app(LIMITS))
    assert error(made.get("/v1/nothing"), 404)["code"] == "not_found"
    assert error(made.get("/v1/score"), 405)["code"] == "method_not_allowed"


def test_websockets_are_closed() -> None:
    made = edge_app.app(LIMITS)
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/admin/versions", "headers": [], "query_string": b""}
    asyncio.run(made(scope, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    ("root", "path", "expected"),
    [
        ("", "/v1/admin/x", "/v1/admin/x"),
        ("/reki", "/reki/v1/admin/x", "/v1/admin/x"),
        ("/reki", "/v1/admin/x", "/v1/admin/x"),
        ("/reki", "/rekix/v1", "/rekix/v1"),
        ("/reki", "/reki", ""),
    ],
)
def test_paths_are_read_as_the_router_reads_them(root: str, path: str, expected: str) -> None:
    from starlette._utils import get_route_path  # private: only to compare

    scope: dict[str, Any] = {"path": path, "root_path": root}
    assert route_path(scope) == get_route_path(scope) == expected
