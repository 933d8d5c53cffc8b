"""Deployment `Gateway`: the HTTP interface."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Query, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments import errors
from deployments.errors import ApiError
from deployments.flow import FAILURES, ScoringFlow
from deployments.guard import RequestGuard
from deployments.messages import Behind, Sample, Scores, UserRecord
from deployments.metrics import CONTENT_TYPE, GatewayMetrics
from deployments.schemas import (
    MAX_LIST,
    ErrorResponse,
    KnowledgeResponse,
    SampleItem,
    SampleResponse,
    ScoreRequest,
    ScoreResponse,
    StatusResponse,
)
from reki_ray import __version__
from reki_ray.schema import Side

PAGE = Path(__file__).parent / "page" / "index.html"
PAGE_HEADERS = {
    # The page asks this service alone, and no other site may frame it.
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
}


class GatewaySettings(BaseModel):
    """Limits of the HTTP interface."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_candidates: int = Field(1000, ge=1, le=MAX_LIST, description="Candidates a request.")
    max_history: int = Field(200, ge=0, le=MAX_LIST, description="Past interactions a request.")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Largest body, bytes.")
    timeout_seconds: float = Field(2.0, gt=0, description="Time budget of a request, seconds.")


class Backend(Protocol):
    """The rest of the graph, as the gateway sees it."""

    def user(self, user_id: str) -> Awaitable[UserRecord]:
        """Ask the lookup for a user."""

    def behind(self, side: Side, subject_id: str) -> Awaitable[Behind | None]:
        """Ask the lookup what stands behind a vector."""

    def sample(self, users: int, items: int) -> Awaitable[Sample]:
        """Ask the lookup for some ids."""

    def score(self, user: UserRecord, candidates: list[str]) -> Awaitable[Scores]:
        """Ask the scorer."""


class HandleBackend:
    """The rest of the graph behind Serve's handles."""

    def __init__(self, lookup: DeploymentHandle[Any], scorer: DeploymentHandle[Any]) -> None:
        self._lookup = lookup
        self._scorer = scorer

    def user(self, user_id: str) -> Awaitable[UserRecord]:
        """See `Backend`."""
        return self._lookup.user.remote(user_id)

    def behind(self, side: Side, subject_id: str) -> Awaitable[Behind | None]:
        """See `Backend`."""
        return self._lookup.behind.remote(side, subject_id)

    def sample(self, users: int, items: int) -> Awaitable[Sample]:
        """See `Backend`."""
        return self._lookup.sample.remote(users, items)

    def score(self, user: UserRecord, candidates: list[str]) -> Awaitable[Scores]:
        """See `Backend`."""
        return self._scorer.score.remote(user, candidates)


class Api:
    """What the endpoints do.

    Args:
        backend: The rest of the graph.
        settings: Limits.
        metrics: Counters of this replica.
    """

    def __init__(
        self, backend: Backend, settings: GatewaySettings, metrics: GatewayMetrics
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._metrics = metrics
        self._flow = ScoringFlow(
            backend.user, backend.score, settings.timeout_seconds, metrics.retried
        )
        self._ready = False
        self._page = PAGE.read_text(encoding="utf-8")

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Score candidates for one user, in their order."""
        self._limit("candidates", len(request.candidates), self._settings.max_candidates)
        self._limit("history", len(request.history or []), self._settings.max_history)
        response = await self._flow.score(request)
        self._metrics.scored(response.user.source, degraded=response.degraded)
        return response

    async def user_knowledge(self, user_id: str) -> KnowledgeResponse:
        """The text behind a user's vector."""
        return await self._knowledge("users", user_id)

    async def item_knowledge(self, item_id: str) -> KnowledgeResponse:
        """The text behind an item's vector."""
        return await self._knowledge("items", item_id)

    async def sample(
        self, users: int = Query(20, ge=0, le=200), items: int = Query(10, ge=0, le=200)
    ) -> SampleResponse:
        """Some ids of the store to try the service with."""
        found = await self._ask(self._backend.sample(users, items))
        titled = [SampleItem(item_id=item, title=title) for item, title in found.items]
        return SampleResponse(users=found.users, items=titled, store_version=found.store_version)

    async def healthz(self) -> StatusResponse:
        """Whether this replica lives."""
        return StatusResponse(status="ok")

    async def readyz(self) -> StatusResponse:
        """Whether store and model are loaded and a warm-up score went through the graph."""
        if not self._ready:
            sample = await self._ask(self._backend.sample(1, 1))
            warm_up = ScoreRequest(
                user_id=next(iter(sample.users), "nobody"),
                candidates=[item for item, _ in sample.items] or ["nothing"],
            )
            if (await self._flow.score(warm_up)).degraded:
                raise ApiError(503, "not_ready", "The lookup does not answer yet.")
            self._ready = True
        return StatusResponse(status="ready")

    async def metrics(self) -> Response:
        """Metrics of this replica in the Prometheus text format."""
        return Response(self._metrics.render(), media_type=CONTENT_TYPE)

    async def page(self) -> HTMLResponse:
        """A page to try the service with."""
        return HTMLResponse(self._page, headers=PAGE_HEADERS)

    async def _knowledge(self, side: Side, subject_id: str) -> KnowledgeResponse:
        found = await self._ask(self._backend.behind(side, subject_id))
        if found is None:
            raise ApiError(404, "unknown_id", f"The store knows no such id among its {side}.")
        return KnowledgeResponse.model_validate(
            {
                "id": subject_id,
                "side": side,
                "title": found.title,
                "attributes": found.attributes,
                "source": found.source,
                "cluster_id": found.cluster_id,
                "knowledge": found.texts,
                "store_version": found.store_version,
            }
        )

    async def _ask(self, answer: Awaitable[Any]) -> Any:
        try:
            return await asyncio.wait_for(answer, self._settings.timeout_seconds)
        except FAILURES as error:
            raise ApiError(
                503,
                "lookup_unavailable",
                "No lookup can be reached; ask again.",
                headers={"Retry-After": "1"},
            ) from error

    def _limit(self, field: str, count: int, most: int) -> None:
        if count > most:
            raise ApiError(
                422,
                f"too_many_{field}",
                f"The request names too many {field}.",
                details={"count": count, "max": most},
            )


def build_api(backend: Backend, settings: GatewaySettings, metrics: GatewayMetrics) -> FastAPI:
    """The HTTP application over the rest of the graph.

    Args:
        backend: The rest of the graph.
        settings: Limits.
        metrics: Counters of this replica.
    """
    api = Api(backend, settings, metrics)
    app = FastAPI(
        title="reki-ray",
        version=__version__,
        description="Scores with prestored LLM knowledge; no LLM is asked online.",
        docs_url=None,  # the interactive pages load scripts from elsewhere
        redoc_url=None,
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
    )
    errors.install(app)
    app.add_middleware(
        RequestGuard, max_body_bytes=settings.max_body_bytes, observe=metrics.observe
    )
    app.post("/v1/score")(api.score)
    app.get("/v1/users/{user_id:path}/knowledge")(api.user_knowledge)
    app.get("/v1/items/{item_id:path}/knowledge")(api.item_knowledge)
    app.get("/v1/sample")(api.sample)
    app.get("/healthz")(api.healthz)
    app.get("/readyz")(api.readyz)
    app.get("/metrics", response_class=Response)(api.metrics)
    app.get("/", response_class=HTMLResponse, include_in_schema=False)(api.page)
    return app


@serve.ingress()
class Gateway:
    """Serves the HTTP interface.

    Args:
        lookup: Handle of `Lookup`.
        scorer: Handle of `Scorer`.
        settings: Limits.
    """

    def __init__(
        self,
        lookup: DeploymentHandle[Any],
        scorer: DeploymentHandle[Any],
        settings: GatewaySettings,
    ) -> None:
        self._backend = HandleBackend(lookup, scorer)
        self._settings = settings

    def __serve_build_asgi_app__(self) -> FastAPI:  # Serve's name for it
        replica = serve.get_replica_context().replica_tag
        return build_api(self._backend, self._settings, GatewayMetrics(replica))
