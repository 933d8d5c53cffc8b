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
"""How often a thread that waits for room looks whether it is still wanted."""

_JOIN_SECONDS = 30.0


class _End:
    """Comes after the last element, with the error that ended them if there was one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetched(Generic[T]):
    """Elements of an iterator, the same and in the same order, computed ahead in a thread.

    The thread ends with the block, whatever the reason; an error of the iterator is raised where
    its element would have come.

    Args:
        source: Computes the elements; it is used in the thread alone, and closed there.
        ahead: Most elements that wait; 0 computes each when it is asked for, without a thread.
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
        """Seconds in which an element was asked for and not there."""

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
            # A source that hangs must not hide the error that ended the block.
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
        found = self._ready.get()
        if not isinstance(found, _End):
            return found
        self._ended = True
        if found.error is not None:
            raise found.error
        raise StopIteration

    def _produce(self) -> None:
        end = _End(None)
        try:
            for element in self._source:
                if not self._offer(element):
                    break
        except BaseException as error:  # noqa: BLE001  # it is raised in the thread that asks
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
