"""Bodies and answers in one pass, and what the description of the interface says of them."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient
from pydantic import BaseModel

from deployments import errors
from deployments.http.json_route import JsonRoute, json_response
from deployments.schemas import ScoreRequest


class Answer(BaseModel):
    """What is answered."""

    count: int


async def endpoint(request: Request, body: ScoreRequest) -> Response:
    """Count candidates."""
    return json_response({"count": len(body.candidates)})


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    errors.install(app)
    app.router.add_api_route(
        "/count", endpoint, methods=["POST"], response_model=Answer, route_class_override=JsonRoute
    )
    return TestClient(app)


def test_a_valid_body_is_answered(client: TestClient) -> None:
    answer = client.post("/count", json={"user_id": "ü", "candidates": ["a", "b"]})
    assert (answer.status_code, answer.json()) == (200, {"count": 2})
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/vnd.x+json"])
def test_other_json_types_are_taken(client: TestClient, kind: str) -> None:
    content = b'{"user_id": "u", "candidates": ["a"]}'
    assert client.post("/count", content=content, headers={"Content-Type": kind}).is_success


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"{", 400, "malformed_json"),
        (b"", 422, "invalid_request"),
        (b"[]", 422, "invalid_request"),
        (b'{"user_id": "u", "candidates": [1]}', 422, "invalid_request"),
    ],
)
def test_other_bodies_are_refused(
    client: TestClient, content: bytes, status: int, code: str
) -> None:
    answer = client.post("/count", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "json"])
def test_a_body_of_another_type_is_refused_as_such(client: TestClient, kind: str) -> None:
    content = b'{"user_id": "u", "candidates": ["a"]}'
    answer = client.post("/count", content=content, headers={"Content-Type": kind})
    assert (answer.status_code, answer.headers["accept"]) == (415, "application/json")
    assert answer.json()["error"]["code"] == "unsupported_media_type"


def test_body_and_answer_are_described(client: TestClient) -> None:
    described: dict[str, Any] = client.get("/openapi.json").json()
    operation = described["paths"]["/count"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ScoreRequest"}
    assert answer == {"$ref": "#/components/schemas/Answer"}
