"""Batches built in the background: the same ones, errors where they belong, no thread left."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from reki_ray.training.prefetch import Prefetched


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


class Source:
    """Counts for ever or up to a failure, and notes how far it got and that it was closed."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.made = 0
        self.closed = False
        self._fails_at = fails_at

    def elements(self) -> Iterator[int]:
        try:
            while self.made != self._fails_at:
                self.made += 1
                yield self.made
            raise ValueError("no more")
        finally:
            self.closed = True


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_elements_come_all_and_in_order(ahead: int) -> None:
    with Prefetched(iter(range(10)), ahead) as found:
        assert list(found) == list(range(10))
        assert list(found) == []
    assert found.waited >= 0
    assert not running()


@pytest.mark.parametrize("ahead", [0, 2])
def test_error_of_the_source_is_raised_where_its_element_would_have_come(ahead: int) -> None:
    source = Source(fails_at=2)
    with Prefetched(source.elements(), ahead) as found:
        assert [next(found), next(found)] == [1, 2]
        with pytest.raises(ValueError, match="no more"):
            next(found)
    assert source.closed
    assert not running()


@pytest.mark.parametrize("ahead", [0, 2])
def test_thread_ends_and_the_source_is_closed_when_the_loop_fails(ahead: int) -> None:
    source = Source()

    def failing_loop() -> None:
        with Prefetched(source.elements(), ahead) as found:
            next(found)
            raise ArithmeticError("loop")

    with pytest.raises(ArithmeticError, match="loop"):
        failing_loop()
    assert source.closed
    assert not running()


def test_no_more_is_built_ahead_than_asked() -> None:
    source = Source()
    with Prefetched(source.elements(), 2) as found:
        next(found)
    assert source.made <= 1 + 2 + 1  # taken, waiting, and the one in the thread's hand
