"""One recommendation: retrieve, score, rerank, within a time budget.

A reranker that fails leaves the order of the scores, titles that fail stay empty, and the answer
says so; without a retriever or a scorer there is nothing to answer with.
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
"""Shares of the time then left that both attempts of a hop may take."""

RERANKED: Final = 50
"""Items that the reranker sees at least: it looks at a list as a whole."""


@dataclass(frozen=True)
class Recommendation:
    """Items, the best one first.

    Args:
        item_ids: Unseen items.
        scores: Of the items, in the same order.
        titles: Of the items; None where they could not be looked up.
        degraded: Whether a part of the graph could not be asked.
    """

    item_ids: list[str]
    scores: Scores
    titles: list[str | None]
    degraded: bool


class RecommendFlow:
    """Carries recommendations through the graph.

    Args:
        backend: The rest of the graph.
        budget_seconds: Time of one request.
        retrieved: Items that are scored for one answer; more where more are asked for.
        hooks: Told of repeated and refused calls.
    """

    def __init__(
        self,
        backend: GraphClient,
        budget_seconds: float,
        retrieved: int,
        hooks: Hooks | None = None,
    ) -> None:
        self._backend = backend
        self._seconds = budget_seconds
        self._retrieved = retrieved
        self._hooks = hooks or Hooks()
        self._retries = RetryThrottle()

    async def recommend(self, request: RecommendRequest, version: int) -> Recommendation:
        """At most k unseen items for one user.

        Raises:
            ApiError: 404 in a graph without retriever, 503 where retriever or scorer cannot be
                reached, 504 where the budget is spent.
        """
        budget = Deadline(self._seconds, self._hooks, self._retries)
        user = await find_user(self._backend, budget, request.user_id, version, request.history)
        user = dataclasses.replace(user, user_id=request.user_id)
        found = await self._candidates(budget, user, request, version)
        scores = await self._scores(budget, user, found, version)
        best = np.argsort(-np.array(scores.scores), kind="stable")[: max(request.k, RERANKED)]
        items, scores = [found[place] for place in best], _at(scores, best.tolist())
        order = await self._order(budget, user, items, scores, version)
        chosen = (range(len(items)) if order is None else order)[: request.k]
        items, scores = [items[place] for place in chosen], _at(scores, chosen)
        titles = await self._titles(budget, items, version)
        return Recommendation(
            items,
            scores,
            titles or [None] * len(items),
            scores.degraded or order is None or titles is None,
        )

    async def _candidates(
        self, budget: Deadline, user: UserRecord, request: RecommendRequest, version: int
    ) -> list[str]:
        count = max(self._retrieved, request.k)
        try:
            found = await budget.call(
                "retriever",
                lambda: self._backend.candidates(user, count, request.exclude, version),
                RETRIEVER_SHARE,
            )
        except HopError as failure:
            raise refusal(failure) from failure
        # The retriever leaves these out too; an item that was seen must not come from any.
        left_out = {*user.profile.item_ids, *user.met, *request.exclude}
        return [item for item in found if item not in left_out]

    async def _scores(
        self, budget: Deadline, user: UserRecord, items: Sequence[str], version: int
    ) -> Scores:
        try:
            return await budget.call(
                "scorer", lambda: self._backend.score(user, items, version), SCORER_SHARE
            )
        except HopError as failure:
            raise refusal(failure) from failure

    async def _order(
        self,
        budget: Deadline,
        user: UserRecord,
        items: Sequence[str],
        scores: Scores,
        version: int,
    ) -> Sequence[int] | None:
        """Places of the items, the best one first; None where the reranker cannot be asked."""
        if not self._backend.reranks or not items:
            return range(len(items))
        try:
            return await budget.call(
                "reranker",
                lambda: self._backend.rerank(user, items, scores.scores, version),
                RERANKER_SHARE,
            )
        except HopError:  # the order of the scores stays
            budget.lacks("reranker")
            return None

    async def _titles(
        self, budget: Deadline, items: Sequence[str], version: int
    ) -> list[str | None] | None:
        if not items:
            return []
        try:
            return await budget.call("lookup", lambda: self._backend.titles(items, version))
        except HopError:
            budget.lacks("titles")
            return None


def _at(scores: Scores, places: Sequence[int]) -> Scores:
    return Scores(
        [scores.scores[place] for place in places],
        [scores.sources[place] for place in places],
        scores.user_source,
        scores.degraded,
        scores.variant,
        scores.model_version,
        scores.store_version,
    )
