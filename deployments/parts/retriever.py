"""Deployment `Retriever`: unseen items that a user may like, for the scorer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from deployments.graph_args import StoreAccess
from deployments.parts.records import UserRecord
from deployments.parts.version_cache import VersionCache
from reki_ray.retrieval.candidates import Candidates
from reki_ray.retrieval.load import PopularItems, open_candidates

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
