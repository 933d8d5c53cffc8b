"""Batches built in the background while the network computes."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from queue import Full, Queue
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

_LOOK_SECONDS = 0.05
"""Interval at which a blocked producer checks whether it was cancelled."""

_JOIN_SECONDS = 30.0


class _End:
    """Marks the end of the elements, with the error that ended them, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetched(Generic[T]):
    """Elements of an iterator, in order, computed ahead in a thread that ends with the block.

    An error of the iterator is raised in place of its element.

    Args:
        source: Computes the elements; used in the thread alone, and closed there.
        ahead: Most elements in the queue; 0 computes each on demand, without a thread.
    """

    def __init__(self, source: Iterator[T], ahead: int) -> None:
        self._source = source
        self._ready: Queue[T | _End] = Queue(max(1, ahead))
        self._unwanted = threading.Event()
        self._thread: threading.Thread | None = None
        if ahead:
            self._thread = threading.Thread(target=self._produce, name="batches", daemon=True)
        self._ended = False
        self.waited = 0.0
        """Seconds spent waiting for elements."""

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._unwanted.set()
        if self._thread is None:
            _close(self._source)
        else:
            # A hanging source must not hide the error that ended the block.
            self._thread.join(_JOIN_SECONDS)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        started = time.perf_counter()
        try:
            return self._next()
        finally:
            self.waited += time.perf_counter() - started

    def _next(self) -> T:
        if self._thread is None:
            return next(self._source)
        if self._ended:
            raise StopIteration
        element = self._ready.get()
        if not isinstance(element, _End):
            return element
        self._ended = True
        if element.error is not None:
            raise element.error
        raise StopIteration

    def _produce(self) -> None:
        end = _End(None)
        try:
            for element in self._source:
                if not self._offer(element):
                    break
        except BaseException as error:  # noqa: BLE001  # raised in the consuming thread
            end = _End(error)
        finally:
            _close(self._source)
        self._offer(end)

    def _offer(self, element: T | _End) -> bool:
        while not self._unwanted.is_set():
            try:
                self._ready.put(element, timeout=_LOOK_SECONDS)
            except Full:
                continue
            return True
        return False


def _close(source: Iterator[T]) -> None:
    if isinstance(source, Generator):
        source.close()
