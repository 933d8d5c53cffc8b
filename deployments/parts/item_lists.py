"""Deployments `Retriever` and `Reranker`: unseen items for the scorer, and their final order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from deployments.graph_args import StoreAccess
from deployments.parts.records import UserRecord
from deployments.parts.version_cache import VersionCache
from reki_ray.retrieval.candidates import Candidates
from reki_ray.retrieval.load import PopularItems, open_candidates
from reki_ray.store.version import StoreVersion

if TYPE_CHECKING:  # torch is large, and only needed for a version with a reranker
    from reki_ray.store.reranker import VersionReranker

INLINE_ITEMS: Final = 20_000
"""Catalogue size up to which a search takes less than a millisecond, and a thread costs more."""


class Retriever(VersionCache[Candidates | PopularItems]):
    """Serves the candidates per version."""

    def __init__(self, access: StoreAccess) -> None:
        super().__init__(access, open_candidates)
        self.start()

    async def candidates(
        self, user: UserRecord, k: int, exclude: Sequence[str], version: int
    ) -> list[str]:
        """Return at most k items, best guess first: none excluded or of the user's history."""
        candidates = await self.get(version)
        history = list(zip(user.profile.item_ids, user.profile.ratings, strict=True))
        excluded = [*exclude, *user.met]
        if len(candidates) <= INLINE_ITEMS:
            return candidates.of(user.user_id, history, k, excluded)
        return await asyncio.to_thread(candidates.of, user.user_id, history, k, excluded)


class VersionOrder:
    """Orders lists with the reranker of one opened version, if it has one.

    Raises:
        StoreError: A file of its reranker is missing or damaged.
    """

    def __init__(self, version: StoreVersion) -> None:
        self._name = version.name
        self.reranker: VersionReranker | None = None
        if version.manifest.reranker is not None:
            import torch  # see TYPE_CHECKING above

            from reki_ray.store.reranker import open_reranker

            torch.set_num_threads(1)  # the matrices of a list are too small for more
            self.reranker = open_reranker(version)
        self.order(UserRecord(), version.catalogue.ids[:1])  # warm-up of the first forward

    def order(self, user: UserRecord, item_ids: Sequence[str]) -> list[int]:
        """Return the places of the items, best first; `item_ids` start with the best guess."""
        if self.reranker is None:
            return list(range(len(item_ids)))
        # The vector of another version is meaningless.
        vector = user.vector if user.store_version == self._name else None
        return self.reranker.order(user.user_id, user.profile, vector, item_ids)


class Reranker(VersionCache[VersionOrder]):
    """Serves a `VersionOrder` per version."""

    def __init__(self, access: StoreAccess) -> None:
        super().__init__(access, VersionOrder)
        self.start()

    async def rerank(
        self, user: UserRecord, item_ids: Sequence[str], scores: Sequence[float], version: int
    ) -> list[int]:
        """Return the places of the items, best first; rerankers were trained without scores."""
        order = await self.get(version)
        if order.reranker is None:
            return list(range(len(item_ids)))
        # It takes milliseconds: a thread lets other requests proceed.
        return await asyncio.to_thread(order.order, user, item_ids)
