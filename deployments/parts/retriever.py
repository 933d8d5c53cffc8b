"""Deployment `Retriever`: unseen items that a user may like, for the scorer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from deployments.parts.records import UserRecord
from deployments.parts.version_cache import StoreAccess
from reki_ray.retrieval.load import open_candidates

INLINE_ITEMS: Final = 20_000
"""A search of so few takes less than a millisecond: a thread would cost more than it frees."""


class Retriever:
    """Serves the candidates of each version that it is asked for.

    Args:
        access: Where versions are.

    Raises:
        StoreError: Neither CURRENT nor an older version opens.
    """

    def __init__(self, access: StoreAccess) -> None:
        self._versions = access.cache(open_candidates)

    async def prepare(self, version: int) -> None:
        """Open a version, if it is not yet.

        Raises:
            StoreError: It is missing or damaged.
        """
        await self._versions.open(version)

    async def candidates(
        self, user: UserRecord, k: int, exclude: Sequence[str], version: int
    ) -> list[str]:
        """At most k items for a user, best guess first, without those they have met.

        Args:
            user: What is known of the user.
            k: Most items.
            exclude: Items to leave out besides.
            version: Number of the version to answer from.

        Raises:
            StoreError: The version is missing or damaged.
        """
        found = await self._versions.get(version)
        history = list(zip(user.profile.item_ids, user.profile.ratings, strict=True))
        left_out = [*exclude, *user.met]
        if len(found) <= INLINE_ITEMS:
            return found.of(user.user_id, history, k, left_out)
        return await asyncio.to_thread(found.of, user.user_id, history, k, left_out)

    def close(self) -> None:
        """End what runs in the background."""
        self._versions.close()
