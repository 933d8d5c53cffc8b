"""One score request through lookup and scorer, within a time budget.

Without a lookup the request is scored with fallbacks and says so; without a scorer there is
nothing to answer with.
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
    """Carries score requests through the graph.

    Args:
        backend: The rest of the graph.
        budget_seconds: Time of one request.
        hooks: Told of repeated and refused calls.
    """

    def __init__(
        self, backend: GraphClient, budget_seconds: float, hooks: Hooks | None = None
    ) -> None:
        self._backend = backend
        self._seconds = budget_seconds
        self._hooks = hooks or Hooks()
        self._retries = RetryThrottle()

    async def score(
        self,
        user_id: str,
        candidates: Sequence[str],
        version: int,
        history: Sequence[HistoryItem] | None = None,
    ) -> Scores:
        """Scores of candidates, in their order.

        Args:
            user_id: The user.
            candidates: Item ids, also unknown ones.
            version: Number of the version to answer from.
            history: Past interactions in place of the stored ones; None takes the stored ones.

        Raises:
            ApiError: 503 where no scorer can be reached, 504 where the budget is spent.
        """
        budget = Deadline(self._seconds, self._hooks, self._retries)
        user = await find_user(self._backend, budget, user_id, version, history)
        try:
            return await budget.call(
                "scorer", lambda: self._backend.score(user, candidates, version)
            )
        except HopError as failure:
            raise refusal(failure) from failure


async def find_user(
    backend: GraphClient,
    budget: Deadline,
    user_id: str,
    version: int,
    history: Sequence[HistoryItem] | None,
) -> UserRecord:
    """What the lookup knows of a user; nothing where it cannot be asked, which scorers tell.

    Args:
        backend: The rest of the graph.
        budget: Time of the request.
        user_id: The user.
        version: Number of the version to answer from.
        history: Past interactions in place of the stored ones; None takes the stored ones.
    """
    try:
        user = await budget.call("lookup", lambda: backend.user(user_id, version), LOOKUP_SHARE)
    except HopError:
        budget.lacks("lookup")
        user = UserRecord()
    if user.lack:
        budget.lacks(user.lack)
    if history is None:
        return user
    return dataclasses.replace(user, profile=with_history(user.profile, history))


def with_history(profile: Profile, history: Sequence[HistoryItem]) -> Profile:
    """The profile with a request's history in place of the stored one."""
    return Profile(
        profile.attributes,
        tuple(event.item_id for event in history),
        tuple(event.rating for event in history),
        tuple(event.timestamp for event in history),
    )
