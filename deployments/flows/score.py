"""A score request: lookup, then scorer, within its deadline.

Without a lookup, scores use fallbacks and the answer says so; without a scorer it is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from deployments.flows.deadline import Deadline, Hooks, HopError, RetryThrottle, refusal
from deployments.flows.graph_client import GraphClient
from deployments.parts.records import Scores, UserRecord
from deployments.schemas import HistoryItem
from reki_ray.config.serve import LOOKUP_SHARE
from reki_ray.store.tables import Profile


class ScoringFlow:
    """Carries score requests through the graph, each with a deadline of `seconds`."""

    def __init__(self, client: GraphClient, seconds: float, hooks: Hooks | None = None) -> None:
        self._client = client
        self._seconds = seconds
        self._hooks = hooks or Hooks()
        self._throttle = RetryThrottle()

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
        deadline = Deadline(self._seconds, self._hooks, self._throttle)
        user = await find_user(self._client, deadline, user_id, version, history)
        try:
            return await deadline.call(
                "scorer", lambda: self._client.score(user, candidates, version)
            )
        except HopError as failure:
            raise refusal(failure) from failure


async def find_user(
    client: GraphClient,
    deadline: Deadline,
    user_id: str,
    version: int,
    history: Sequence[HistoryItem] | None,
) -> UserRecord:
    """Look up a user; return an empty record if the lookup does not answer."""
    try:
        user = await deadline.call("lookup", lambda: client.user(user_id, version), LOOKUP_SHARE)
    except HopError:
        deadline.lacks("lookup")
        user = UserRecord()
    if user.lack:
        deadline.lacks(user.lack)
    if history is None:
        return user
    profile = Profile(
        user.profile.attributes,
        tuple(event.item_id for event in history),
        tuple(event.rating for event in history),
        tuple(event.timestamp for event in history),
    )
    return dataclasses.replace(user, profile=profile)
