"""Batches built in the background while the network computes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")

_CLOSE_SECONDS = 30.0


class Prefetched(Generic[T]):
    """Elements of an iterator, in order, computed ahead in a thread that ends with the block.

    An error of the iterator is raised in place of its element.

    Args:
        source: Computes the elements; used in the thread alone, and closed there.
        ahead: Most elements in the queue; 0 computes each on demand, without a thread.
    """

    def __init__(self, source: Iterator[T], ahead: int) -> None:
        self._source = source
        self._ahead = ahead
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ready: deque[Future[T]] = deque()
        self.waited = 0.0
        """Seconds spent waiting for elements."""

    def __enter__(self) -> Self:
        self._ready.extend(self._executor.submit(next, self._source) for _ in range(self._ahead))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        left: list[Future[Any]] = [future for future in self._ready if not future.cancel()]
        if isinstance(self._source, Generator):
            left.append(self._executor.submit(self._source.close))
        # A hanging source must not hide the error that ended the block.
        hanging = wait(left, _CLOSE_SECONDS).not_done
        self._executor.shutdown(wait=not hanging)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        started = time.perf_counter()
        try:
            if not self._ahead:
                return next(self._source)
            self._ready.append(self._executor.submit(next, self._source))
            return self._ready.popleft().result()
        finally:
            self.waited += time.perf_counter() - started
