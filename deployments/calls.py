"""Calls of the rest of the graph: repeated once, within a request's time budget.

A call in flight on a replica that dies is not repeated by its handle, so this repeats it once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError, RequestCancelledError

from deployments.errors import RETRY_LATER, ApiError, overloaded, timed_out

T = TypeVar("T")
Hop = Literal["lookup", "retriever", "scorer", "reranker"]

REPEATED = (
    ActorDiedError,
    ActorUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,  # by a replica that shuts down
    TimeoutError,
)
"""Failures that another replica, or the same one a moment later, may not have."""


def _ignore(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Hooks:
    """Who is told of what happens on the way; by default nobody.

    Args:
        retried: A call was repeated; told the hop.
        rejected: A full queue refused a call; told the hop.
        refused: A promoted version could not be loaded; told its name.
        serving: The version being served, as v3.
    """

    retried: Callable[[str], None] = _ignore
    rejected: Callable[[str], None] = _ignore
    refused: Callable[[str], None] = _ignore
    serving: Callable[[str], None] = _ignore


class Budget:
    """The time of one request.

    Args:
        seconds: All of it.
        hooks: Who is told of repeated and refused calls.
    """

    def __init__(self, seconds: float, hooks: Hooks) -> None:
        self._deadline = time.monotonic() + seconds
        self._hooks = hooks

    @property
    def left(self) -> float:
        """Seconds until the end; negative afterwards."""
        return self._deadline - time.monotonic()

    async def call(self, hop: Hop, ask: Callable[[], Awaitable[T]], share: float = 1.0) -> T:
        """The answer of a hop, asked a second time where the first one fails for its replica.

        Args:
            hop: Whom is asked, for the counters.
            ask: Asks.
            share: Share of the time left that both attempts may take together.

        Raises:
            TimeoutError: Neither attempt was answered in time.
            BackPressureError: The queue is full; this is never repeated.
            Exception: What the second attempt raised.
        """
        seconds = self.left * share / 2
        try:
            try:
                return await _within(seconds, ask)
            except REPEATED:
                self._hooks.retried(hop)
                return await _within(seconds, ask)
        except BackPressureError:
            self._hooks.rejected(hop)
            raise


async def _within(seconds: float, ask: Callable[[], Awaitable[T]]) -> T:
    # Not wait_for: that makes a task of every call.
    async with asyncio.timeout(seconds):
        return await ask()


def refusal(hop: Hop, error: Exception) -> ApiError:
    """What the caller is told where a hop that nothing can replace has failed."""
    if isinstance(error, BackPressureError):
        return overloaded()
    if isinstance(error, TimeoutError):
        return timed_out()
    return ApiError(
        503, f"{hop}_unavailable", f"No {hop} can be reached; ask again.", headers=RETRY_LATER
    )
