"""What the endpoints for callers do; those for operators are in admin.py."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final, TypeVar

from fastapi import Query, Request, Response
from pydantic import Field

from deployments.bulkhead import Bound, Bulkhead
from deployments.errors import RETRY_LATER, ApiError
from deployments.flows.deadline import Deadline, Hooks, HopError, RetryThrottle, unavailable
from deployments.flows.graph_client import GraphClient, no_retrieval
from deployments.flows.recommend import RecommendFlow
from deployments.flows.score import ScoringFlow
from deployments.flows.version_router import Expose, Exposed, Route, VersionRouter
from deployments.http.json_route import json_response
from deployments.http.readiness import Readiness
from deployments.middleware.metrics import CONTENT_TYPE, GatewayMetrics
from deployments.parts.records import Scores
from deployments.schemas import (
    EventItem,
    Events,
    KnowledgeResponse,
    RecommendRequest,
    SampleItem,
    SampleResponse,
    ScoreRequest,
    StatusResponse,
    StoreVersionName,
    VariantInfo,
    VersionsResponse,
)
from reki_ray.config.edge import EdgeSettings, is_loopback
from reki_ray.config.serve import RequestLimits
from reki_ray.errors import RekiError
from reki_ray.schema import Side

T = TypeVar("T")

StoreVersionQuery = Annotated[
    StoreVersionName | None,
    Query(description="Version to answer from, one of those that /v1/versions lists."),
]

READERS: Final = 4
"""Requests that read manifests from the disk at once."""

Append = Callable[[Sequence[EventItem]], None]
"""Makes events durable; called in a thread."""


class GatewaySettings(RequestLimits):
    """Limits of the HTTP interface, and who may ask."""

    edge: EdgeSettings = Field(EdgeSettings(), description="Access, as `serve.edge` of a run.")

    def listening_at(self, host: str) -> GatewaySettings:
        """The same where the service listens at an address, whatever the settings say.

        Raises:
            ValidationError: That is not this machine alone, and callers need no token.
        """
        if not self.edge.loopback or is_loopback(host):
            return self
        return self.model_copy(update={"edge": self.edge.at(host)})


class Api:
    """What the endpoints do.

    Args:
        backend: The rest of the graph.
        served: The version of each user.
        settings: Limits.
        metrics: Counters of this replica.
        hooks: Told of repeated and refused calls.
        append: Makes events durable; None where the graph takes none.
        expose: Notes what users of an experiment were shown; None where nobody wants to know.
    """

    def __init__(
        self,
        backend: GraphClient,
        served: VersionRouter,
        settings: GatewaySettings,
        metrics: GatewayMetrics,
        hooks: Hooks,
        append: Append | None,
        expose: Expose | None = None,
    ) -> None:
        self._backend = backend
        self._served = served
        self._settings = settings
        self._metrics = metrics
        self._append = append
        self._expose = expose
        self._hooks, self._retries = hooks, RetryThrottle()
        self._flow = ScoringFlow(backend, settings.timeout_seconds, hooks)
        self._recommend = RecommendFlow(
            backend, settings.timeout_seconds, settings.retrieved, hooks
        )
        # Each kind of request by itself: one that hangs refuses its own kind alone.
        most = settings.max_ongoing_requests
        self._scoring, self._asking = Bound(most), Bound(most)
        self._storing = Bulkhead("events", most, settings.timeout_seconds)
        self._reading = Bulkhead("read-versions", READERS, settings.timeout_seconds)
        self._readiness = Readiness(self._check_ready)

    async def score(self, request: Request, body: ScoreRequest) -> Response:
        """Score candidates for one user, in their order."""
        self._limit("candidates", len(body.candidates), self._settings.max_candidates)
        self._limit("history", len(body.history or ()), self._settings.max_history)
        assigned = self._served.of(body.user_id, body.variant, body.store_version)
        with self._scoring.taken():
            found = await self._flow.score(
                body.user_id, body.candidates, assigned.version, body.history
            )
        entries = zip(body.candidates, found.scores, found.sources, strict=True)
        return self._answer(
            request,
            body,
            assigned,
            found,
            body.candidates,
            degraded=found.degraded,
            scores=[
                {"item_id": item, "score": score, "source": source}
                for item, score, source in entries
            ],
        )

    async def recommend(self, request: Request, body: RecommendRequest) -> Response:
        """Recommend unseen items to one user, the best one first."""
        if "k" not in body.model_fields_set:  # nobody has asked for more than may be
            most = min(body.k, self._settings.max_recommended)
            body = body.model_copy(update={"k": most})
        self._limit("items", body.k, self._settings.max_recommended)
        self._limit("history", len(body.history or ()), self._settings.max_history)
        self._limit("exclude", len(body.exclude), self._settings.max_candidates)
        if not self._backend.retrieves:
            raise no_retrieval()
        assigned = self._served.of(body.user_id, body.variant, body.store_version)
        with self._scoring.taken():
            found = await self._recommend.recommend(body, assigned.version)
        scores = found.scores
        entries = zip(found.item_ids, scores.scores, scores.sources, found.titles, strict=True)
        return self._answer(
            request,
            body,
            assigned,
            scores,
            found.item_ids,
            degraded=found.degraded,
            items=[
                {"item_id": item, "score": score, "source": source, "title": title}
                for item, score, source, title in entries
            ],
        )

    async def events(self, request: Request, body: Events) -> Response:
        """Take events; they are durable when the answer is there."""
        append = self._append
        if append is None:
            raise ApiError(404, "no_event_log", "This graph takes no events.")
        try:
            await self._storing.run(lambda: append(body))
        except (OSError, RekiError) as error:  # TimeoutError among them: the disk hangs
            raise ApiError(
                503,
                "log_unavailable",
                "The events could not be stored; send them again.",
                headers=RETRY_LATER,
            ) from error
        self._metrics.events_accepted(len(body))
        return json_response({"accepted": len(body)})

    async def versions(self) -> VersionsResponse:
        """What is served."""
        current, compared, parts = (
            self._served.number,
            self._served.compared,
            self._served.variants,
        )
        numbers = [current, *(part.version for part in parts), *([compared] if compared else [])]
        arms = await self._reading.run(
            lambda: {number: self._served.arm_of(number) for number in numbers}
        )
        return VersionsResponse(
            current=current,
            arm=arms[current],
            variants=[
                VariantInfo(name=part.name, version=part.version, arm=arms[part.version])
                for part in parts
            ],
            compared=compared
            and VariantInfo(
                name=arms[compared] or f"v{compared}", version=compared, arm=arms[compared]
            ),
        )

    async def user_knowledge(
        self, user_id: str, store_version: StoreVersionQuery = None
    ) -> KnowledgeResponse:
        """The text behind a user's vector."""
        found = self._served.of(user_id, store_version=store_version)
        return await self._knowledge("users", user_id, found.version)

    async def item_knowledge(
        self, item_id: str, store_version: StoreVersionQuery = None
    ) -> KnowledgeResponse:
        """The text behind an item's vector."""
        number = self._served.number
        if store_version is not None:
            number = self._served.of("", store_version=store_version).version
        return await self._knowledge("items", item_id, number)

    async def sample(
        self, users: int = Query(20, ge=0, le=200), items: int = Query(10, ge=0, le=200)
    ) -> SampleResponse:
        """Some ids of the store to try the service with."""
        number = self._served.number
        found = await self._ask(lambda: self._backend.sample(users, items, number))
        titled = [SampleItem(item_id=item, title=title) for item, title in found.items]
        return SampleResponse(users=found.users, items=titled, store_version=found.store_version)

    async def healthz(self) -> StatusResponse:
        """Whether this replica lives."""
        return StatusResponse(status="ok")

    async def readyz(self) -> StatusResponse:
        """Whether requests are scored now; a replica that was ready may cease to be."""
        if not self._served.follows:
            raise ApiError(
                503, "not_following", "The disk with the versions hangs.", headers=RETRY_LATER
            )
        await self._readiness.require()
        return StatusResponse(status="ready")

    async def metrics(self) -> Response:
        """Metrics of this replica in the Prometheus text format."""
        return Response(self._metrics.render(), media_type=CONTENT_TYPE)

    async def _check_ready(self, *, first: bool) -> None:
        number = self._served.number
        sample = await self._lookup(lambda: self._backend.sample(1, 1, number))
        user = next(iter(sample.users), "nobody")
        items = [item for item, _ in sample.items] or ["nothing"]
        found = await self._flow.score(user, items, number)
        if first and found.degraded:  # later, degraded answers are better than none
            raise ApiError(503, "not_ready", "The lookup does not answer yet.")

    def _answer(
        self,
        request: Request,
        body: ScoreRequest | RecommendRequest,
        assigned: Route,
        found: Scores,
        shown: Sequence[str],
        *,
        degraded: bool,
        **entries: list[dict[str, Any]],
    ) -> Response:
        state, variant = request.state, assigned.variant
        state.variant, state.version = variant or found.variant, found.store_version
        self._metrics.scored(found.user_source, degraded=degraded)
        self._readiness.answered(degraded=degraded)
        request_id = body.request_id or getattr(state, "request_id", None) or uuid.uuid4().hex
        if variant is not None and body.variant is None and self._expose is not None:
            self._expose(Exposed(request_id, assigned.experiment, variant, body.user_id, shown))
        return json_response(
            {
                "request_id": request_id,
                "model_version": found.model_version,
                "store_version": found.store_version,
                "variant": state.variant,
                "user": {"source": found.user_source},
                **entries,
                "degraded": degraded,
            }
        )

    async def _knowledge(self, side: Side, subject_id: str, version: int) -> KnowledgeResponse:
        found = await self._ask(lambda: self._backend.explain(side, subject_id, version))
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

    async def _ask(self, ask: Callable[[], Awaitable[T]]) -> T:
        with self._asking.taken():
            return await self._lookup(ask)

    async def _lookup(self, ask: Callable[[], Awaitable[T]]) -> T:
        budget = Deadline(self._settings.timeout_seconds, self._hooks, self._retries)
        try:
            return await budget.call("lookup", ask)
        except HopError as failure:
            raise unavailable("lookup") from failure

    def _limit(self, field: str, count: int, most: int) -> None:
        if count > most:
            raise ApiError(
                422,
                f"too_many_{field}",
                f"The request names too many {field}.",
                details={"count": count, "max": most},
            )
