"""Failures on the way: a call is repeated once, then the answer is degraded or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError

from deployments.errors import ApiError
from deployments.flow import ScoringFlow
from deployments.messages import Scores, UserRecord
from deployments.schemas import ScoreRequest
from reki_ray.store.contents import Profile

KNOWN = UserRecord(
    Profile({"gender": ["F"]}, ("m1",), (4.0,), (100,)), np.ones(2, np.float32), "cluster", "v1"
)
REQUEST = ScoreRequest(user_id="u0", candidates=["b", "a"])


def unavailable() -> ActorUnavailableError:
    return ActorUnavailableError("gone", None)


class Graph:
    """Lookup and scorer that fail as told, then answer."""

    def __init__(
        self, *, lookup: list[Exception] | None = None, scorer: list[Exception] | None = None
    ):
        self.failures = {"lookup": lookup or [], "scorer": scorer or []}
        self.retries: list[str] = []
        self.scored_for: list[UserRecord] = []

    async def user(self, user_id: str) -> UserRecord:
        self._fail("lookup")
        return KNOWN

    async def score(self, user: UserRecord, candidates: list[str]) -> Scores:
        self.scored_for.append(user)
        self._fail("scorer")
        fits = user.store_version == "v1"
        return Scores(
            scores=[0.5, 0.25],
            sources=["cluster", "fallback"],
            user_source=user.source,
            degraded=not fits,
            variant="reki_c",
            model_version="abc",
            store_version="v1",
        )

    def _fail(self, hop: str) -> None:
        if self.failures[hop]:
            raise self.failures[hop].pop(0)

    def flow(self, seconds: float = 5.0) -> ScoringFlow:
        return ScoringFlow(self.user, self.score, seconds, self.retries.append)


def test_scores_keep_the_order_of_the_candidates() -> None:
    response = asyncio.run(Graph().flow().score(REQUEST))
    assert [(entry.item_id, entry.score) for entry in response.scores] == [("b", 0.5), ("a", 0.25)]
    assert (response.user.source, response.degraded) == ("cluster", False)


def test_a_lost_replica_is_asked_once_more() -> None:
    graph = Graph(lookup=[unavailable()], scorer=[unavailable()])
    response = asyncio.run(graph.flow().score(REQUEST))
    assert not response.degraded
    assert graph.retries == ["lookup", "scorer"]


@pytest.mark.parametrize(
    "failures",
    [
        [unavailable(), unavailable()],
        [TimeoutError(), TimeoutError()],
        [RayTaskError("user", "trace", ValueError("a defect"))],
        [BackPressureError(1, 1)],
    ],
)
def test_without_lookup_the_answer_is_degraded(failures: list[Exception]) -> None:
    graph = Graph(lookup=failures)
    response = asyncio.run(graph.flow().score(REQUEST))
    assert response.degraded
    assert response.user.source == "fallback"
    assert graph.scored_for[0].vector is None


def test_without_lookup_the_history_of_the_request_still_counts() -> None:
    graph = Graph(lookup=[unavailable(), unavailable()])
    request = ScoreRequest.model_validate(
        {"user_id": "u0", "candidates": ["b", "a"], "history": [{"item_id": "m7", "rating": 2.0}]}
    )
    asyncio.run(graph.flow().score(request))
    assert graph.scored_for[0].profile.item_ids == ("m7",)


def test_the_history_of_a_request_takes_the_place_of_the_stored_one() -> None:
    graph = Graph()
    for history, expected in ((None, ("m1",)), ([], ()), ([{"item_id": "m7"}], ("m7",))):
        request = ScoreRequest.model_validate(
            {"user_id": "u0", "candidates": ["b", "a"], "history": history}
        )
        asyncio.run(graph.flow().score(request))
        assert graph.scored_for[-1].profile.item_ids == expected
        assert graph.scored_for[-1].profile.attributes == {"gender": ["F"]}


@pytest.mark.parametrize(
    ("failures", "status"),
    [
        ([unavailable(), unavailable()], 503),
        ([RayTaskError("score", "trace", ValueError("a defect"))], 503),
        ([BackPressureError(1, 1)], 503),
        ([TimeoutError(), TimeoutError()], 504),
    ],
)
def test_without_scorer_the_request_is_refused(failures: list[Exception], status: int) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(Graph(scorer=failures).flow().score(REQUEST))
    assert caught.value.status == status
    assert caught.value.headers == {"Retry-After": "1"}
    assert "defect" not in caught.value.message


def test_hops_that_never_answer_end_with_the_budget() -> None:
    async def never(*_: object) -> UserRecord:
        await asyncio.Event().wait()
        raise AssertionError

    graph = Graph()
    response = asyncio.run(
        ScoringFlow(never, graph.score, 0.2, graph.retries.append).score(REQUEST)
    )
    assert response.degraded

    never_scores: Callable[[UserRecord, list[str]], Awaitable[Scores]] = never  # type: ignore[assignment]
    with pytest.raises(ApiError) as caught:
        asyncio.run(ScoringFlow(graph.user, never_scores, 0.2, graph.retries.append).score(REQUEST))
    assert caught.value.status == 504
    assert graph.retries == ["lookup", "scorer"]
