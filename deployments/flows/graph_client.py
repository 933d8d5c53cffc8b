"""The rest of the graph as the gateway sees it: behind Serve's handles, or in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Final, Protocol

from ray.serve.handle import DeploymentHandle

from deployments.errors import ApiError
from deployments.flows.deadline import GONE
from deployments.parts.lookup import Lookup
from deployments.parts.records import Behind, SampledIds, Scores, UserRecord
from reki_ray.core.ray_cluster import cause_of
from reki_ray.schema import Side

PREPARE_SECONDS: Final = 120.0
"""Time in which a replica has to open a version."""


class RetrieverLike(Protocol):
    """What a retriever does (deployments/parts/retriever.py)."""

    async def candidates(
        self, user: UserRecord, k: int, exclude: Sequence[str], version: int
    ) -> list[str]:
        """At most k items for a user, without those they have met and those to exclude."""

    async def prepare(self, version: int) -> None:
        """Open a version."""


class RerankerLike(Protocol):
    """What a reranker does (deployments/parts/reranker.py)."""

    async def rerank(
        self, user: UserRecord, item_ids: Sequence[str], scores: Sequence[float], version: int
    ) -> list[int]:
        """Places of the items, the best one first; as they came where the version has no model."""

    async def prepare(self, version: int) -> None:
        """Load a version."""


class ScorerLike(Protocol):
    """What a scorer does (deployments/parts/scorer.py), without importing torch here."""

    async def score(self, user: UserRecord, candidates: Sequence[str], version: int) -> Scores:
        """Scores in the order of the candidates."""

    async def prepare(self, version: int) -> None:
        """Load a version."""


class GraphClient(Protocol):
    """The rest of the graph. Every call names the version to answer from."""

    retrieves: bool
    """Whether `candidates` can be asked."""
    reranks: bool
    """Whether `rerank` can be asked."""

    def user(self, user_id: str, version: int) -> Awaitable[UserRecord]:
        """Ask the lookup for a user."""

    def titles(self, item_ids: Sequence[str], version: int) -> Awaitable[list[str | None]]:
        """Ask the lookup for titles."""

    def explain(self, side: Side, subject_id: str, version: int) -> Awaitable[Behind | None]:
        """Ask the lookup what stands behind a vector."""

    def sample(self, users: int, items: int, version: int) -> Awaitable[SampledIds]:
        """Ask the lookup for some ids."""

    def candidates(
        self, user: UserRecord, k: int, exclude: Sequence[str], version: int
    ) -> Awaitable[list[str]]:
        """Ask the retriever."""

    def score(self, user: UserRecord, candidates: Sequence[str], version: int) -> Awaitable[Scores]:
        """Ask the scorer."""

    def rerank(
        self, user: UserRecord, item_ids: Sequence[str], scores: Sequence[float], version: int
    ) -> Awaitable[list[int]]:
        """Ask the reranker."""

    def prepare(self, version: int) -> Awaitable[None]:
        """Have every replica open a version.

        Raises:
            StoreError: One of them cannot.
        """


class HandleClient:
    """The rest of the graph behind Serve's handles.

    Args:
        lookup: Handle of `Lookup`.
        scorer: Handle of `Scorer`.
        retriever: Handle of a retriever; None in a graph without.
        reranker: Handle of a reranker; None in a graph without.
    """

    def __init__(
        self,
        lookup: DeploymentHandle[Any],
        scorer: DeploymentHandle[Any],
        retriever: DeploymentHandle[Any] | None = None,
        reranker: DeploymentHandle[Any] | None = None,
    ) -> None:
        self._all = [part for part in (lookup, scorer, retriever, reranker) if part is not None]
        self.retrieves = retriever is not None
        self.reranks = reranker is not None
        # Bound once: `handle.method` makes a new handle each time.
        self._user = lookup.user
        self._titles = lookup.titles
        self._behind = lookup.explain
        self._sample = lookup.sample
        self._score = scorer.score
        self._candidates = None if retriever is None else retriever.candidates
        self._rerank = None if reranker is None else reranker.rerank

    def user(self, user_id: str, version: int) -> Awaitable[UserRecord]:
        """See `GraphClient`."""
        return self._user.remote(user_id, version)

    def titles(self, item_ids: Sequence[str], version: int) -> Awaitable[list[str | None]]:
        """See `GraphClient`."""
        return self._titles.remote(item_ids, version)

    def explain(self, side: Side, subject_id: str, version: int) -> Awaitable[Behind | None]:
        """See `GraphClient`."""
        return self._behind.remote(side, subject_id, version)

    def sample(self, users: int, items: int, version: int) -> Awaitable[SampledIds]:
        """See `GraphClient`."""
        return self._sample.remote(users, items, version)

    def candidates(
        self, user: UserRecord, k: int, exclude: Sequence[str], version: int
    ) -> Awaitable[list[str]]:
        """See `GraphClient`."""
        if self._candidates is None:
            raise no_retrieval()
        return self._candidates.remote(user, k, exclude, version)

    def score(self, user: UserRecord, candidates: Sequence[str], version: int) -> Awaitable[Scores]:
        """See `GraphClient`."""
        return self._score.remote(user, candidates, version)

    def rerank(
        self, user: UserRecord, item_ids: Sequence[str], scores: Sequence[float], version: int
    ) -> Awaitable[list[int]]:
        """See `GraphClient`."""
        assert self._rerank is not None
        return self._rerank.remote(user, item_ids, scores, version)

    async def prepare(self, version: int) -> None:
        """See `GraphClient`."""
        await asyncio.gather(*(self._prepare(part, version) for part in self._all))

    async def _prepare(self, part: DeploymentHandle[Any], version: int) -> None:
        answers = await part.broadcast("prepare", version).results_async(
            timeout_s=PREPARE_SECONDS, return_exceptions=True
        )
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        # A replica that died meanwhile opens the version when it is back; one that answers that
        # it cannot, for whatever reason, would fail each of its requests.
        failures = [error for error in errors if not isinstance(error, GONE)]
        if failures or (errors and len(errors) == len(answers)):
            error = (failures or errors)[0]
            raise cause_of(error) or error


class LocalClient:
    """The rest of the graph as objects of this process: no hop.

    Args:
        lookup: As the deployment's class.
        scorer: As the deployment's class.
        retriever: As the deployment's class; None in a graph without.
        reranker: As the deployment's class; None in a graph without.
    """

    def __init__(
        self,
        lookup: Lookup,
        scorer: ScorerLike,
        retriever: RetrieverLike | None = None,
        reranker: RerankerLike | None = None,
    ) -> None:
        self._all = [part for part in (lookup, scorer, retriever, reranker) if part is not None]
        self.retrieves = retriever is not None
        self.reranks = reranker is not None
        self._retriever = retriever
        self._reranker = reranker
        self.user = lookup.user
        self.titles = lookup.titles
        self.explain = lookup.explain
        self.sample = lookup.sample
        self.score = scorer.score

    def candidates(
        self, user: UserRecord, k: int, exclude: Sequence[str], version: int
    ) -> Awaitable[list[str]]:
        """See `GraphClient`."""
        if self._retriever is None:
            raise no_retrieval()
        return self._retriever.candidates(user, k, exclude, version)

    def rerank(
        self, user: UserRecord, item_ids: Sequence[str], scores: Sequence[float], version: int
    ) -> Awaitable[list[int]]:
        """See `GraphClient`."""
        assert self._reranker is not None
        return self._reranker.rerank(user, item_ids, scores, version)

    async def prepare(self, version: int) -> None:
        """See `GraphClient`."""
        async with asyncio.timeout(PREPARE_SECONDS):
            for part in self._all:
                await part.prepare(version)


def no_retrieval() -> ApiError:
    """What a graph without retriever answers to who asks for recommendations."""
    return ApiError(
        404, "no_retrieval", "This graph has no retriever; name candidates to /v1/score."
    )
