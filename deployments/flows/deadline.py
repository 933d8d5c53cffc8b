"""Calls of the rest of the graph: repeated once, within a request's time budget.

A call in flight on a replica that dies is not repeated by its handle, so this repeats it once.
Whatever a hop raises, in another process or in this one, is the same failure of that hop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeVar, get_args

from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError, RequestCancelledError

from deployments.errors import RETRY_LATER, ApiError, overloaded, timed_out
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
"""Failures of a replica that another one does not have."""

logger = logging.getLogger(__name__)


def _ignore(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Hooks:
    """Who is told of what happens on the way; by default nobody.

    Args:
        retried: A call was repeated; told the hop.
        rejected: A full queue refused a call; told the hop.
        failed: A call failed for good; told the hop.
        degraded: An answer lacks something; told what, one of `metrics.LACKS`.
        refused: A promoted version could not be loaded; told its name.
        serving: The version being served, as v3.
    """

    retried: Callable[[str], None] = _ignore
    rejected: Callable[[str], None] = _ignore
    failed: Callable[[str], None] = _ignore
    degraded: Callable[[str], None] = _ignore
    refused: Callable[[str], None] = _ignore
    serving: Callable[[str], None] = _ignore


class HopError(Exception):
    """A hop has not answered.

    Args:
        hop: Which one.
        reason: What it raised.
    """

    def __init__(self, hop: Hop, reason: Exception) -> None:
        self.hop = hop
        self.reason = reason
        super().__init__(f"{hop}: {type(reason).__name__}")


class RetryThrottle:
    """Lets late calls be repeated as long as most are in time.

    A repetition finds another replica where one hangs; where all are slow it doubles their load.
    So a late call costs a token, one in time earns a tenth, and with half of them spent nothing is
    repeated (gRPC's retry throttling, gRFC A6).
    """

    MOST: Final = 10.0
    EARNED: Final = 0.1

    def __init__(self) -> None:
        self._tokens: dict[str, float] = dict.fromkeys(get_args(Hop), self.MOST)

    def allows(self, hop: Hop) -> bool:
        """Whether a late call may be repeated."""
        return self._tokens[hop] > self.MOST / 2

    def answered(self, hop: Hop) -> None:
        """Count a call in time."""
        self._tokens[hop] = min(self._tokens[hop] + self.EARNED, self.MOST)

    def late(self, hop: Hop) -> None:
        """Count a late call."""
        self._tokens[hop] = max(self._tokens[hop] - 1, 0.0)


class Deadline:
    """The time of one request.

    Args:
        seconds: All of it.
        hooks: Who is told of repeated, refused and failed calls.
        retries: Shared by all requests of a kind.
    """

    def __init__(self, seconds: float, hooks: Hooks, retries: RetryThrottle) -> None:
        self._deadline = time.monotonic() + seconds
        self._hooks = hooks
        self._retries = retries

    @property
    def left(self) -> float:
        """Seconds until the end; negative afterwards."""
        return self._deadline - time.monotonic()

    def lacks(self, what: str) -> None:
        """Tell that the answer has to do without something."""
        self._hooks.degraded(what)

    async def call(self, hop: Hop, ask: Callable[[], Awaitable[T]], share: float = 1.0) -> T:
        """The answer of a hop, asked a second time where the first one fails for its replica.

        Args:
            hop: Whom is asked, for the counters.
            ask: Asks.
            share: Share of the time left that both attempts may take together.

        Raises:
            HopError: It was not answered, in time or at all.
            ApiError: What `ask` has for the caller.
        """
        try:
            answer = await self._attempts(hop, ask, self.left * share)
        except ApiError:
            raise
        except Exception as error:  # whatever it is: nothing of the rest has failed with it
            self._tell(hop, error)
            raise HopError(hop, error) from error
        self._retries.answered(hop)
        return answer

    async def _attempts(self, hop: Hop, ask: Callable[[], Awaitable[T]], seconds: float) -> T:
        end = time.monotonic() + seconds
        repeats = self._retries.allows(hop)
        try:
            return await self._within(hop, seconds / 2 if repeats else seconds, ask)
        except (*GONE, TimeoutError) as error:
            if isinstance(error, TimeoutError) and not repeats:
                raise
            self._hooks.retried(hop)
            return await self._within(hop, end - time.monotonic(), ask)

    async def _within(self, hop: Hop, seconds: float, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            # Not wait_for: that makes a task of every call.
            async with asyncio.timeout(seconds):
                return await ask()
        except TimeoutError:
            self._retries.late(hop)
            raise

    def _tell(self, hop: Hop, error: Exception) -> None:
        if isinstance(error, BackPressureError):
            self._hooks.rejected(hop)
            return
        self._hooks.failed(hop)
        told = cause_of(error)
        if told is not None:
            logger.warning("%s has failed: %s", hop, told)
        elif isinstance(error, (*GONE, TimeoutError)):
            logger.warning("%s does not answer: %s", hop, type(error).__name__)
        else:
            logger.error("%s has failed", hop, exc_info=error)


def refusal(failure: HopError) -> ApiError:
    """What the caller is told where a hop that nothing can replace has failed."""
    if isinstance(failure.reason, BackPressureError):
        return overloaded()
    if isinstance(failure.reason, TimeoutError):
        return timed_out()
    if isinstance(cause_of(failure.reason), NotFiniteError):
        return ApiError(503, "no_scores", "The served model has no finite scores for this request.")
    return unavailable(failure.hop)


def unavailable(hop: Hop) -> ApiError:
    """What the caller is told where nobody answers."""
    return ApiError(
        503, f"{hop}_unavailable", f"No {hop} can be reached; ask again.", headers=RETRY_LATER
    )
