"""Deployment `Scorer`: the served model over the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch

from deployments.parts.batcher import Batcher
from deployments.parts.records import Scores, UserRecord
from deployments.parts.version_cache import StoreAccess
from reki_ray.errors import NotFiniteError
from reki_ray.models.candidate_scorer import HistoryEvent, UserInput
from reki_ray.schema import Source
from reki_ray.store.soundness import require_finite_scores
from reki_ray.store.versions import StoreVersion

MAX_BATCH_CANDIDATES: Final = 2000
"""Bounds a batch's memory; a single request may name more."""

FALLBACK: Source = "fallback"


class Question(NamedTuple):
    """Candidates to score for a user."""

    user: UserRecord
    candidates: Sequence[str]


class VersionScorer:
    """Scores with the model and the item vectors of one opened version.

    Args:
        version: The opened version.

    Raises:
        StoreError: Model and vectors do not fit together.
    """

    def __init__(self, version: StoreVersion) -> None:
        self.name = version.name
        self._manifest = version.manifest
        self._fallback = None if version.users is None else version.users.fallback
        self._scorer = version.load_scorer()
        self._source_of = _source_of(version)
        # The first forward sets up what later ones reuse: no request has to wait for it.
        require_finite_scores(version, self._scorer)

    def score_batch(self, questions: Sequence[Question]) -> list[Scores | Exception]:
        """Probabilities of candidates of several users, in their order, in one forward.

        Returns:
            The scores of each question, or why it has none.

        Raises:
            StoreError: A user's vector does not fit the model.
        """
        scores = self._scorer.score_batch(
            [(self._input(question.user), question.candidates) for question in questions]
        )
        return [self._answer(*asked) for asked in zip(questions, scores, strict=True)]

    def _answer(
        self, question: Question, scores: npt.NDArray[np.float32]
    ) -> Scores | NotFiniteError:
        if not np.isfinite(scores).all():
            return NotFiniteError(
                f"{self.name} has no finite score for "
                f"{np.count_nonzero(~np.isfinite(scores))} of {len(scores)} candidates",
                where=f"model {self._manifest.model_fingerprint[:12]}",
                todo="Go back to an older version: `reki rollback`.",
            )
        return Scores(
            scores=scores.tolist(),
            sources=[self._source_of.get(item, FALLBACK) for item in question.candidates],
            user_source=question.user.source if self._fits(question.user) else FALLBACK,
            degraded=not self._fits(question.user),
            variant=self._manifest.arm,
            model_version=self._manifest.model_fingerprint[:12],
            store_version=self.name,
        )

    def _fits(self, user: UserRecord) -> bool:
        # Another model's vector means nothing; without a lookup there is none.
        return user.store_version == self.name

    def _input(self, user: UserRecord) -> UserInput:
        vector = user.vector if self._fits(user) else None
        profile = user.profile
        events = [HistoryEvent(*event) for event in profile.latest(self._scorer.history)]
        return UserInput(profile.attributes, events, self._fallback if vector is None else vector)


def _source_of(version: StoreVersion) -> dict[str, Source]:
    """Source of every item of the catalogue; the others are scored with the fallback."""
    ids = version.catalogue.ids
    if version.items is None:
        return dict.fromkeys(ids, "individual")
    return dict(zip(ids, cast(list[Source], version.items.sources(ids)), strict=True))


class Scorer:
    """Serves a `VersionScorer` of each version that it is asked for.

    Args:
        access: Where versions are.
        max_batch_size: Most requests per forward pass.

    Raises:
        StoreError: Neither CURRENT nor an older version opens.
    """

    def __init__(self, access: StoreAccess, max_batch_size: int) -> None:
        # A request's matrices are small: more threads only wait for each other.
        torch.set_num_threads(1)
        self._versions = access.cache(VersionScorer)
        self._batcher: Batcher[tuple[VersionScorer, Question], Scores] = Batcher(
            _answer,
            max_batch_size=max_batch_size,
            max_weight=MAX_BATCH_CANDIDATES,
            weigh=lambda asked: len(asked[1].candidates),
        )

    async def prepare(self, version: int) -> None:
        """Load a version, if it is not yet.

        Raises:
            StoreError: It is missing or damaged, or its parts do not fit together.
        """
        await self._versions.open(version)

    async def score(self, user: UserRecord, candidates: Sequence[str], version: int) -> Scores:
        """Probabilities of candidates for a user, in their order.

        Args:
            user: What is known of the user.
            candidates: Item ids, also unknown ones.
            version: Number of the version to answer from.

        Raises:
            StoreError: The version does not open, or has no finite score.
        """
        scorer = await self._versions.get(version)
        return await self._batcher.ask((scorer, Question(user, candidates)))

    def close(self) -> None:
        """End what runs in the background."""
        self._versions.close()


def _answer(asked: Sequence[tuple[VersionScorer, Question]]) -> list[Scores | Exception]:
    """Scores of questions to several versions, each version's in one forward."""
    by_version: dict[VersionScorer, list[int]] = {}
    for place, (scorer, _) in enumerate(asked):
        by_version.setdefault(scorer, []).append(place)
    answers: dict[int, Scores | Exception] = {}
    for scorer, places in by_version.items():
        found = scorer.score_batch([asked[place][1] for place in places])
        answers.update(zip(places, found, strict=True))
    return [answers[place] for place in range(len(asked))]
