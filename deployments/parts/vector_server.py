"""Calls to a vector server: in their own threads, with a timeout, and not while it is down."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from deployments.bulkhead import Bulkhead, FullError
from reki_ray.config import AdapterSettings
from reki_ray.errors import StoreError
from reki_ray.store.kv import VectorsLostError

T = TypeVar("T")

THREADS: Final = 16
"""Concurrent calls of one replica to the server."""


class CircuitBreaker:
    """Spares callers the wait for a server that does not answer.

    It opens after `failures` in a row, and then allows a trial call every `seconds`.
    """

    def __init__(
        self,
        failures: int = 3,
        seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = failures
        self._seconds = seconds
        self._clock = clock
        self._in_row = 0
        self._next = 0.0

    def allows(self) -> bool:
        """Return whether to call now; while open, this takes the one trial call."""
        if self._in_row < self._most:
            return True
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True

    def succeeded(self) -> None:
        """Record an answered call."""
        self._in_row = 0

    def failed(self) -> None:
        """Record a failed call."""
        self._in_row += 1
        self._next = self._clock() + self._seconds


class VectorServer:
    """The vector server as one replica calls it."""

    def __init__(self, settings: AdapterSettings) -> None:
        self._bulkhead = Bulkhead("vectors", THREADS, settings.timeout_seconds)
        self._breaker = CircuitBreaker()

    async def run(self, call: Callable[[], T]) -> T:
        """Return the result of a call to the server.

        Raises:
            VectorsLostError: The server was emptied.
            StoreError: It does not answer, or recently has not.
        """
        if not self._breaker.allows():
            raise _silent("has not answered recently")
        try:
            answer = await self._bulkhead.run(call)
        except VectorsLostError:
            self._breaker.succeeded()
            raise
        except StoreError:
            self._breaker.failed()
            raise
        except (FullError, TimeoutError) as error:
            self._breaker.failed()
            raise _silent("does not answer in time") from error
        self._breaker.succeeded()
        return answer


def _silent(what: str) -> StoreError:
    return StoreError(
        f"the vector server {what}",
        where="store.vectors.url",
        todo="Check that it runs, and store.vectors.timeout_seconds.",
    )
