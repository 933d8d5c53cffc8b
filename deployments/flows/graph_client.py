"""Clients of the rest of the graph: behind Serve's handles, or in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from ray.serve.handle import DeploymentHandle
from typing_extensions import override

from deployments.flows.deadline import GONE
from deployments.parts.records import Scores, UserRecord
from deployments.schemas import KnowledgeResponse, SampleResponse
from reki_ray.core.ray_cluster import cause_of
from reki_ray.schema import Side

PREPARE_SECONDS: Final = 120.0
"""Time that a replica has to open a version."""


class GraphClient:
    """Calls the parts of the graph in this process; every call names the version to answer from.

    Without a retriever or a reranker, `candidates` or `rerank` does not exist.
    """

    user: Callable[[str, int], Awaitable[UserRecord]]
    titles: Callable[[Sequence[str], int], Awaitable[list[str | None]]]
    explain: Callable[[Side, str, int], Awaitable[KnowledgeResponse | None]]
    sample: Callable[[int, int, int], Awaitable[SampleResponse]]
    score: Callable[[UserRecord, Sequence[str], int], Awaitable[Scores]]
    candidates: Callable[[UserRecord, int, Sequence[str], int], Awaitable[list[str]]]
    rerank: Callable[[UserRecord, Sequence[str], Sequence[float], int], Awaitable[list[int]]]

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
        """Make every replica open a version; raises StoreError if one cannot."""
        async with asyncio.timeout(PREPARE_SECONDS):
            for part in self._parts:
                await part.prepare(version)


class HandleClient(GraphClient):
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
