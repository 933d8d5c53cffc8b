"""A whole gateway in this process, over a small store, for tests without Ray Serve."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.testclient import TestClient

from deployments.extensions import Extensions
from deployments.flows.graph_client import GraphClient
from deployments.gateway import build_api
from deployments.graph_args import GraphArgs, StoreAccess
from deployments.middleware.metrics import GatewayMetrics
from reki_ray.config.edge import EdgeSettings

EDGE = EdgeSettings(allow_anonymous=True, request_logs=False)


def make(
    graph: GraphClient,
    access: StoreAccess,
    extensions: Extensions | None = None,
    *,
    answers_id: bool = True,
    **settings: Any,
) -> FastAPI:
    """The application over parts, with patience for a busy machine."""
    return build_api(
        graph,
        GraphArgs(**{**access.model_dump(), "timeout_seconds": 60, "edge": EDGE, **settings}),
        GatewayMetrics("replica"),
        extensions,
        answers_id=answers_id,
    )


def client(app: Any) -> TestClient:
    """A client on this machine; the application starts and ends with its block."""
    return TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 4000))


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """The same in an event loop."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as asking,
    ):
        yield asking
