"""Bounds and threads per kind of work, so that one that hangs blocks only its own kind."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from typing_extensions import override

T = TypeVar("T")


class FullError(Exception):
    """The bound on concurrent work of a kind is reached."""


class Bound(asyncio.Semaphore):
    """Limits concurrent work in an event loop; queueing would only delay all of it.

    Raises:
        FullError: On entry, if the bound is reached.
    """

    @override
    async def __aenter__(self) -> None:
        if self.locked():
            raise FullError
        await super().__aenter__()


class Bulkhead:
    """Runs blocking calls of one kind in its own threads, each call for at most `seconds`.

    A call that hangs keeps its thread after its timeout.
    """

    def __init__(self, name: str, threads: int, seconds: float) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._threads = threads
        self._seconds = seconds
        self._started: dict[Future[Any], float] = {}

    @property
    def longest(self) -> float:
        """Seconds since the oldest running call started; 0 if none runs."""
        now = time.monotonic()
        return now - min(tuple(self._started.values()), default=now)

    async def run(self, call: Callable[[], T]) -> T:
        """Return the result of a call.

        Raises:
            FullError: All threads are busy.
            TimeoutError: It takes too long; it continues in its thread.
        """
        if len(self._started) >= self._threads:
            raise FullError
        # Like asyncio.to_thread, so that log lines have the request's id.
        future = self._pool.submit(contextvars.copy_context().run, call)
        self._started[future] = time.monotonic()
        future.add_done_callback(lambda done: self._started.pop(done, None))
        async with asyncio.timeout(self._seconds):
            return await asyncio.wrap_future(future)
