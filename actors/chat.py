"""Replica that sends prompts to an OpenAI-compatible endpoint, many at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from pydantic import SecretStr

from actors.spending_guard import LEASE_SECONDS, BudgetRefusal
from reki_ray.config import ExtractConfig, OpenAiEngine
from reki_ray.core.background import BackgroundTask
from reki_ray.errors import EngineError
from reki_ray.llm.completion import RequestBuilder
from reki_ray.llm.openai_client import Endpoint, RefusedError
from reki_ray.llm.outcome import Outcome, answer_table
from reki_ray.llm.reservation import Reservation, guarded
from reki_ray.prompts.template import ParsedReply, PromptTemplate, Reply
from reki_ray.schema import BODY, SUBJECT_KIND, SubjectKind

_PULSE_SECONDS = LEASE_SECONDS / 4


@dataclass(frozen=True)
class ChatJob:
    """Settings of all replicas of a run."""

    config: OpenAiEngine
    extract: ExtractConfig
    template: PromptTemplate
    key: SecretStr | None  # of the endpoint, if it needs one
    guard: Any | None  # handle of the `SpendingGuard` actor; None without a budget


class ChatActor:
    """One actor of the pool."""

    def __init__(self, job: ChatJob) -> None:
        self._config = job.config
        self._template = job.template
        self._guard = job.guard
        self._currency = job.extract.prices.currency
        requests = RequestBuilder(job.config, job.extract.sampling, job.template)
        self._endpoint = Endpoint(job.config, requests, job.extract.prices, job.key)
        # Several work units are in flight and share the slots.
        self._slots = asyncio.Semaphore(job.config.max_in_flight)
        self._name = uuid.uuid4().hex
        self._pulse: BackgroundTask | None = None

    async def __call__(self, questions: pa.Table) -> pa.Table:
        """Rows of `QUESTION_SCHEMA`, one work unit, to rows of `ANSWER_SCHEMA`.

        Raises:
            EngineError: Every prompt would fail, or the budget does not suffice for this unit;
                raised before its first call, so that no paid answer is lost.
        """
        self._endpoint.require_hope()
        rows: list[tuple[SubjectKind, str]] = list(
            zip(questions[SUBJECT_KIND].to_pylist(), questions[BODY].to_pylist(), strict=True)
        )
        costs = [self._endpoint.most_cost(self._template.messages(*row)) for row in rows]
        fits = [self._config.budget is None or cost <= self._config.budget for cost in costs]
        reserved = [cost for cost, fit in zip(costs, fits, strict=True) if fit]
        try:
            async with self._reservation(reserved) as reservation, asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._outcome(kind, body, reservation, fits=fit))
                    for (kind, body), fit in zip(rows, fits, strict=True)
                ]
        except ExceptionGroup as errors:  # the first error ends all other calls
            raise errors.exceptions[0] from None
        return answer_table(questions, [task.result() for task in tasks])

    async def _outcome(
        self, kind: SubjectKind, body: str, reservation: Reservation, *, fits: bool
    ) -> Outcome:
        """Send one prompt that fits the budget, and a repair if the answer needs one."""
        if not fits:
            return Outcome(None, "the prompt alone may cost more than the whole budget")
        replies: list[Reply] = []
        first: ParsedReply | None = None
        async with self._slots:
            asked_at = time.time()
            deadline = asyncio.get_running_loop().time() + self._config.max_retry_seconds
            try:
                messages = self._template.messages(kind, body)
                ask = partial(self._endpoint.ask, deadline=deadline, reservation=reservation)
                replies.append(await ask(messages, reserved=True))
                first, second = self._template.parse_reply(kind, body, replies[0]), None
                if first.repair is not None:
                    replies.append(await ask(first.repair, reserved=False))
                    second = self._template.parse_reply(kind, body, replies[1], repaired=True)
            except RefusedError as refused:
                replies += [refused.reply] if refused.reply else []
                if first is None:
                    return Outcome(None, refused.reason, tuple(replies), asked_at)
                return Outcome.of(first, None, replies, asked_at, refused.reason)
        return Outcome.of(first, second, replies, asked_at)

    @contextlib.asynccontextmanager
    async def _reservation(self, costs: Sequence[float]) -> AsyncIterator[Reservation]:
        if self._guard is None:
            yield Reservation()
            return
        if self._pulse is None:
            heartbeat = partial(self._guard.alive.remote, self._name)
            self._pulse = BackgroundTask("spending-pulse", heartbeat, _PULSE_SECONDS)
            self._pulse.start()
        ticket = await guarded(self._guard.reserve.remote(self._name, sum(costs)))
        if isinstance(ticket, BudgetRefusal):
            raise self._budget_error(ticket, costs)
        reservation = Reservation(self._guard, ticket)
        try:
            yield reservation
        finally:
            await reservation.settle()

    def _budget_error(self, refusal: BudgetRefusal, costs: Sequence[float]) -> EngineError:
        assert self._config.budget is not None
        currency = self._currency
        return EngineError(
            f"the budget of {self._config.budget:g} {currency} does not last: "
            f"{refusal.spent:.4g} {currency} are spent, the next {len(costs)} prompts may cost "
            f"{sum(costs):.4g} {currency}",
            where="extract.engine.budget",
            todo="Raise it and run again: only the missing prompts are sent. A smaller "
            "extract.unit_rows uses more of it.",
        )
