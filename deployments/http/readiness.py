"""Readiness of a gateway."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Final, Protocol

from deployments.errors import OVERLOADED, ApiError

FRESH_SECONDS: Final = 2.0
"""Age up to which an answer or a failed check counts as current."""


class Check(Protocol):
    """Sends a request through the graph."""

    async def __call__(self, *, first: bool) -> None:
        """Raise an ApiError if the request fails, or with `first` if the answer is degraded."""


class Readiness:
    """Checks the graph, one check at a time, unless a recent request was answered."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._checking = asyncio.Lock()
        self._was_ready = False
        self._answered_at = self._checked_at = -math.inf
        self._refusal: ApiError | None = None

    def answered(self, *, degraded: bool) -> None:
        """Record an answered request."""
        self._answered_at = time.monotonic()
        self._was_ready = self._was_ready or not degraded

    async def require(self) -> None:
        """Raise an ApiError unless requests are answered."""
        async with self._checking:
            now = time.monotonic()
            if not self._was_ready or now > FRESH_SECONDS + max(
                self._answered_at, self._checked_at
            ):
                await self._run_check()
            elif now - self._answered_at <= FRESH_SECONDS:
                self._refusal = None
        if self._refusal is not None:
            raise self._refusal

    async def _run_check(self) -> None:
        try:
            await self._check(first=not self._was_ready)
        except ApiError as error:
            # Without a busy replica, the others would have even more to do.
            self._refusal = None if error.code == OVERLOADED and self._was_ready else error
        else:
            self._was_ready, self._refusal = True, None
        self._checked_at = time.monotonic()
