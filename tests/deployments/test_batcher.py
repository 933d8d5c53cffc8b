"""Adaptive batching, and scores of a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest

from deployments.load_check import user_input
from deployments.parts.batcher import Batcher
from deployments.parts.lookup import add_vector, read_profile
from deployments.parts.records import Scores, UserRecord
from deployments.parts.scorer import Question, VersionScorer
from reki_ray.errors import StoreError
from reki_ray.models.artifact import Vectors
from reki_ray.models.candidate_scorer import CandidateScorer, UserInput
from reki_ray.store.version import StoreVersion
from reki_ray.store.versions import VersionStore
from tests.support import store_factory


class Doubling:
    """Doubles numbers, and keeps the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(numbers))
        return [ValueError("odd one") if number < 0 else 2 * number for number in numbers]


def batcher(answer: Doubling, size: int = 4, weight: int = 100) -> Batcher[int, int]:
    return Batcher(answer, max_batch_size=size, max_weight=weight, weigh=lambda number: number)


def test_what_is_asked_together_is_answered_together() -> None:
    doubling = Doubling()

    async def ask() -> list[int]:
        asked = batcher(doubling)
        return await asyncio.gather(*(asked.ask(number) for number in range(10)))

    assert asyncio.run(ask()) == [2 * number for number in range(10)]
    assert [len(batch) for batch in doubling.batches] == [4, 4, 2]


def test_heavy_questions_make_small_batches() -> None:
    doubling = Doubling()

    async def ask() -> None:
        asked = batcher(doubling, weight=10)
        await asyncio.gather(*(asked.ask(number) for number in (6, 4, 5, 50, 1)))

    asyncio.run(ask())
    assert doubling.batches == [[6, 4], [5], [50], [1]]


def test_one_failure_is_the_askers_own() -> None:
    async def ask() -> list[int | BaseException]:
        asked = batcher(Doubling())
        return await asyncio.gather(
            *(asked.ask(number) for number in (1, -1, 3)), return_exceptions=True
        )

    first, failed, last = asyncio.run(ask())
    assert (first, last) == (2, 6)
    assert isinstance(failed, ValueError)


def test_a_defect_reaches_all_who_asked_and_ends_with_them() -> None:
    calls = [0]

    def answer(numbers: Sequence[int]) -> list[int | Exception]:
        calls[0] += 1
        if calls[0] <= 3:
            raise ZeroDivisionError
        return [2 * number for number in numbers]

    async def ask() -> None:
        asked = Batcher(answer, max_batch_size=2, max_weight=9, weigh=lambda _: 1)
        failed = await asyncio.gather(asked.ask(1), asked.ask(2), return_exceptions=True)
        assert all(isinstance(error, ZeroDivisionError) for error in failed)
        assert await asked.ask(3) == 6

    asyncio.run(ask())


@pytest.mark.parametrize(
    "failure", [StoreError("a misfit", where="", todo=""), KeyError(), MemoryError()]
)
def test_whatever_one_question_raises_the_others_are_answered(failure: Exception) -> None:
    def answer(numbers: Sequence[int]) -> list[int | Exception]:
        if 2 in numbers:
            raise failure
        return [2 * number for number in numbers]

    async def ask() -> list[int | BaseException]:
        asked = Batcher(answer, max_batch_size=9, max_weight=9, weigh=lambda _: 1)
        questions = (asked.ask(number) for number in (1, 2, 3))
        return await asyncio.gather(*questions, return_exceptions=True)

    assert asyncio.run(ask()) == [2, failure, 6]


def test_who_no_longer_waits_is_left_out() -> None:
    doubling = Doubling()

    async def ask() -> None:
        asked = batcher(doubling)
        gone = asyncio.ensure_future(asked.ask(1))
        kept = asyncio.ensure_future(asked.ask(2))
        await asyncio.sleep(0)
        gone.cancel()
        assert await kept == 4

    asyncio.run(ask())
    assert doubling.batches == [[2]]


@pytest.fixture(scope="module", params=[True, False], ids=["knowledge", "base"])
def version(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> StoreVersion:
    store = VersionStore(tmp_path_factory.mktemp("publish"))
    store.publish(lambda folder: store_factory.fill(folder, knowledge=request.param))
    return store.open()


def read_user(version: StoreVersion, user_id: str) -> UserRecord:
    return add_vector(version, user_id, read_profile(version, user_id))


def scored(scorer: VersionScorer, *questions: Question) -> list[Scores]:
    found = scorer.score_batch(questions)
    assert all(isinstance(one, Scores) for one in found)
    return cast(list[Scores], found)


def test_scores_of_a_batch_are_those_of_single_users(version: StoreVersion) -> None:
    scorer = VersionScorer(version)
    lists = [["m3", "unknown", "m1"], ["m5"], [], list(store_factory.ITEM_IDS), ["m1", "m1"]]
    users = [*store_factory.USER_IDS, "nobody"]
    questions = [
        Question(read_user(version, user), items) for user, items in zip(users, lists, strict=True)
    ]
    for question, found in zip(questions, scored(scorer, *questions), strict=True):
        (alone,) = scored(scorer, question)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-6)
        assert (found.sources, found.user_source) == (alone.sources, alone.user_source)
        assert len(found.scores) == len(question.candidates)


def test_scores_through_the_deployments_classes_are_those_of_the_model(
    version: StoreVersion,
) -> None:
    scorer = VersionScorer(version)
    offline = version.load_scorer()
    candidates = [*store_factory.ITEM_IDS, "unknown"]
    for user in [*store_factory.USER_IDS, "nobody"]:
        expected = offline.score(user_input(version, user), candidates)
        (found,) = scored(scorer, Question(read_user(version, user), candidates))
        np.testing.assert_allclose(found.scores, expected, atol=1e-6)


def test_prestored_representations_give_the_scores_of_prestored_vectors() -> None:
    bundle = store_factory.make_bundle()
    generator = np.random.default_rng(0)
    r = generator.normal(size=(13, store_factory.REPRESENTATION)).astype(np.float32)
    r /= np.linalg.norm(r, axis=1, keepdims=True)
    items, attributes = store_factory.ITEM_IDS, [None] * len(store_factory.ITEM_IDS)
    h = bundle.augment_items(r)
    from_h = CandidateScorer(bundle, items, attributes, h[:12], h[12])
    from_r = CandidateScorer(bundle, items, attributes, r[:12], r[12], prestored="r")
    user = user_of(bundle.augment_users(r[:1])[0])
    expected = from_h.score(user, [*items, "unknown"])
    found = from_r.score(user_of(r[0]), [*items, "unknown"])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(StoreError, match="shape"):
        from_r.score(user_of(np.zeros(3, np.float32)), items)


def user_of(vector: Vectors) -> UserInput:
    return UserInput(None, [], vector)
