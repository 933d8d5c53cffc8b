"""Deployment `Scorer`: the served model over the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch

from deployments.graph_args import StoreAccess
from deployments.parts.batcher import Batcher
from deployments.parts.records import Scores, UserRecord
from deployments.parts.version_cache import VersionCache
from reki_ray.core import ray_metrics
from reki_ray.errors import NotFiniteError
from reki_ray.models.candidate_scorer import HistoryEvent, UserInput
from reki_ray.schema import Source
from reki_ray.store.soundness import require_finite_scores
from reki_ray.store.version import StoreVersion

MAX_BATCH_CANDIDATES: Final = 2000
"""Bounds the memory of a batch; a single request may exceed it."""
FALLBACK: Source = "fallback"


class Question(NamedTuple):
    """Candidates to score for a user."""

    user: UserRecord
    candidates: Sequence[str]


class VersionScorer:
    """Scores with the model and the item vectors of one opened version.

    Args:
        max_batch_size: Most requests per forward of `batcher`.

    Raises:
        StoreError: Model and vectors do not match.
    """

    def __init__(self, version: StoreVersion, max_batch_size: int = 1) -> None:
        self.name = version.name
        self._manifest = version.manifest
        self._fallback = None if version.users is None else version.users.fallback
        self._scorer = version.load_scorer()
        ids = version.catalogue.ids
        self._source_of: dict[str, Source] = dict.fromkeys(ids, "individual")
        if version.items is not None:
            sources = cast(list[Source], version.items.sources(ids))
            self._source_of = dict(zip(ids, sources, strict=True))
        self.batcher = Batcher(
            self.score_batch,
            max_batch_size=max_batch_size,
            max_weight=MAX_BATCH_CANDIDATES,
            weigh=lambda question: len(question.candidates),
        )
        require_finite_scores(version, self._scorer)  # also warms up the first forward

    def score_batch(self, questions: Sequence[Question]) -> list[Scores | Exception]:
        """Score the candidates of several users in one forward; an exception is for one question.

        Raises:
            StoreError: A user's vector does not match the model.
        """
        scores = self._scorer.score_batch(
            [(self._input(question.user), question.candidates) for question in questions]
        )
        return [self._answer(*pair) for pair in zip(questions, scores, strict=True)]

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
        fits = question.user.store_version == self.name
        if len(scores):
            ray_metrics.observe("reki_request_mean_score", float(scores.mean()))
        return Scores(
            scores=scores.tolist(),
            sources=[self._source_of.get(item, FALLBACK) for item in question.candidates],
            user_source=question.user.source if fits else FALLBACK,
            degraded=not fits,
            variant=self._manifest.arm,
            model_version=self._manifest.model_fingerprint[:12],
            store_version=self.name,
        )

    def _input(self, user: UserRecord) -> UserInput:
        # The vector of another model is meaningless.
        vector = user.vector if user.store_version == self.name else None
        events = [HistoryEvent(*event) for event in user.profile.latest(self._scorer.history)]
        return UserInput(
            user.profile.attributes, events, self._fallback if vector is None else vector
        )


class Scorer(VersionCache[VersionScorer]):
    """Serves a `VersionScorer` per version."""

    def __init__(self, access: StoreAccess, max_batch_size: int) -> None:
        torch.set_num_threads(1)  # the matrices of a request are too small for more
        super().__init__(access, partial(VersionScorer, max_batch_size=max_batch_size))
        self.start()

    async def score(self, user: UserRecord, candidates: Sequence[str], version: int) -> Scores:
        """Return probabilities of the candidates, known or not, in their order.

        Raises:
            StoreError: The version does not open, or has no finite score.
        """
        scorer = await self.get(version)
        return await scorer.batcher.ask(Question(user, candidates))
