"""Deployment `Retriever`: unseen items that a user may like, for the scorer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from deployments.graph_args import StoreAccess
from deployments.parts.records import UserRecord
from deployments.parts.version_cache import VersionedPart
from reki_ray.retrieval.candidates import Candidates
from reki_ray.retrieval.load import PopularItems, open_candidates

INLINE_ITEMS: Final = 20_000
"""Catalogue size up to which a search takes less than a millisecond, and a thread costs more."""


class Retriever(VersionedPart[Candidates | PopularItems]):
    """Serves the candidates per version.

    Raises:
        StoreError: Neither CURRENT nor an older version opens.
    """

    def __init__(self, access: StoreAccess) -> None:
        super().__init__(access, open_candidates)

    async def candidates(
        self, user: UserRecord, k: int, exclude: Sequence[str], version: int
    ) -> list[str]:
        """Return at most k items, best guess first, without excluded items and those of the user.

        Raises:
            StoreError: The version is missing or damaged.
        """
        candidates = await self._versions.get(version)
        history = list(zip(user.profile.item_ids, user.profile.ratings, strict=True))
        excluded = [*exclude, *user.met]
        if len(candidates) <= INLINE_ITEMS:
            return candidates.of(user.user_id, history, k, excluded)
        return await asyncio.to_thread(candidates.of, user.user_id, history, k, excluded)
