"""A recommendation: retrieve, score, rerank, within its deadline.

If the reranker fails, the order of the scores remains; if titles fail, they are empty; the answer
says so. Without a retriever or a scorer it is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from deployments.flows.graph_client import GraphClient
from deployments.flows.score import ScoringFlow
from deployments.middleware.metrics import GatewayMetrics
from deployments.parts.records import Scores
from deployments.schemas import RecommendRequest

RETRIEVER_SHARE: Final = 0.4
SCORER_SHARE: Final = 0.7
RERANKER_SHARE: Final = 0.6
"""Shares of the remaining time for both attempts of a hop."""

RERANKED: Final = 50
"""Least number of items for the reranker, which looks at a list as a whole."""


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
