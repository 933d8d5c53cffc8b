"""Deployment `Gateway`: the HTTP interface."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI, Response, Security
from fastapi.security import HTTPBearer
from ray import serve
from ray.serve.context import _get_global_client  # no public API returns Serve's address
from ray.serve.handle import DeploymentHandle

from deployments.bulkhead import Bulkhead
from deployments.extensions import Extensions, open_extensions
from deployments.flows.graph_client import GraphClient, HandleClient
from deployments.flows.version_router import VersionRouter
from deployments.graph_args import GraphArgs
from deployments.http.admin import Admin
from deployments.http.api import Api
from deployments.http.json_route import JsonRoute
from deployments.middleware.install import install_edge
from deployments.middleware.metrics import GatewayMetrics
from deployments.parts.item_lists import Reranker, Retriever
from deployments.parts.lookup import Lookup
from deployments.parts.scorer import Scorer
from deployments.schemas import (
    ErrorResponse,
    EventsResponse,
    PromotedResponse,
    RecommendResponse,
    ScoreResponse,
    with_limits,
)
from reki_ray import __version__

BEARER: Final = [
    Security(HTTPBearer(auto_error=False, description="See docs/explanation/security.md."))
]
"""Documents the token at /openapi.json; `AccessControl` requires it."""

CLOSE_SECONDS: Final = 3.0
"""Time to write the last exposures to disk, within `graceful_shutdown_timeout_s`."""

logger = logging.getLogger(__name__)


def build_api(
    client: GraphClient,
    args: GraphArgs,
    metrics: GatewayMetrics,
    extensions: Extensions | None = None,
    *,
    answers_id: bool = True,
) -> FastAPI:
    """Build the HTTP application over the rest of the graph.

    Args:
        answers_id: Whether to add X-Request-ID to answers; False if the server does.

    Raises:
        ConfigError: A token is missing or invalid, or tracing lacks its packages.
    """
    extensions = extensions or Extensions()
    router = VersionRouter(args, client.prepare, metrics, extensions.experiment)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await router.start()
        yield
        await router.stop()
        await _close(extensions)

    app = FastAPI(
        title="reki-ray",
        version=__version__,
        description="Scores with prestored LLM knowledge; no LLM is called online.",
        docs_url=None,  # the interactive pages load scripts from other sites
        redoc_url=None,
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
        lifespan=lifespan,
    )
    install_edge(app, args.edge, metrics, answers_id=answers_id)
    if extensions.exposures is not None:
        metrics.follow_exposures(extensions.exposures.counts)
    api = Api(client, router, args, metrics, extensions)
    _add_routes(app, api, Admin(args.store(), router))
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            with_limits(describe(), args)  # FastAPI caches the schema
        return describe()

    app.openapi = openapi  # type: ignore[method-assign]  # as in FastAPI's documentation
    return app


async def _close(extensions: Extensions) -> None:
    try:
        await Bulkhead("close-exposures", 1, CLOSE_SECONDS).run(extensions.close)
    except Exception as error:  # never blocks the shutdown
        logger.error("exposures may be lost at shutdown", exc_info=error)


def _add_routes(app: FastAPI, api: Api, admin: Admin) -> None:
    posts: tuple[tuple[str, Any, type], ...] = (
        ("/v1/score", api.score, ScoreResponse),
        ("/v1/recommend", api.recommend, RecommendResponse),
        ("/v1/events", api.events, EventsResponse),
        ("/v1/admin/promote", admin.promote, PromotedResponse),
        ("/v1/admin/rollback", admin.rollback, PromotedResponse),
    )
    for path, endpoint, response_model in posts:
        app.router.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            response_model=response_model,
            route_class_override=JsonRoute,
            responses=app.router.responses,
            dependencies=BEARER,
        )
    for path, read in (
        ("/v1/admin/versions", admin.versions),
        ("/v1/versions", api.versions),
        ("/v1/users/{user_id:path}/knowledge", api.user_knowledge),
        ("/v1/items/{item_id:path}/knowledge", api.item_knowledge),
        ("/v1/sample", api.sample),
    ):
        _get(app, path, read, dependencies=BEARER)
    _get(app, "/healthz", api.healthz)
    _get(app, "/readyz", api.readyz)
    _get(app, "/metrics", api.metrics, dependencies=BEARER, response_class=Response)


def _get(app: FastAPI, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
    """Add a route for GET and HEAD; the server drops the body of HEAD."""
    app.get(path, **options)(endpoint)
    app.head(path, include_in_schema=False, **options)(endpoint)


class HttpReplica:
    """A replica that serves the HTTP interface over the rest of the graph."""

    def __init__(self, client: GraphClient, args: GraphArgs) -> None:
        self._client = client
        self._args = args

    def __serve_build_asgi_app__(self) -> FastAPI:  # the name is Serve's
        replica = serve.get_replica_context().replica_tag
        return build_api(
            self._client,
            self._args.listening_at(_listener()),
            GatewayMetrics(replica),
            self._extensions(replica),
            answers_id=False,
        )

    def _extensions(self, replica: str) -> Extensions | None:
        online = self._args.online
        if online is None:
            return None
        return open_extensions(self._args, replica, online.ship_seconds)


def _listener() -> str:
    """Return the address that Serve listens on, or "" (not loopback) if it is unknown."""
    try:
        client = _get_global_client()
        return "" if client is None else str(client.http_config.host or "")
    except Exception as error:  # noqa: BLE001  # a private API of Serve
        logger.warning("the address that Serve listens on is unknown: %s", error)
        return ""


@serve.ingress()
class Gateway(HttpReplica):
    """Serves the HTTP interface over other deployments."""

    def __init__(self, args: GraphArgs, *parts: DeploymentHandle[Any]) -> None:
        super().__init__(HandleClient(*parts), args)


@serve.ingress()
class FusedGateway(HttpReplica):
    """Serves the HTTP interface over parts in the same process."""

    def __init__(self, args: GraphArgs) -> None:
        client = GraphClient(
            Lookup(args, args.online),
            Scorer(args, args.max_batch_size),
            Retriever(args),
            Reranker(args),
        )
        super().__init__(client, args)
