"""The interface as a whole: described limits hold, and what HTTP asks of every endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from ray.serve._private.http_util import RequestIdMiddleware

from deployments.extensions import open_extensions
from deployments.flows.graph_client import GraphClient
from deployments.graph_args import StoreAccess
from deployments.parts.item_lists import Reranker, Retriever
from deployments.parts.lookup import Lookup
from deployments.parts.scorer import Scorer
from reki_ray.store.versions import VersionStore
from tests.support import gateway_app, store_factory

pytestmark = pytest.mark.usefixtures("one_thread")

LIMITS: dict[str, Any] = {"max_candidates": 7, "max_history": 3, "max_recommended": 4}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GraphClient, StoreAccess]]:
    root: Path = tmp_path_factory.mktemp("interface") / "publish"
    VersionStore(root).publish(partial(store_factory.fill, retrieval=True, reranker=True))
    access = StoreAccess(publish_root=str(root))
    lookup, scorer = Lookup(access), Scorer(access, 4)
    yield GraphClient(lookup, scorer, Retriever(access), Reranker(access)), access
    lookup.close()
    scorer.close()


def made(parts: tuple[GraphClient, StoreAccess], **options: Any) -> FastAPI:
    backend, access = parts
    extensions = open_extensions(access, "replica")
    return gateway_app.make(backend, access, extensions, **LIMITS, **options)


@pytest.fixture(scope="module")
def client(parts: tuple[GraphClient, StoreAccess]) -> Iterator[TestClient]:
    with gateway_app.client(made(parts)) as client:
        yield client


def array_limits(schema: dict[str, Any]) -> dict[str, int]:
    """Most elements of every list of a body."""
    found = {}
    for name, described in schema["properties"].items():
        for one in [described, *described.get("anyOf", ())]:
            if one.get("type") == "array":
                found[name] = one["maxItems"]
    return found


ELEMENTS: dict[str, Any] = {"candidates": "m1", "exclude": "m1", "history": {"item_id": "m1"}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/score": {"user_id": "u0", "candidates": ["m1"]},
    "/v1/recommend": {"user_id": "u0", "k": 1},
}


@pytest.mark.parametrize("path", BODIES)
def test_described_limits_of_lists_are_those_that_hold(client: TestClient, path: str) -> None:
    described = client.get("/openapi.json").json()
    body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    schema = described["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
    limits = array_limits(schema)
    assert limits
    for name, most in limits.items():
        for count, status in ((most, 200), (most + 1, 422)):
            answer = client.post(path, json={**BODIES[path], name: [ELEMENTS[name]] * count})
            assert answer.status_code == status, (name, count, answer.text)


def test_described_limits_of_recommendations_and_events_are_those_that_hold(
    client: TestClient,
) -> None:
    described = client.get("/openapi.json").json()
    k = described["components"]["schemas"]["RecommendRequest"]["properties"]["k"]
    assert (k["maximum"], k["default"]) == (4, 4)
    for count, status in ((k["maximum"], 200), (k["maximum"] + 1, 422)):
        answer = client.post("/v1/recommend", json={"user_id": "u0", "k": count})
        assert answer.status_code == status, answer.text
    without = client.post("/v1/recommend", json={"user_id": "u0"})
    assert len(without.json()["items"]) == k["default"]
    events = described["paths"]["/v1/events"]["post"]["requestBody"]["content"]
    most = events["application/json"]["schema"]["maxItems"]
    event = {"user_id": "u0", "item_id": "m1", "event": "click", "timestamp": 1}
    for count, status in ((most, 200), (most + 1, 422)):
        assert client.post("/v1/events", json=[event] * count).status_code == status


def test_what_can_be_got_can_be_asked_for_its_head(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["paths"]
    paths = [path for path, operations in described.items() if "get" in operations]
    for path in [*paths, "/", "/page.css", "/openapi.json"]:
        filled = path.replace("{user_id}", "u0").replace("{item_id}", "m1")
        got, head = client.get(filled), client.head(filled)
        assert head.status_code == got.status_code, path
        assert head.headers["content-type"] == got.headers["content-type"], path
        assert client.request("TRACE", filled).status_code in (405, 401, 403), path


@pytest.mark.parametrize("sent", ["r-1", None])
def test_behind_serve_an_answer_has_one_request_id(
    parts: tuple[GraphClient, StoreAccess], sent: str | None
) -> None:
    app = made(parts, answers_id=False)
    served = gateway_app.client(RequestIdMiddleware(app))
    headers = {} if sent is None else {"X-Request-ID": sent}
    with gateway_app.client(app):  # starts and ends it
        scored = served.post("/v1/score", json=BODIES["/v1/score"], headers=headers)
        for answer in (scored, served.get("/v1/nothing", headers=headers), served.get("/healthz")):
            assert len(answer.headers.get_list("x-request-id")) == 1
        assert (
            scored.headers["x-request-id"]
            == scored.json()["request_id"]
            == (sent or scored.json()["request_id"])
        )
