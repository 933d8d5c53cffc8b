"""Adaptive batching: what arrives while a batch is processed becomes the next batch.

A single question is answered in the same turn of the event loop; batches grow under load. Serve's
own `@serve.batch` relies on timers and creates several tasks per batch even with a wait time of
zero, which costs more than the batch saves, and only works inside a replica.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Batcher(Generic[Q, A]):
    """Batches questions of one event loop.

    Args:
        answer: Answers a batch in order; an exception in place of an answer is raised to the caller
            of that question. If it raises, each question is answered alone.
        max_batch_size: Most questions per batch.
        max_weight: Largest sum of weights per batch; a heavier question goes alone.
        weigh: Returns the weight of a question.
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
        """Return the answer to a question."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, future))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._work, loop)  # after other callbacks, which may ask too
        return await future

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = self._take()
        try:
            answers = self._answers([question for question, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        finally:
            self._scheduled = bool(self._waiting)
            if self._scheduled:
                loop.call_soon(self._work, loop)

    def _answers(self, questions: Sequence[Q]) -> Sequence[A | Exception]:
        if not questions:
            return ()
        try:
            return [answer for _, answer in zip(questions, self._answer(questions), strict=True)]
        except Exception as error:  # noqa: BLE001  # propagated to the waiting callers
            if len(questions) == 1:
                return [error]
            # One bad question must not fail the others.
            return [answer for question in questions for answer in self._answers([question])]

    def _take(self) -> list[tuple[Q, asyncio.Future[A]]]:
        batch: list[tuple[Q, asyncio.Future[A]]] = []
        weight = 0
        while self._waiting and len(batch) < self._max_batch_size:
            question, future = self._waiting[0]
            if future.done():  # the caller has gone
                self._waiting.popleft()
                continue
            weight += self._weigh(question)
            if batch and weight > self._max_weight:
                break
            batch.append(self._waiting.popleft())
        return batch
