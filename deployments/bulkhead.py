"""Bounds and threads per kind of work, so that one that hangs blocks only its own kind."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class FullError(Exception):
    """The bound on concurrent work of a kind is reached."""


class Bound:
    """Limits concurrent work in an event loop to `most`; queueing would only delay all of it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Count the work in the block; raises FullError beyond the bound."""
        if self._taken >= self._most:
            raise FullError
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


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
