"""Endpoints for callers; those for operators are in admin.py."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated, Any, Final, TypeVar

from fastapi import Query, Request, Response

from deployments.bulkhead import Bound, Bulkhead
from deployments.errors import OVERLOADED, ApiError, retry_later
from deployments.extensions import Extensions
from deployments.flows.deadline import Deadline, HopError, RetryThrottle, unavailable
from deployments.flows.graph_client import GraphClient
from deployments.flows.score import RecommendFlow, ScoringFlow
from deployments.flows.version_router import Route, VersionRouter
from deployments.http.json_route import json_response
from deployments.middleware.metrics import CONTENT_TYPE, GatewayMetrics
from deployments.parts.records import Scores
from deployments.schemas import (
    Events,
    KnowledgeResponse,
    RecommendRequest,
    SampleResponse,
    ScoreRequest,
    StatusResponse,
    StoreVersionName,
    VariantInfo,
    VersionsResponse,
)
from reki_ray.config.serve import GraphSettings
from reki_ray.errors import RekiError
from reki_ray.schema import Side

T = TypeVar("T")

StoreVersionQuery = Annotated[
    StoreVersionName | None,
    Query(description="Version to answer from, one of those that /v1/versions lists."),
]

READERS: Final = 4
"""Concurrent requests that read manifests from disk."""


class Api:
    """The endpoints."""

    def __init__(
        self,
        client: GraphClient,
        router: VersionRouter,
        settings: GraphSettings,
        metrics: GatewayMetrics,
        extensions: Extensions,
    ) -> None:
        self._client = client
        self._router = router
        self._settings = settings
        self._metrics = metrics
        self._append, self._exposures = extensions.append, extensions.exposures
        seconds, most = settings.timeout_seconds, settings.max_ongoing_requests
        self._deadline = partial(Deadline, seconds, metrics, RetryThrottle())
        self._scoring = ScoringFlow(client, seconds, metrics)
        self._recommending = RecommendFlow(client, seconds, settings.retrieved, metrics)
        # A bound per kind of request: one kind that hangs does not refuse the others.
        self._scores, self._lookups = Bound(most), Bound(most)
        self._appends = Bulkhead("events", most, seconds)
        self._manifests = Bulkhead("read-versions", READERS, seconds)
        self._readiness = Readiness(self._check_ready)

    async def score(self, request: Request, body: ScoreRequest) -> Response:
        """Score candidates for one user, in their order."""
        self._limit("candidates", len(body.candidates), self._settings.max_candidates)
        self._limit("history", len(body.history or ()), self._settings.max_history)
        route = self._router.of(body.user_id, body.variant, body.store_version)
        async with self._scores:
            scores = await self._scoring.score(
                body.user_id, body.candidates, route.version, body.history
            )
        return self._answer(request, body, route, scores, scores=_entries(body.candidates, scores))

    async def recommend(self, request: Request, body: RecommendRequest) -> Response:
        """Recommend unseen items to one user, the best one first."""
        if "k" not in body.model_fields_set:  # the default never exceeds the limit
            k = min(body.k, self._settings.max_recommended)
            body = body.model_copy(update={"k": k})
        self._limit("items", body.k, self._settings.max_recommended)
        self._limit("history", len(body.history or ()), self._settings.max_history)
        self._limit("exclude", len(body.exclude), self._settings.max_candidates)
        if not self._client.retrieves:
            raise ApiError(
                404, "no_retrieval", "This graph has no retriever; name candidates to /v1/score."
            )
        route = self._router.of(body.user_id, body.variant, body.store_version)
        async with self._scores:
            answer = await self._recommending.recommend(body, route.version)
        entries = _entries(answer.item_ids, answer.scores)
        for entry, title in zip(entries, answer.titles, strict=True):
            entry["title"] = title
        return self._answer(request, body, route, answer.scores, items=entries)

    async def events(self, request: Request, body: Events) -> Response:
        """Store events; they are durable once the answer arrives."""
        append = self._append
        if append is None:
            raise ApiError(404, "no_event_log", "This graph takes no events.")
        try:
            await self._appends.run(lambda: append(body))
        except (OSError, RekiError) as error:  # TimeoutError among them: the disk hangs
            raise retry_later(
                "log_unavailable", "The events could not be stored; send them again."
            ) from error
        self._metrics.events_accepted(len(body))
        return json_response({"accepted": len(body)})

    async def versions(self) -> VersionsResponse:
        """List the versions that are served."""
        router = self._router
        current, compared, variants = router.number, router.compared, router.variants
        numbers = router.opened
        arms = await self._manifests.run(lambda: {n: router.arm_of(n) for n in numbers})

        def describe(number: int, name: str | None) -> VariantInfo:
            return VariantInfo(name=name or f"v{number}", version=number, arm=arms[number])

        return VersionsResponse(
            current=current,
            arm=arms[current],
            variants=[describe(part.version, part.name) for part in variants],
            compared=None if compared is None else describe(compared, arms[compared]),
        )

    async def user_knowledge(
        self, user_id: str, store_version: StoreVersionQuery = None
    ) -> KnowledgeResponse:
        """Show the texts behind a user's vector."""
        route = self._router.of(user_id, store_version=store_version)
        return await self._knowledge("users", user_id, route.version)

    async def item_knowledge(
        self, item_id: str, store_version: StoreVersionQuery = None
    ) -> KnowledgeResponse:
        """Show the texts behind an item's vector."""
        number = self._router.number
        if store_version is not None:
            number = self._router.of("", store_version=store_version).version
        return await self._knowledge("items", item_id, number)

    async def sample(
        self, users: int = Query(20, ge=0, le=200), items: int = Query(10, ge=0, le=200)
    ) -> SampleResponse:
        """Return some ids of the store to try the service with."""
        number = self._router.number
        async with self._lookups:
            return await self._lookup(lambda: self._client.sample(users, items, number))

    async def healthz(self) -> StatusResponse:
        """Report that this replica is alive."""
        return StatusResponse(status="ok")

    async def readyz(self) -> StatusResponse:
        """Report whether requests are scored now; this may change at any time."""
        if not self._router.follows:
            raise retry_later("not_following", "The disk with the versions hangs.")
        await self._readiness.require()
        return StatusResponse(status="ready")

    async def metrics(self) -> Response:
        """Return the metrics of this replica in the Prometheus text format."""
        return Response(self._metrics.render(), media_type=CONTENT_TYPE)

    async def _check_ready(self, first: bool) -> None:
        number = self._router.number
        sample = await self._lookup(lambda: self._client.sample(1, 1, number))
        user = next(iter(sample.users), "unknown")
        items = [item.item_id for item in sample.items] or ["unknown"]
        scores = await self._scoring.score(user, items, number)
        if first and scores.degraded:  # later, degraded answers are better than none
            raise ApiError(503, "not_ready", "The lookup does not answer yet.")

    def _answer(
        self,
        request: Request,
        body: ScoreRequest | RecommendRequest,
        route: Route,
        scored: Scores,
        **lists: list[dict[str, Any]],
    ) -> Response:
        state, variant, degraded = request.state, route.variant, scored.degraded
        state.variant, state.version = variant or scored.variant, scored.store_version
        self._metrics.scored(scored.user_source, degraded=degraded)
        self._readiness.answered(degraded=degraded)
        request_id = body.request_id or getattr(state, "request_id", None) or uuid.uuid4().hex
        if variant is not None and body.variant is None and self._exposures is not None:
            shown = [entry["item_id"] for entries in lists.values() for entry in entries]
            self._exposures.append(request_id, route.experiment, variant, body.user_id, shown)
        return json_response(
            {
                "request_id": request_id,
                "model_version": scored.model_version,
                "store_version": scored.store_version,
                "variant": state.variant,
                "user": {"source": scored.user_source},
                **lists,
                "degraded": degraded,
            }
        )

    async def _knowledge(self, side: Side, subject_id: str, version: int) -> KnowledgeResponse:
        async with self._lookups:
            explanation = await self._lookup(
                lambda: self._client.explain(side, subject_id, version)
            )
        if explanation is None:
            raise ApiError(404, "unknown_id", f"The store knows no such id among its {side}.")
        return explanation

    async def _lookup(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._deadline().call("lookup", call)
        except HopError as failure:
            raise unavailable("lookup") from failure

    def _limit(self, field: str, count: int, most: int) -> None:
        if count > most:
            raise ApiError(
                422,
                f"too_many_{field}",
                f"The request has too many {field}.",
                details={"count": count, "max": most},
            )


def _entries(item_ids: Sequence[str], scores: Scores) -> list[dict[str, Any]]:
    entries = zip(item_ids, scores.scores, scores.sources, strict=True)
    return [{"item_id": item, "score": score, "source": source} for item, score, source in entries]


FRESH_SECONDS: Final = 2.0
"""Age up to which an answer or a failed check counts as current."""


class Readiness:
    """Checks the graph, one check at a time, unless a recent request was answered.

    Args:
        check: Sends a request through the graph; raises an ApiError if that fails or, given True
            for the first time, if the answer is degraded.
    """

    def __init__(self, check: Callable[[bool], Awaitable[None]]) -> None:
        self._check = check
        self._checking = asyncio.Lock()
        self._was_ready = False
        self._answered_at = self._checked_at = -math.inf
        self._refusal: ApiError | None = None

    def answered(self, *, degraded: bool) -> None:
        """Record an answered request."""
        self._answered_at = time.monotonic()
        self._was_ready = self._was_ready or not degraded

    async def require(self) -> None:
        """Raise an ApiError unless requests are answered."""
        async with self._checking:
            now = time.monotonic()
            if not self._was_ready or now > FRESH_SECONDS + max(
                self._answered_at, self._checked_at
            ):
                await self._run_check()
            elif now - self._answered_at <= FRESH_SECONDS:
                self._refusal = None
        if self._refusal is not None:
            raise self._refusal

    async def _run_check(self) -> None:
        try:
            await self._check(not self._was_ready)
        except ApiError as error:
            # Without a busy replica, the others would have even more to do.
            self._refusal = None if error.code == OVERLOADED and self._was_ready else error
        else:
            self._was_ready, self._refusal = True, None
        self._checked_at = time.monotonic()
