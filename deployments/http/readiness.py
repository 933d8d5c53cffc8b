"""Whether a gateway can answer now."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Final, Protocol

from deployments.errors import OVERLOADED, ApiError

FRESH_SECONDS: Final = 2.0
"""What was seen so recently, an answer or its lack, is not looked for again."""


class Check(Protocol):
    """Sends a request through the graph; raises an `ApiError` where it is not answered."""

    async def __call__(self, *, first: bool) -> None:
        """With `first`, only a whole answer will do."""


class Readiness:
    """Asks the graph where no request has shown of late that it answers, one check at a time.

    Args:
        check: Sends a request through the graph.
    """

    def __init__(self, check: Check) -> None:
        self._check = check
        self._checking = asyncio.Lock()
        self._was_ready = False
        self._answered_at = self._looked_at = -math.inf
        self._refusal: ApiError | None = None

    def answered(self, *, degraded: bool) -> None:
        """A request was answered."""
        self._answered_at = time.monotonic()
        self._was_ready = self._was_ready or not degraded

    async def require(self) -> None:
        """Return where requests are answered.

        Raises:
            ApiError: They are not.
        """
        async with self._checking:
            now = time.monotonic()
            if not self._was_ready or now - max(self._answered_at, self._looked_at) > FRESH_SECONDS:
                await self._look()
            elif now - self._answered_at <= FRESH_SECONDS:
                self._refusal = None
        if self._refusal is not None:
            raise self._refusal

    async def _look(self) -> None:
        try:
            await self._check(first=not self._was_ready)
        except ApiError as error:
            # A busy replica is no dead one: taken away, it would leave the others more to do.
            self._refusal = None if error.code == OVERLOADED and self._was_ready else error
        else:
            self._was_ready, self._refusal = True, None
        self._looked_at = time.monotonic()
