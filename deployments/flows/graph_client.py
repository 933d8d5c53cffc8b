"""Clients of the rest of the graph: behind Serve's handles, or in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Final, Protocol

from ray.serve.handle import DeploymentHandle
from typing_extensions import override

from deployments.flows.deadline import GONE
from deployments.parts.records import Scores, UserRecord
from deployments.schemas import KnowledgeResponse, SampleResponse
from reki_ray.core.ray_cluster import cause_of
from reki_ray.schema import Side

PREPARE_SECONDS: Final = 120.0
"""Time that a replica has to open a version."""


class GraphClient(Protocol):
    """The rest of the graph. Every call names the version to answer from."""

    retrieves: bool
    """Whether there is a retriever."""
    reranks: bool
    """Whether there is a reranker."""

    def user(self, user_id: str, version: int) -> Awaitable[UserRecord]:
        """Look up a user."""

    def titles(self, item_ids: Sequence[str], version: int) -> Awaitable[list[str | None]]:
        """Look up titles."""

    def explain(
        self, side: Side, subject_id: str, version: int
    ) -> Awaitable[KnowledgeResponse | None]:
        """Look up the texts behind a vector."""

    def sample(self, users: int, items: int, version: int) -> Awaitable[SampleResponse]:
        """Return some ids of the store."""

    def candidates(
        self, user: UserRecord, k: int, exclude: Sequence[str], version: int
    ) -> Awaitable[list[str]]:
        """Retrieve at most k unseen items."""

    def score(self, user: UserRecord, candidates: Sequence[str], version: int) -> Awaitable[Scores]:
        """Score candidates in their order."""

    def rerank(
        self, user: UserRecord, item_ids: Sequence[str], scores: Sequence[float], version: int
    ) -> Awaitable[list[int]]:
        """Return the places of the items, best first."""

    def prepare(self, version: int) -> Awaitable[None]:
        """Make every replica open a version; raises StoreError if one cannot."""


class LocalClient:
    """Calls parts in the same process."""

    def __init__(
        self, lookup: Any, scorer: Any, retriever: Any = None, reranker: Any = None
    ) -> None:
        self._parts = [part for part in (lookup, scorer, retriever, reranker) if part is not None]
        self.retrieves = retriever is not None
        self.reranks = reranker is not None
        # Bound once: `handle.method` creates a new handle each time.
        self.user = self._method(lookup.user)
        self.titles = self._method(lookup.titles)
        self.explain = self._method(lookup.explain)
        self.sample = self._method(lookup.sample)
        self.score = self._method(scorer.score)
        if retriever is not None:
            self.candidates = self._method(retriever.candidates)
        if reranker is not None:
            self.rerank = self._method(reranker.rerank)

    def _method(self, method: Any) -> Any:
        return method

    async def prepare(self, version: int) -> None:
        """Open a version in every part; see `GraphClient`."""
        async with asyncio.timeout(PREPARE_SECONDS):
            for part in self._parts:
                await part.prepare(version)


class HandleClient(LocalClient):
    """Calls other deployments through Serve's handles."""

    @override
    def _method(self, method: Any) -> Any:
        return method.remote

    @override
    async def prepare(self, version: int) -> None:
        await asyncio.gather(*(self._prepare(part, version) for part in self._parts))

    async def _prepare(self, part: DeploymentHandle[Any], version: int) -> None:
        answers = await part.broadcast("prepare", version).results_async(
            timeout_s=PREPARE_SECONDS, return_exceptions=True
        )
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        # A replica that died opens the version when it restarts; any other error would fail each
        # of its requests.
        failures = [error for error in errors if not isinstance(error, GONE)]
        if failures or (errors and len(errors) == len(answers)):
            error = (failures or errors)[0]
            raise cause_of(error) or error
