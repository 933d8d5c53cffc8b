"""Readiness is what is so now: it turns back, and a busy replica stays ready."""

from __future__ import annotations

import asyncio

import pytest

from deployments.errors import ApiError, overloaded
from deployments.http import api
from deployments.http.api import Readiness


class Graph:
    """Answers a check as it is told, and counts the checks."""

    def __init__(self) -> None:
        self.failure: ApiError | None = None
        self.degraded = False
        self.checks = 0

    async def check(self, first: bool) -> None:
        self.checks += 1
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        if first and self.degraded:
            raise ApiError(503, "not_ready", "Not whole yet.")


DEAD = ApiError(503, "scorer_unavailable", "No scorer.")


def codes(graph: Graph, *steps: ApiError | None) -> list[str]:
    """What a probe is told, one after the other, where the graph fails with each."""

    async def run() -> list[str]:
        ready, told = Readiness(graph.check), []
        for graph.failure in steps:
            try:
                await ready.require()
            except ApiError as error:
                told.append(error.code)
            else:
                told.append("ready")
        return told

    return asyncio.run(run())


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was seen counts any more."""
    monkeypatch.setattr(api, "FRESH_SECONDS", -1.0)


def test_it_turns_back_and_comes_again(fresh: None) -> None:
    assert codes(Graph(), None, DEAD, DEAD, None) == ["ready", DEAD.code, DEAD.code, "ready"]


def test_a_replica_that_has_never_answered_is_not_ready_for_any_reason(fresh: None) -> None:
    assert codes(Graph(), overloaded(), DEAD, None) == ["overloaded", DEAD.code, "ready"]


def test_a_busy_replica_stays_ready(fresh: None) -> None:
    assert codes(Graph(), None, overloaded()) == ["ready", "ready"]


def test_only_the_first_answer_has_to_be_whole(fresh: None) -> None:
    graph = Graph()
    graph.degraded = True
    assert codes(graph, None) == ["not_ready"]

    async def later() -> None:
        ready = Readiness(graph.check)
        ready.answered(degraded=True)
        with pytest.raises(ApiError):
            await ready.require()
        ready.answered(degraded=False)
        await ready.require()

    asyncio.run(later())


def test_answers_spare_a_check_and_many_probes_make_one() -> None:
    graph = Graph()

    async def run() -> None:
        ready = Readiness(graph.check)
        await asyncio.gather(*(ready.require() for _ in range(20)))
        assert graph.checks == 1
        graph.failure = DEAD
        ready.answered(degraded=True)
        await ready.require()
        assert graph.checks == 1

    asyncio.run(run())
