"""A score request: lookup, then scorer, within its deadline.

Without a lookup, scores use fallbacks and the answer says so; without a scorer it is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

from deployments.flows.deadline import Deadline, RetryThrottle
from deployments.flows.graph_client import GraphClient
from deployments.middleware.metrics import GatewayMetrics
from deployments.parts.records import Scores, UserRecord
from deployments.schemas import HistoryItem
from reki_ray.config.serve import LOOKUP_SHARE
from reki_ray.store.tables import Profile


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
