"""Asking a server of vectors: in threads of its own, within its time, and not while it is away."""

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
"""Questions to the server at once, of one replica."""


class CircuitBreaker:
    """Spares callers the wait for somebody who does not answer.

    After some failures in a row it lets one call through from time to time, until one succeeds.

    Args:
        failures: Failures in a row after which it opens.
        seconds: Time between two calls while it is open.
        clock: Seconds, monotonic.
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
        """Whether to call now; counts as the one call while it is open."""
        if self._in_row < self._most:
            return True
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True

    def succeeded(self) -> None:
        """A call was answered."""
        self._in_row = 0

    def failed(self) -> None:
        """A call was not answered."""
        self._in_row += 1
        self._next = self._clock() + self._seconds


class VectorServer:
    """The server that one replica looks vectors up on.

    Args:
        settings: Its address, and the time of a call.
    """

    def __init__(self, settings: AdapterSettings) -> None:
        self._bulkhead = Bulkhead("vectors", THREADS, settings.timeout_seconds)
        self._breaker = CircuitBreaker()

    async def ask(self, call: Callable[[], T]) -> T:
        """The answer to a question.

        Raises:
            VectorsLostError: The server was emptied.
            StoreError: It does not answer, or has not of late.
        """
        if not self._breaker.allows():
            raise _silent("has not answered of late")
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
        f"the server of vectors {what}",
        where="store.vectors.url",
        todo="See whether it runs, and set store.vectors.timeout_seconds.",
    )
