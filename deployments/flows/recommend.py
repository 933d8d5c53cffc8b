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

from deployments.flows.deadline import Deadline, Hooks, HopError, RetryThrottle, refusal
from deployments.flows.graph_client import GraphClient
from deployments.flows.score import find_user
from deployments.parts.records import Scores, UserRecord
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
    degraded: bool


class RecommendFlow:
    """Carries recommendations through the graph.

    Args:
        client: Calls the rest of the graph.
        seconds: Deadline of a request.
        retrieved: Items to score for an answer, at least.
        hooks: Callbacks for metrics.
    """

    def __init__(
        self, client: GraphClient, seconds: float, retrieved: int, hooks: Hooks | None = None
    ) -> None:
        self._client = client
        self._seconds = seconds
        self._retrieved = retrieved
        self._hooks = hooks or Hooks()
        self._throttle = RetryThrottle()

    async def recommend(self, request: RecommendRequest, version: int) -> Recommendation:
        """Return at most k unseen items for a user.

        Raises:
            ApiError: 404 in a graph without retriever, 503 if no retriever or scorer answers, 504
                after the deadline.
        """
        deadline, client = Deadline(self._seconds, self._hooks, self._throttle), self._client
        user = await find_user(client, deadline, request.user_id, version, request.history)
        user = dataclasses.replace(user, user_id=request.user_id)
        candidates = await self._candidates(deadline, user, request, version)
        try:
            scores = await deadline.call(
                "scorer", lambda: client.score(user, candidates, version), SCORER_SHARE
            )
        except HopError as failure:
            raise refusal(failure) from failure
        best = np.argsort(-np.array(scores.scores), kind="stable")[: max(request.k, RERANKED)]
        items, scores = [candidates[place] for place in best], _at(scores, best.tolist())
        order = await self._order(deadline, user, items, scores, version)
        chosen = (range(len(items)) if order is None else order)[: request.k]
        items, scores = [items[place] for place in chosen], _at(scores, chosen)
        titles = await self._titles(deadline, items, version)
        return Recommendation(
            items,
            scores,
            titles or [None] * len(items),
            scores.degraded or order is None or titles is None,
        )

    async def _candidates(
        self, deadline: Deadline, user: UserRecord, request: RecommendRequest, version: int
    ) -> list[str]:
        count = max(self._retrieved, request.k)
        try:
            candidates = await deadline.call(
                "retriever",
                lambda: self._client.candidates(user, count, request.exclude, version),
                RETRIEVER_SHARE,
            )
        except HopError as failure:
            raise refusal(failure) from failure
        # The retriever excludes these too; no retriever may return an item that was seen.
        excluded = {*user.profile.item_ids, *user.met, *request.exclude}
        return [item for item in candidates if item not in excluded]

    async def _order(
        self,
        deadline: Deadline,
        user: UserRecord,
        items: Sequence[str],
        scores: Scores,
        version: int,
    ) -> Sequence[int] | None:
        """Return the places of the items, best first; None if the reranker does not answer."""
        if not self._client.reranks or not items:
            return range(len(items))
        try:
            return await deadline.call(
                "reranker",
                lambda: self._client.rerank(user, items, scores.scores, version),
                RERANKER_SHARE,
            )
        except HopError:
            deadline.lacks("reranker")
            return None

    async def _titles(
        self, deadline: Deadline, items: Sequence[str], version: int
    ) -> list[str | None] | None:
        if not items:
            return []
        try:
            return await deadline.call("lookup", lambda: self._client.titles(items, version))
        except HopError:
            deadline.lacks("titles")
            return None


def _at(scores: Scores, places: Sequence[int]) -> Scores:
    return dataclasses.replace(
        scores,
        scores=[scores.scores[place] for place in places],
        sources=[scores.sources[place] for place in places],
    )
