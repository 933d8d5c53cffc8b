"""Adaptive batching: what arrives while a batch is worked on makes the next batch.

A lone question is answered at once, in the same turn of the event loop; under load batches grow
by themselves. Serve's own `@serve.batch` waits on timers and makes several tasks a batch even
with a waiting time of zero, which would cost a request more than the batch saves, and it works
inside a replica alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Batcher(Generic[Q, A]):
    """Collects questions of one event loop.

    Args:
        answer: Answers to questions, in their order; an exception in the place of an answer goes
            to whoever asked that question. Where it raises, each question is asked alone.
        max_batch_size: Most questions a batch.
        max_weight: Largest sum of weights a batch; a heavier question goes alone.
        weigh: Weight of a question.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Q]], Sequence[A | Exception]],
        *,
        max_batch_size: int,
        max_weight: int,
        weigh: Callable[[Q], int],
    ) -> None:
        self._answer = answer
        self._max_batch_size = max_batch_size
        self._max_weight = max_weight
        self._weigh = weigh
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._scheduled = False

    async def ask(self, question: Q) -> A:
        """The answer to one question."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, future))
        if not self._scheduled:
            self._scheduled = True
            # After everything that is ready to run now, which may ask too.
            loop.call_soon(self._work, loop)
        return await future

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = self._take()
        try:
            self._settle(batch, self._answers([question for question, _ in batch]))
        finally:
            self._scheduled = bool(self._waiting)
            if self._scheduled:
                loop.call_soon(self._work, loop)

    def _answers(self, questions: Sequence[Q]) -> Sequence[A | Exception]:
        if not questions:
            return ()
        try:
            found = zip(questions, self._answer(questions), strict=True)
            return [answer for _, answer in found]
        except Exception as error:  # noqa: BLE001  # whoever asked is told, whatever it is
            if len(questions) == 1:
                return [error]
            # One misfit must not fail the others.
            return [answer for one in questions for answer in self._answers([one])]

    def _take(self) -> list[tuple[Q, asyncio.Future[A]]]:
        batch: list[tuple[Q, asyncio.Future[A]]] = []
        weight = 0
        while self._waiting and len(batch) < self._max_batch_size:
            question, future = self._waiting[0]
            if future.done():  # nobody waits for it any more
                self._waiting.popleft()
                continue
            weight += self._weigh(question)
            if batch and weight > self._max_weight:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _settle(
        self, batch: Sequence[tuple[Q, asyncio.Future[A]]], answers: Sequence[A | Exception]
    ) -> None:
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
