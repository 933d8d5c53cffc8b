"""Deployment `Reranker`: puts what was scored in order, as a list."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deployments.parts.records import UserRecord
from deployments.parts.version_cache import StoreAccess
from reki_ray.store.versions import StoreVersion

if TYPE_CHECKING:  # torch is large, and a version without a reranker does without it
    from reki_ray.store.reranker import VersionReranker


class VersionOrder:
    """Order of lists by one opened version; as they came where it has no reranker.

    Args:
        version: The opened version.

    Raises:
        StoreError: A file of its reranker is missing or damaged.
    """

    def __init__(self, version: StoreVersion) -> None:
        self._name = version.name
        self._reranker = _open(version)
        # The first forward sets up what later ones reuse: no request has to wait for it.
        self.order(UserRecord(), version.catalogue.ids[:1])

    @property
    def reranks(self) -> bool:
        """Whether the version has a reranker."""
        return self._reranker is not None

    def order(self, user: UserRecord, item_ids: Sequence[str]) -> list[int]:
        """Places of items, the best one first.

        Args:
            user: What is known of the user.
            item_ids: Items, best guess first.
        """
        if self._reranker is None:
            return list(range(len(item_ids)))
        # Another version's vector means nothing; without a lookup there is none.
        stored = user.vector if user.store_version == self._name else None
        return self._reranker.order(user.user_id, user.profile, stored, item_ids)


class Reranker:
    """Serves a `VersionOrder` of each version that it is asked for.

    Args:
        access: Where versions are.

    Raises:
        StoreError: Neither CURRENT nor an older version opens.
    """

    def __init__(self, access: StoreAccess) -> None:
        self._versions = access.cache(VersionOrder)

    async def prepare(self, version: int) -> None:
        """Load a version, if it is not yet.

        Raises:
            StoreError: It is missing or damaged.
        """
        await self._versions.open(version)

    async def rerank(
        self, user: UserRecord, item_ids: Sequence[str], scores: Sequence[float], version: int
    ) -> list[int]:
        """See `VersionOrder.order`; rerankers have learned from items, not from their scores."""
        found = await self._versions.get(version)
        if not found.reranks:
            return list(range(len(item_ids)))
        # Milliseconds, in which others may be answered.
        return await asyncio.to_thread(found.order, user, item_ids)

    def close(self) -> None:
        """End what runs in the background."""
        self._versions.close()


def _open(version: StoreVersion) -> VersionReranker | None:
    if version.manifest.reranker is None:
        return None
    import torch  # see TYPE_CHECKING above

    from reki_ray.store.reranker import open_reranker

    # A list's matrices are small: more threads only wait for each other.
    torch.set_num_threads(1)
    return open_reranker(version)
