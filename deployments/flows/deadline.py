"""Calls to the rest of the graph: retried once, within the deadline of a request.

Serve's handle does not repeat a call that was in flight on a replica that died; this does, once.
Any error of a hop, in this or another process, becomes a `HopError`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeVar, get_args

from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError, RequestCancelledError

from deployments.errors import ApiError, overloaded, retry_later, timed_out
from deployments.middleware.metrics import GatewayMetrics
from reki_ray.core.ray_cluster import cause_of
from reki_ray.errors import NotFiniteError

T = TypeVar("T")
Hop = Literal["lookup", "retriever", "scorer", "reranker"]

GONE = (
    ActorDiedError,
    ActorUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,  # by a replica that shuts down
)
"""Errors of a replica that another replica does not have."""

logger = logging.getLogger(__name__)


class HopError(Exception):
    """A hop has not answered, because of `reason`."""

    def __init__(self, hop: Hop, reason: Exception) -> None:
        self.hop = hop
        self.reason = reason
        super().__init__(f"{hop}: {type(reason).__name__}")


class RetryThrottle:
    """Allows retries of late calls while most calls are in time.

    A retry helps if one replica hangs; if all are slow, it doubles their load. A late call costs a
    token, a call in time earns a tenth, and below half of the tokens nothing is retried (gRPC's
    retry throttling, gRFC A6).
    """

    MOST: Final = 10.0
    EARNED: Final = 0.1

    def __init__(self) -> None:
        self._tokens: dict[str, float] = dict.fromkeys(get_args(Hop), self.MOST)

    def allows(self, hop: Hop) -> bool:
        """Return whether a late call may be repeated."""
        return self._tokens[hop] > self.MOST / 2

    def answered(self, hop: Hop) -> None:
        """Count a call in time."""
        self._tokens[hop] = min(self._tokens[hop] + self.EARNED, self.MOST)

    def late(self, hop: Hop) -> None:
        """Count a late call."""
        self._tokens[hop] = max(self._tokens[hop] - 1, 0.0)


class Deadline:
    """The deadline of one request, which all of its calls share.

    Args:
        seconds: Time from now on.
        throttle: Shared by all requests of a kind.
    """

    def __init__(self, seconds: float, metrics: GatewayMetrics, throttle: RetryThrottle) -> None:
        self._end = time.monotonic() + seconds
        self._metrics = metrics
        self._throttle = throttle

    async def call(self, hop: Hop, call: Callable[[], Awaitable[T]], share: float = 1.0) -> T:
        """Return the answer of a hop; retry once if its replica is gone or late.

        Args:
            share: Share of the remaining time for both attempts together.

        Raises:
            HopError: Both attempts failed.
            ApiError: From `call`, for the caller of the service.
        """
        seconds = share * (self._end - time.monotonic())
        try:
            answer = await self._attempts(hop, call, seconds)
        except ApiError:
            raise
        except Exception as error:
            self._report(hop, error)
            raise HopError(hop, error) from error
        self._throttle.answered(hop)
        return answer

    async def require(self, hop: Hop, call: Callable[[], Awaitable[T]], share: float = 1.0) -> T:
        """Return the answer of a hop without fallback, as `call` does.

        Raises:
            ApiError: 503 if the hop does not answer, 504 after the deadline.
        """
        try:
            return await self.call(hop, call, share)
        except HopError as failure:
            raise _refusal(failure) from failure

    async def optional(
        self, hop: Hop, call: Callable[[], Awaitable[T]], lack: str, share: float = 1.0
    ) -> T | None:
        """Return the answer of a hop; None, counted as `lack`, if it does not answer."""
        try:
            return await self.call(hop, call, share)
        except HopError:
            self._metrics.degraded(lack)
            return None

    async def _attempts(self, hop: Hop, call: Callable[[], Awaitable[T]], seconds: float) -> T:
        end = time.monotonic() + seconds
        retries = self._throttle.allows(hop)
        try:
            return await self._within(hop, seconds / 2 if retries else seconds, call)
        except (*GONE, TimeoutError) as error:
            if isinstance(error, TimeoutError) and not retries:
                raise
            self._metrics.retried(hop)
            return await self._within(hop, end - time.monotonic(), call)

    async def _within(self, hop: Hop, seconds: float, call: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(seconds):  # wait_for would create a task per call
                return await call()
        except TimeoutError:
            self._throttle.late(hop)
            raise

    def _report(self, hop: Hop, error: Exception) -> None:
        if isinstance(error, BackPressureError):
            self._metrics.queue_rejected(hop)
            return
        self._metrics.hop_failed(hop)
        cause = cause_of(error)
        if cause is not None:
            logger.warning("%s failed: %s", hop, cause)
        elif isinstance(error, (*GONE, TimeoutError)):
            logger.warning("%s does not answer: %s", hop, type(error).__name__)
        else:
            logger.error("%s failed", hop, exc_info=error)


def _refusal(failure: HopError) -> ApiError:
    """Return the error for the caller if a hop without fallback failed."""
    if isinstance(failure.reason, BackPressureError):
        return overloaded()
    if isinstance(failure.reason, TimeoutError):
        return timed_out()
    if isinstance(cause_of(failure.reason), NotFiniteError):
        return ApiError(503, "no_scores", "The served model has no finite scores for this request.")
    return unavailable(failure.hop)


def unavailable(hop: Hop) -> ApiError:
    """Return the error for the caller if no replica of a hop answers."""
    return retry_later(f"{hop}_unavailable", f"No {hop} is available; try again.")
