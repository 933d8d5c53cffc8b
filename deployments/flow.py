"""One score request through lookup and scorer, within a time budget.

A call in flight on a replica that dies is not repeated by its handle, so this repeats it
once. Without a lookup the request is scored with fallbacks and says so; without a scorer
there is nothing to answer with.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError
from ray.serve.exceptions import RayServeException

from deployments.errors import ApiError
from deployments.messages import Scores, UserRecord
from deployments.schemas import HistoryItem, ItemScore, ScoreRequest, ScoreResponse, UserInfo
from reki_ray.store.contents import Profile

T = TypeVar("T")
Hop = Literal["lookup", "scorer"]

REPEATED = (ActorDiedError, ActorUnavailableError, TimeoutError)
"""Failures that another replica, or the same one a moment later, may not have."""

FAILURES = (RayError, RayServeException, TimeoutError)
"""Everything that a call of another deployment raises when it fails."""

LOOKUP_SHARE = 0.2
"""Share of the budget that one attempt of the lookup may take; two leave most to the scorer."""

logger = logging.getLogger(__name__)


class ScoringFlow:
    """Carries score requests through the graph.

    Args:
        lookup: Asks for a user.
        scorer: Scores candidates of a user.
        budget_seconds: Time of one request.
        on_retry: Told of the hop whenever a call is repeated.
    """

    def __init__(
        self,
        lookup: Callable[[str], Awaitable[UserRecord]],
        scorer: Callable[[UserRecord, list[str]], Awaitable[Scores]],
        budget_seconds: float,
        on_retry: Callable[[Hop], None] = lambda _: None,
    ) -> None:
        self._lookup = lookup
        self._scorer = scorer
        self._budget = budget_seconds
        self._on_retry = on_retry

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Answer one request.

        Raises:
            ApiError: 503 where no scorer can be reached, 504 where the budget is spent.
        """
        deadline = time.monotonic() + self._budget
        user = await self._user(request.user_id)
        if request.history is not None:
            user = dataclasses.replace(user, profile=with_history(user.profile, request.history))
        remaining = deadline - time.monotonic()
        try:
            found = await self._twice(
                "scorer",
                lambda: self._scorer(user, request.candidates),
                (remaining / 2, remaining / 2),
            )
        except FAILURES as error:
            raise _no_scores(error) from error
        return ScoreResponse(
            request_id=request.request_id or uuid.uuid4().hex,
            model_version=found.model_version,
            store_version=found.store_version,
            variant=found.variant,
            user=UserInfo(source=found.user_source),
            scores=[
                ItemScore(item_id=item, score=score, source=source)
                for item, score, source in zip(
                    request.candidates, found.scores, found.sources, strict=True
                )
            ],
            degraded=found.degraded,
        )

    async def _user(self, user_id: str) -> UserRecord:
        share = self._budget * LOOKUP_SHARE
        try:
            return await self._twice("lookup", lambda: self._lookup(user_id), (share, share))
        except FAILURES as error:
            logger.warning("lookup failed, scoring with fallbacks: %s", type(error).__name__)
            return UserRecord()

    async def _twice(
        self, hop: Hop, call: Callable[[], Awaitable[T]], seconds: tuple[float, float]
    ) -> T:
        try:
            return await asyncio.wait_for(call(), seconds[0])
        except REPEATED:
            self._on_retry(hop)
            return await asyncio.wait_for(call(), seconds[1])


def with_history(profile: Profile, history: Sequence[HistoryItem]) -> Profile:
    """The profile with a request's history in place of the stored one."""
    return Profile(
        profile.attributes,
        tuple(event.item_id for event in history),
        tuple(event.rating for event in history),
        tuple(event.timestamp for event in history),
    )


def _no_scores(error: Exception) -> ApiError:
    retry = {"Retry-After": "1"}
    if isinstance(error, TimeoutError):
        return ApiError(504, "timeout", "The time budget is spent; ask again.", headers=retry)
    return ApiError(
        503, "scorer_unavailable", "No scorer can be reached; ask again.", headers=retry
    )
