"""Failures on the way: a call is repeated once, then the answer is degraded or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError

from deployments.errors import ApiError
from deployments.flows.graph_client import GraphClient, HandleClient
from deployments.flows.score import Recommendation, RecommendFlow, ScoringFlow
from deployments.middleware.metrics import GatewayMetrics
from deployments.parts.records import Scores, UserRecord
from deployments.schemas import HistoryItem, KnowledgeResponse, RecommendRequest, SampleResponse
from reki_ray.errors import NotFiniteError, StoreError
from reki_ray.schema import Side
from reki_ray.store.tables import Profile

KNOWN = UserRecord(
    Profile({"gender": ["F"]}, ("m1",), (4.0,), (100,)), np.ones(2, np.float32), "cluster", "v1"
)
SCORE_OF = {"m1": 0.125, "a": 0.25, "b": 0.5, "c": 0.75}


def unavailable() -> ActorUnavailableError:
    return ActorUnavailableError("gone", None)


class Graph:
    """The rest of the graph: its hops fail as told, then answer."""

    def __init__(self, *, reranks: bool = False, **failures: list[Exception] | None):
        self.failures = {hop: list(errors or []) for hop, errors in failures.items()}
        self.retries: list[str] = []
        self.failures_told: list[str] = []
        self.rejections: list[str] = []
        self.metrics = GatewayMetrics("replica")
        self.metrics.retried = self.retries.append
        self.metrics.queue_rejected = self.rejections.append
        self.metrics.hop_failed = self.failures_told.append
        self.scored_for: list[UserRecord] = []
        self.never: set[str] = set()
        self.client = GraphClient(self, self, self, self if reranks else None)

    async def user(self, user_id: str, version: int) -> UserRecord:
        await self._fail("lookup")
        return KNOWN

    async def titles(self, item_ids: Sequence[str], version: int) -> list[str | None]:
        await self._fail("titles")
        return [item.upper() for item in item_ids]

    async def explain(self, side: Side, subject_id: str, version: int) -> KnowledgeResponse | None:
        raise NotImplementedError

    async def sample(self, users: int, items: int, version: int) -> SampleResponse:
        raise NotImplementedError

    async def candidates(
        self, user: UserRecord, k: int, exclude: Sequence[str], version: int
    ) -> list[str]:
        await self._fail("retriever")
        return ["a", "b", "m1", "c"]  # also one that the user has seen

    async def score(self, user: UserRecord, candidates: Sequence[str], version: int) -> Scores:
        self.scored_for.append(user)
        await self._fail("scorer")
        return Scores(
            scores=[SCORE_OF[item] for item in candidates],
            sources=["cluster"] * len(candidates),
            user_source=user.source,
            degraded=user.store_version != "v1",
            variant="reki_c",
            model_version="abc",
            store_version=f"v{version}",
        )

    async def rerank(
        self, user: UserRecord, item_ids: Sequence[str], scores: Sequence[float], version: int
    ) -> list[int]:
        await self._fail("reranker")
        return list(reversed(range(len(item_ids))))

    async def _fail(self, hop: str) -> None:
        if hop in self.never:
            await asyncio.Event().wait()
        if self.failures.get(hop):
            raise self.failures[hop].pop(0)

    def score_now(
        self, seconds: float = 5.0, history: Sequence[HistoryItem] | None = None
    ) -> Scores:
        flow = ScoringFlow(self.client, seconds, self.metrics)
        return asyncio.run(flow.score("u0", ["b", "a"], 1, history))

    def recommend(self, **body: Any) -> Recommendation:
        flow = RecommendFlow(self.client, 5.0, 100, self.metrics)
        request = RecommendRequest.model_validate({"user_id": "u0", **body})
        return asyncio.run(flow.recommend(request, 1))


def test_scores_keep_the_order_of_the_candidates() -> None:
    found = Graph().score_now()
    assert found.scores == [0.5, 0.25]
    assert (found.user_source, found.degraded) == ("cluster", False)


def test_a_lost_replica_is_asked_once_more() -> None:
    graph = Graph(lookup=[unavailable()], scorer=[unavailable()])
    assert not graph.score_now().degraded
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
    found = graph.score_now()
    assert found.degraded
    assert found.user_source == "fallback"
    assert graph.scored_for[0].vector is None


def test_without_lookup_the_history_of_the_request_still_counts() -> None:
    graph = Graph(lookup=[unavailable(), unavailable()])
    graph.score_now(history=[HistoryItem(item_id="m7", rating=2.0, timestamp=None)])
    assert graph.scored_for[0].profile.item_ids == ("m7",)


@pytest.mark.parametrize(
    ("history", "expected"),
    [(None, ("m1",)), ([], ()), ([{"item_id": "m7"}], ("m7",))],
)
def test_the_history_of_a_request_takes_the_place_of_the_stored_one(
    history: list[dict[str, Any]] | None, expected: tuple[str, ...]
) -> None:
    graph = Graph()
    given = None if history is None else [HistoryItem.model_validate(item) for item in history]
    graph.score_now(history=given)
    assert graph.scored_for[-1].profile.item_ids == expected
    assert graph.scored_for[-1].profile.attributes == {"gender": ["F"]}


@pytest.mark.parametrize(
    ("failures", "status", "code"),
    [
        ([unavailable(), unavailable()], 503, "scorer_unavailable"),
        ([RayTaskError("score", "trace", ValueError("a defect"))], 503, "scorer_unavailable"),
        ([BackPressureError(1, 1)], 503, "overloaded"),
        ([TimeoutError(), TimeoutError()], 504, "timeout"),
    ],
)
def test_without_scorer_the_request_is_refused(
    failures: list[Exception], status: int, code: str
) -> None:
    with pytest.raises(ApiError) as caught:
        Graph(scorer=failures).score_now()
    assert (caught.value.status, caught.value.code) == (status, code)
    assert caught.value.headers == {"Retry-After": "1"}
    assert "defect" not in caught.value.message


def test_a_full_queue_is_told_at_once() -> None:
    graph = Graph(scorer=[BackPressureError(1, 1)])
    with pytest.raises(ApiError):
        graph.score_now()
    assert (graph.retries, graph.rejections) == ([], ["scorer"])


def test_hops_that_never_answer_end_with_the_budget() -> None:
    graph = Graph()
    graph.never = {"lookup"}
    assert graph.score_now(0.2).degraded
    graph.never = {"scorer"}
    with pytest.raises(ApiError) as caught:
        graph.score_now(0.2)
    assert caught.value.status == 504
    assert graph.retries == ["lookup", "scorer"]


def test_the_best_unseen_items_are_recommended() -> None:
    found = Graph().recommend(k=2)
    assert found.item_ids == ["c", "b"]
    assert found.scores.scores == [0.75, 0.5]
    assert found.titles == ["C", "B"]
    assert not found.scores.degraded


def test_excluded_items_are_left_out() -> None:
    assert Graph().recommend(k=10, exclude=["c"]).item_ids == ["b", "a"]


def test_the_reranker_has_the_last_word_on_the_order() -> None:
    assert Graph(reranks=True).recommend(k=10).item_ids == ["a", "b", "c"]


def test_without_reranker_or_titles_the_recommendation_is_degraded() -> None:
    graph = Graph(reranks=True, reranker=[unavailable(), unavailable()])
    found = graph.recommend(k=10)
    assert (found.item_ids, found.scores.degraded) == (["c", "b", "a"], True)
    found = Graph(titles=[unavailable(), unavailable()]).recommend(k=2)
    assert (found.titles, found.scores.degraded) == ([None, None], True)


def test_without_retriever_there_is_no_recommendation() -> None:
    with pytest.raises(ApiError) as caught:
        Graph(retriever=[unavailable(), unavailable()]).recommend()
    assert (caught.value.status, caught.value.code) == (503, "retriever_unavailable")


RAISED = [
    OSError(116, "Stale file handle"),
    RuntimeError("a defect"),
    KeyError("u17"),
    StoreError("damaged", where="v1", todo="Publish again."),
    MemoryError(),
]


def outcome(hop: str, failure: Exception) -> Any:
    """What a caller is answered where a hop fails with something."""
    graph = Graph(reranks=True, **{hop: [failure, failure]})
    try:
        found = graph.recommend(k=2)
    except ApiError as error:
        return error.status, error.code, graph.failures_told
    return found.scores.degraded, found.item_ids, found.titles, graph.failures_told


@pytest.mark.parametrize("raised", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("hop", ["lookup", "retriever", "scorer", "reranker", "titles"])
def test_a_failure_is_the_same_in_this_process_and_in_another_one(
    hop: str, raised: Exception
) -> None:
    own, other = outcome(hop, raised), outcome(hop, RayTaskError(hop, "trace", raised))
    assert own == other
    if hop in ("retriever", "scorer"):
        assert own == (503, f"{hop}_unavailable", [hop])
    else:
        assert own[0] is True
        assert own[-1] == ["lookup" if hop == "titles" else hop]


@pytest.mark.parametrize("wrap", [lambda error: error, partial(RayTaskError, "score", "trace")])
def test_a_model_without_finite_scores_is_told_as_such(
    wrap: Callable[[Exception], Exception],
) -> None:
    error = NotFiniteError("no finite score", where="v1", todo="Go back.")
    with pytest.raises(ApiError) as caught:
        Graph(scorer=[wrap(error)]).score_now()
    assert (caught.value.status, caught.value.code) == (503, "no_scores")
    graph = Graph(reranks=True, reranker=[wrap(error)])
    assert graph.recommend(k=2).scores.degraded


def test_what_a_defect_was_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ApiError):
        Graph(scorer=[RuntimeError("a defect")]).score_now()
    (told,) = [record for record in caplog.records if record.exc_info]
    assert told.message == "scorer failed"


def test_late_calls_of_a_slow_hop_are_not_all_repeated() -> None:
    graph = Graph()
    graph.never = {"scorer"}
    flow = ScoringFlow(graph.client, 0.02, graph.metrics)

    async def ask() -> None:
        for _ in range(30):
            with pytest.raises(ApiError):
                await flow.score("u0", ["a"], 1)

    asyncio.run(ask())
    assert len(graph.scored_for) <= 30 + 5
    graph.never = set()

    async def recover() -> None:
        for _ in range(200):
            await flow.score("u0", ["a"], 1)
        graph.never = {"scorer"}
        with pytest.raises(ApiError):
            await flow.score("u0", ["a"], 1)

    before = len(graph.retries)
    asyncio.run(recover())
    assert len(graph.retries) == before + 1


def test_calls_of_replicas_that_died_are_repeated_however_many() -> None:
    graph = Graph(scorer=[unavailable() for _ in range(60)])
    flow = ScoringFlow(graph.client, 5.0, graph.metrics)

    async def ask() -> None:
        for _ in range(30):
            with pytest.raises(ApiError, match="No scorer"):
                await flow.score("u0", ["a"], 1)

    asyncio.run(ask())
    assert len(graph.retries) == 30


class Method:
    """A method of a handle that is never called."""

    def remote(self, *_: object) -> None:
        raise NotImplementedError


class Handle:
    """The handle of a deployment whose replicas answer `prepare` as told."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = answers
        self.user = self.titles = self.explain = self.sample = self.score = Method()

    def broadcast(self, method: str, version: int) -> Handle:
        return self

    async def results_async(self, **_: Any) -> list[Exception | None]:
        return list(self.answers)


@pytest.mark.parametrize(
    ("answers", "raised"),
    [
        ((None, None), None),
        ((None, unavailable()), None),  # it opens the version when it is back
        ((unavailable(), unavailable()), ActorUnavailableError),
        ((None, RayTaskError("prepare", "trace", OSError("I/O error"))), RayTaskError),
        ((None, TimeoutError()), TimeoutError),
        (
            (unavailable(), RayTaskError("prepare", "trace", RAISED[3])),
            StoreError,
        ),
    ],
)
def test_a_version_that_one_replica_cannot_open_is_not_prepared(
    answers: tuple[Exception | None, ...], raised: type[Exception] | None
) -> None:
    lookup: Any = Handle(*answers)
    scorer: Any = Handle(None)
    backend = HandleClient(lookup, scorer)
    if raised is None:
        asyncio.run(backend.prepare(2))
    else:
        with pytest.raises(raised):
            asyncio.run(backend.prepare(2))
