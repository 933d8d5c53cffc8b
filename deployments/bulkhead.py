"""Each kind of work has a bound and threads of its own: what hangs takes nothing from the rest."""

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
    """As much of this kind is in work as may be."""


class Bound:
    """Bounds what is in work in an event loop: beyond, waiting would only make all of it late.

    Args:
        most: Most at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Counts for the work in the block.

        Raises:
            FullError: No more is taken in.
        """
        if self._taken >= self._most:
            raise FullError
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class Bulkhead:
    """Runs blocking calls of one kind in threads of their own.

    Args:
        name: Begin of the threads' names.
        threads: Most calls at once. One that hangs keeps its thread until it ends, whoever has
            given up waiting for it.
        seconds: Time that a caller waits.
    """

    def __init__(self, name: str, threads: int, seconds: float) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._threads = threads
        self._seconds = seconds
        self._begun: dict[Future[Any], float] = {}

    @property
    def longest(self) -> float:
        """Seconds for which the oldest call has been in work; 0 where none is."""
        now = time.monotonic()
        return now - min(tuple(self._begun.values()), default=now)

    async def run(self, call: Callable[[], T]) -> T:
        """What a call returns.

        Raises:
            FullError: All threads are at work.
            TimeoutError: It takes too long; it goes on without its caller.
        """
        if len(self._begun) >= self._threads:
            raise FullError
        # As `asyncio.to_thread` does: log lines name the request.
        future = self._pool.submit(contextvars.copy_context().run, call)
        self._begun[future] = time.monotonic()
        future.add_done_callback(self._ended)
        async with asyncio.timeout(self._seconds):
            return await asyncio.wrap_future(future)

    def _ended(self, future: Future[Any]) -> None:
        self._begun.pop(future, None)
