"""Deployment `Gateway`: the HTTP interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI, Response, Security
from fastapi.security import HTTPBearer
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.admin import Admin
from deployments.api import Api, Append, GatewaySettings
from deployments.backend import Backend, HandleBackend
from deployments.calls import Hooks
from deployments.edge import install_edge
from deployments.metrics import GatewayMetrics
from deployments.route import JsonRoute
from deployments.schemas import (
    ErrorResponse,
    EventsResponse,
    PromotedResponse,
    RecommendResponse,
    ScoreResponse,
)
from deployments.served import Experiment, Expose, Served, no_experiment
from deployments.versions import StoreAccess
from reki_ray import __version__

BEARER: Final = [Security(HTTPBearer(auto_error=False, description="See docs/security.md."))]
"""Tells of the token at /openapi.json; `AccessGuard` asks for it."""


@dataclass(frozen=True)
class Extensions:
    """What a graph may have beyond versions: each part is None where it has not.

    Args:
        append: Makes events durable.
        experiment: Tells the running experiment, whenever it is asked.
        expose: Notes what a user of an experiment was shown.
        watch_drops: Has a function told how many exposures could not be noted.
        close: Brings to the disk what waits; called at the end, in a thread.
    """

    append: Append | None = None
    experiment: Callable[[], Experiment | None] = no_experiment
    expose: Expose | None = None
    watch_drops: Callable[[Callable[[int], None]], None] | None = None
    close: Callable[[], None] | None = None


Extend = Callable[[StoreAccess, str], Extensions]
"""Makes a replica's extensions from where versions are and the replica's name."""


def no_extensions(access: StoreAccess, replica: str) -> Extensions:
    """A graph that serves versions and no more."""
    return Extensions()


def build_api(
    backend: Backend,
    access: StoreAccess,
    settings: GatewaySettings,
    metrics: GatewayMetrics,
    extensions: Extensions | None = None,
) -> FastAPI:
    """The HTTP application over the rest of the graph.

    Args:
        backend: The rest of the graph.
        access: Where versions are.
        settings: Limits.
        metrics: Counters of this replica.
        extensions: What the graph has beyond versions.

    Raises:
        ConfigError: A token is missing or unusable, or tracing lacks its packages.
    """
    extensions = extensions or Extensions()
    hooks = Hooks(
        retried=metrics.retried,
        rejected=metrics.queue_rejected,
        refused=lambda _: metrics.version_refused(),
        serving=metrics.serving,
    )
    served = Served(access, backend.prepare, extensions.experiment, hooks)
    if extensions.watch_drops is not None:
        extensions.watch_drops(metrics.exposures_dropped)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await served.start()
        yield
        await served.stop()
        if extensions.close is not None:
            await asyncio.to_thread(extensions.close)

    app = FastAPI(
        title="reki-ray",
        version=__version__,
        description="Scores with prestored LLM knowledge; no LLM is asked online.",
        docs_url=None,  # the interactive pages load scripts from elsewhere
        redoc_url=None,
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
        lifespan=lifespan,
    )
    install_edge(app, settings.edge, metrics)
    api = Api(backend, served, settings, metrics, hooks, extensions.append, extensions.expose)
    _route(app, api, Admin(access.store(), served))
    return app


def _route(app: FastAPI, api: Api, admin: Admin) -> None:
    described: tuple[tuple[str, Any, type], ...] = (
        ("/v1/score", api.score, ScoreResponse),
        ("/v1/recommend", api.recommend, RecommendResponse),
        ("/v1/events", api.events, EventsResponse),
        ("/v1/admin/promote", admin.promote, PromotedResponse),
    )
    for path, endpoint, answer in described:
        app.router.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            response_model=answer,
            route_class_override=JsonRoute,
            responses=app.router.responses,
            dependencies=BEARER,
        )
    app.post("/v1/admin/rollback", dependencies=BEARER)(admin.rollback)
    app.get("/v1/admin/versions", dependencies=BEARER)(admin.versions)
    app.get("/v1/versions", dependencies=BEARER)(api.versions)
    app.get("/v1/users/{user_id:path}/knowledge", dependencies=BEARER)(api.user_knowledge)
    app.get("/v1/items/{item_id:path}/knowledge", dependencies=BEARER)(api.item_knowledge)
    app.get("/v1/sample", dependencies=BEARER)(api.sample)
    app.get("/healthz")(api.healthz)
    app.get("/readyz")(api.readyz)
    app.get("/metrics", response_class=Response, dependencies=BEARER)(api.metrics)


class HttpReplica:
    """A replica that serves the HTTP interface over the rest of the graph.

    Args:
        backend: The rest of the graph.
        access: Where versions are.
        settings: Limits.
        extend: Makes what the graph has beyond versions; called once, in the replica.
    """

    def __init__(
        self, backend: Backend, access: StoreAccess, settings: GatewaySettings, extend: Extend
    ) -> None:
        self._backend = backend
        self._access = access
        self._settings = settings
        self._extend = extend

    def __serve_build_asgi_app__(self) -> FastAPI:  # Serve's name for it
        replica = serve.get_replica_context().replica_tag
        return build_api(
            self._backend,
            self._access,
            self._settings,
            GatewayMetrics(replica),
            self._extend(self._access, replica),
        )


@serve.ingress()
class Gateway(HttpReplica):
    """Serves the HTTP interface.

    Args:
        access: Where versions are.
        settings: Limits.
        lookup: Handle of `Lookup`.
        scorer: Handle of `Scorer`.
        retriever: Handle of a retriever; None in a graph without.
        reranker: Handle of a reranker; None in a graph without.
        extend: Makes what the graph has beyond versions; called once, in the replica.
    """

    def __init__(
        self,
        access: StoreAccess,
        settings: GatewaySettings,
        lookup: DeploymentHandle[Any],
        scorer: DeploymentHandle[Any],
        retriever: DeploymentHandle[Any] | None = None,
        reranker: DeploymentHandle[Any] | None = None,
        extend: Extend = no_extensions,
    ) -> None:
        backend = HandleBackend(lookup, scorer, retriever, reranker)
        super().__init__(backend, access, settings, extend)
