"""A small application behind the real edge, and clients of it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient

from deployments.middleware.install import install_edge
from deployments.middleware.metrics import CONTENT_TYPE, GatewayMetrics
from reki_ray.config.edge import EdgeSettings

TOKEN = "caller-0123456789abcdef"
SECOND = "caller-fedcba9876543210"
ADMIN = "operator-0123456789abcdef"


def app(settings: EdgeSettings, metrics: GatewayMetrics | None = None) -> FastAPI:
    """Endpoints that succeed, tell what they got, and fail."""
    metrics = metrics or GatewayMetrics("replica-1")
    made = FastAPI(docs_url=None, redoc_url=None)
    install_edge(made, settings, metrics)

    @made.post("/v1/score")
    async def score(request: Request) -> dict[str, Any]:
        request.state.variant, request.state.version = "reki_c", "v3"
        return {
            "length": len(await request.body()),
            "request_id": request.state.request_id,
            "role": request.state.caller.role,
        }

    @made.get("/v1/users/{user_id:path}/knowledge")
    async def knowledge(user_id: str) -> dict[str, str]:
        raise KeyError(user_id)

    @made.get("/v1/admin/versions")
    async def versions() -> dict[str, str]:
        return {"current": "v3"}

    @made.get("/healthz")
    @made.get("/readyz")
    async def status() -> dict[str, str]:
        return {"status": "ok"}

    @made.get("/metrics")
    async def rendered() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    return made


def client(
    made: FastAPI, token: str | None = None, *, peer: str = "127.0.0.1", host: str = "127.0.0.1"
) -> TestClient:
    """A client at an address, this machine's own by default, which calls the service by a name."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return TestClient(
        made,
        base_url=f"http://{host}",
        headers=headers,
        client=(peer, 4000),
        raise_server_exceptions=True,
    )


def error(response: Any, status: int) -> Any:
    """The error of an answer, which has the common form."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message", "details"}
    assert "Traceback" not in response.text
    return body["error"]
