"""Requests on their way through the graph, each within its deadline.

A score request needs the lookup, then the scorer; a recommendation also retriever and reranker.
Without a lookup, scores use fallbacks; without a reranker, their order remains; titles may be
missing: the answer says so. Without a retriever or a scorer it is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from deployments.flows.deadline import Deadline, RetryThrottle
from deployments.flows.graph_client import GraphClient
from deployments.middleware.metrics import GatewayMetrics
from deployments.parts.records import Scores, UserRecord
from deployments.schemas import HistoryItem, RecommendRequest
from reki_ray.config.serve import LOOKUP_SHARE
from reki_ray.store.tables import Profile

RETRIEVER_SHARE: Final = 0.4
SCORER_SHARE: Final = 0.7
RERANKER_SHARE: Final = 0.6
"""Shares of the remaining time for both attempts of a hop."""

RERANKED: Final = 50
"""Least number of items for the reranker, which looks at a list as a whole."""


class ScoringFlow:
    """Carries score requests through the graph, each with a deadline of `seconds`."""

    def __init__(self, client: GraphClient, seconds: float, metrics: GatewayMetrics) -> None:
        self._client = client
        self._metrics = metrics
        self._deadline = partial(Deadline, seconds, metrics, RetryThrottle())

    async def score(
        self,
        user_id: str,
        candidates: Sequence[str],
        version: int,
        history: Sequence[HistoryItem] | None = None,
    ) -> Scores:
        """Score candidates in their order; `history` replaces the stored one.

        Raises:
            ApiError: 503 if no scorer answers, 504 after the deadline.
        """
        deadline = self._deadline()
        user = await self._user(deadline, user_id, version, history)
        return await deadline.require(
            "scorer", lambda: self._client.score(user, candidates, version)
        )

    async def _user(
        self,
        deadline: Deadline,
        user_id: str,
        version: int,
        history: Sequence[HistoryItem] | None,
    ) -> UserRecord:
        """Look up a user; return an empty record if the lookup does not answer."""
        known = await deadline.optional(
            "lookup", lambda: self._client.user(user_id, version), "lookup", LOOKUP_SHARE
        )
        user = known or UserRecord()
        if user.lack:
            self._metrics.degraded(user.lack)
        if history is None:
            return user
        profile = Profile(
            user.profile.attributes,
            tuple(event.item_id for event in history),
            tuple(event.rating for event in history),
            tuple(event.timestamp for event in history),
        )
        return dataclasses.replace(user, profile=profile)


@dataclass(frozen=True)
class Recommendation:
    """Unseen items, best first, with their scores and titles (None if not looked up)."""

    item_ids: list[str]
    scores: Scores
    titles: list[str | None]


class RecommendFlow(ScoringFlow):
    """Carries recommendations through the graph, each with at least `retrieved` scored items."""

    def __init__(
        self, client: GraphClient, seconds: float, retrieved: int, metrics: GatewayMetrics
    ) -> None:
        super().__init__(client, seconds, metrics)
        self._retrieved = retrieved

    async def recommend(self, request: RecommendRequest, version: int) -> Recommendation:
        """Return at most k unseen items for a user.

        Raises:
            ApiError: 503 if no retriever or scorer answers, 504 after the deadline.
        """
        deadline, client = self._deadline(), self._client
        user = await self._user(deadline, request.user_id, version, request.history)
        user = dataclasses.replace(user, user_id=request.user_id)
        count = max(self._retrieved, request.k)
        retrieved = await deadline.require(
            "retriever",
            lambda: client.candidates(user, count, request.exclude, version),
            RETRIEVER_SHARE,
        )
        # The retriever excludes these too; no retriever may return an item that was seen.
        excluded = {*user.profile.item_ids, *user.met, *request.exclude}
        candidates = [item for item in retrieved if item not in excluded]
        scores = await deadline.require(
            "scorer", lambda: client.score(user, candidates, version), SCORER_SHARE
        )
        best = np.argsort(-np.array(scores.scores), kind="stable")[: max(request.k, RERANKED)]
        items, scores = [candidates[place] for place in best], _at(scores, best.tolist())
        order: Sequence[int] | None = range(len(items))
        if client.reranks and items:
            order = await deadline.optional(
                "reranker",
                lambda: client.rerank(user, items, scores.scores, version),
                "reranker",
                RERANKER_SHARE,
            )
        chosen = (range(len(items)) if order is None else order)[: request.k]
        items, scores = [items[place] for place in chosen], _at(scores, chosen)
        titles: list[str | None] | None = []
        if items:
            titles = await deadline.optional(
                "lookup", lambda: client.titles(items, version), "titles"
            )
        degraded = scores.degraded or order is None or titles is None
        scores = dataclasses.replace(scores, degraded=degraded)
        return Recommendation(items, scores, titles or [None] * len(items))


def _at(scores: Scores, places: Sequence[int]) -> Scores:
    return dataclasses.replace(
        scores,
        scores=[scores.scores[place] for place in places],
        sources=[scores.sources[place] for place in places],
    )
