"""Deployment `Gateway`: the HTTP interface."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from fastapi import FastAPI, Response, Security
from fastapi.security import HTTPBearer
from ray import serve
from ray.serve.context import _get_global_client  # no public way tells where Serve listens
from ray.serve.handle import DeploymentHandle

from deployments.bulkhead import Bulkhead
from deployments.flows.deadline import Hooks
from deployments.flows.graph_client import GraphClient, HandleClient, LocalClient
from deployments.flows.version_router import (
    Exposed,
    RunningExperiment,
    VersionRouter,
    no_experiment,
)
from deployments.http.admin import Admin
from deployments.http.api import Api, Append, GatewaySettings
from deployments.http.json_route import JsonRoute
from deployments.middleware.install import install_edge
from deployments.middleware.metrics import GatewayMetrics
from deployments.parts.lookup import Lookup, OpenRecent
from deployments.parts.reranker import Reranker
from deployments.parts.retriever import Retriever
from deployments.parts.scorer import Scorer
from deployments.parts.version_cache import StoreAccess
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
"""Tells of the token at /openapi.json; `AccessGuard` asks for it."""


CLOSE_SECONDS: Final = 3.0

"""Time that the exposures of the last requests have for their way to the disk: within the grace
of a replica that is shut down (`graceful_shutdown_timeout_s`)."""

logger = logging.getLogger(__name__)


class Exposures(Protocol):
    """The log of what users of an experiment were shown (`online.ExposureSink`)."""

    @property
    def written(self) -> int:
        """Exposures that are on the disk."""

    @property
    def dropped(self) -> int:
        """Exposures that were not logged."""

    def append(self, shown: Exposed) -> None:
        """Note an exposure; does not wait."""

    def close(self) -> None:
        """Write what is queued."""


@dataclass(frozen=True)
class Extensions:
    """What a graph may have beyond versions: each part is None where it has not.

    Args:
        append: Makes events durable.
        experiment: Tells the running experiment, whenever it is asked.
        exposures: Notes what a user of an experiment was shown.
    """

    append: Append | None = None
    experiment: Callable[[], RunningExperiment | None] = no_experiment
    exposures: Exposures | None = None


Extend = Callable[[StoreAccess, str], Extensions]

"""Makes a replica's extensions from where versions are and the replica's name."""


def no_extensions(access: StoreAccess, replica: str) -> Extensions:
    """A graph that serves versions and no more."""
    return Extensions()


def build_api(
    backend: GraphClient,
    access: StoreAccess,
    settings: GatewaySettings,
    metrics: GatewayMetrics,
    extensions: Extensions | None = None,
    *,
    answers_id: bool = True,
) -> FastAPI:
    """The HTTP application over the rest of the graph.

    Args:
        backend: The rest of the graph.
        access: Where versions are.
        settings: Limits.
        metrics: Counters of this replica.
        extensions: What the graph has beyond versions.
        answers_id: Whether answers carry X-Request-ID; not where the server writes it itself.

    Raises:
        ConfigError: A token is missing or unusable, or tracing lacks its packages.
    """
    extensions = extensions or Extensions()
    hooks = Hooks(
        retried=metrics.retried,
        rejected=metrics.queue_rejected,
        failed=metrics.hop_failed,
        degraded=metrics.degraded,
        refused=lambda _: metrics.version_refused(),
        serving=metrics.serving,
    )
    served = VersionRouter(access, backend.prepare, extensions.experiment, hooks)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await served.start()
        yield
        await served.stop()
        await _close(extensions)

    app = FastAPI(
        title="reki-ray",
        version=__version__,
        description="Scores with prestored LLM knowledge; no LLM is asked online.",
        docs_url=None,  # the interactive pages load scripts from elsewhere
        redoc_url=None,
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
        lifespan=lifespan,
    )
    install_edge(app, settings.edge, metrics, answers_id=answers_id)
    exposures = extensions.exposures
    expose = None if exposures is None else exposures.append
    if exposures is not None:
        metrics.follow_exposures(
            lambda: {"written": exposures.written, "dropped": exposures.dropped}
        )
    api = Api(backend, served, settings, metrics, hooks, extensions.append, expose)
    _route(app, api, Admin(access.store(), served))
    _describe_limits(app, settings)
    return app


def _describe_limits(app: FastAPI, settings: GatewaySettings) -> None:
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            with_limits(describe(), settings)  # it keeps what it returns
        return describe()

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it


async def _close(extensions: Extensions) -> None:
    if extensions.exposures is None:
        return
    try:
        await Bulkhead("close-exposures", 1, CLOSE_SECONDS).run(extensions.exposures.close)
    except Exception as error:  # what cannot be written must not keep the replica
        logger.error("exposures may be lost at this end", exc_info=error)


def _route(app: FastAPI, api: Api, admin: Admin) -> None:
    described: tuple[tuple[str, Any, type], ...] = (
        ("/v1/score", api.score, ScoreResponse),
        ("/v1/recommend", api.recommend, RecommendResponse),
        ("/v1/events", api.events, EventsResponse),
        ("/v1/admin/promote", admin.promote, PromotedResponse),
        ("/v1/admin/rollback", admin.rollback, PromotedResponse),
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
    """A route for GET, and for HEAD, which the server answers without the body."""
    app.get(path, **options)(endpoint)
    app.head(path, include_in_schema=False, **options)(endpoint)


class HttpReplica:
    """A replica that serves the HTTP interface over the rest of the graph.

    Args:
        backend: The rest of the graph.
        access: Where versions are.
        settings: Limits.
        extend: Makes what the graph has beyond versions; called once, in the replica.
    """

    def __init__(
        self, backend: GraphClient, access: StoreAccess, settings: GatewaySettings, extend: Extend
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
            self._settings.listening_at(_listener()),
            GatewayMetrics(replica),
            self._extend(self._access, replica),
            answers_id=False,
        )


def _listener() -> str:
    """Address that Serve listens on; empty, which is not this machine alone, if it does not say."""
    try:
        client = _get_global_client()
        return "" if client is None else str(client.http_config.host or "")
    except Exception as error:  # noqa: BLE001  # Serve's own, without a promise
        logger.warning("Serve does not tell where it listens: %s", error)
        return ""


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
        backend = HandleClient(lookup, scorer, retriever, reranker)
        super().__init__(backend, access, settings, extend)


@serve.ingress()
class FusedGateway(HttpReplica):
    """Serves the HTTP interface over parts of its own.

    Args:
        access: Where versions are.
        settings: Limits.
        max_batch_size: Most requests per forward pass.
        recent: Opens recent interactions; None leaves them out.
        extend: Makes what the graph has beyond versions; called once, in the replica.

    Raises:
        StoreError: Neither CURRENT nor an older version opens.
    """

    def __init__(
        self,
        access: StoreAccess,
        settings: GatewaySettings,
        max_batch_size: int,
        recent: OpenRecent | None = None,
        extend: Extend = no_extensions,
    ) -> None:
        backend = LocalClient(
            Lookup(access, recent),
            Scorer(access, max_batch_size),
            Retriever(access),
            Reranker(access),
        )
        super().__init__(backend, access, settings, extend)
