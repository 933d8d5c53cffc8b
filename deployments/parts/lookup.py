"""Deployment `Lookup`: profiles, users' vectors and the texts behind vectors."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from typing_extensions import override

from deployments.graph_args import StoreAccess
from deployments.parts.records import NO_PROFILE, Explanation, Lack, SampledIds, UserRecord
from deployments.parts.vector_server import VectorServer
from deployments.parts.version_cache import VersionedPart
from reki_ray.errors import StoreError
from reki_ray.schema import Side, Source
from reki_ray.store.kv import VectorsLostError
from reki_ray.store.version import StoreVersion

logger = logging.getLogger(__name__)


class AddRecent(Protocol):
    """Adds the interactions since a version was built (`extensions.RecentHistories`)."""

    def __call__(self, user_id: str, record: UserRecord) -> UserRecord:
        """Return the record with the user's recent interactions."""

    def close(self) -> None:
        """Stop what runs in the background."""


OpenRecent = Callable[[], AddRecent]
"""Called once per replica."""


class StoreReader:
    """Answers from one opened version, whose files are mapped here."""

    def __init__(self, version: StoreVersion) -> None:
        self._version = version
        self.waits = version.waits

    def profile(self, user_id: str) -> UserRecord:
        """Return the record of a user without vector and version."""
        profile = self._version.profile(user_id)
        source: Source = "fallback" if profile is None else "individual"
        return UserRecord(profile or NO_PROFILE, source=source)

    def user(self, user_id: str) -> UserRecord:
        """Return profile and vector of a user, or fallbacks for an unknown one.

        Raises:
            StoreError: A vector server does not answer, or has lost its vectors.
        """
        return self.with_vector(user_id, self.profile(user_id))

    def with_vector(self, user_id: str, record: UserRecord) -> UserRecord:
        """Add the vector to the record of a user; raises as `user`."""
        if self._version.users is None:
            return dataclasses.replace(record, store_version=self._version.name)
        vectors, sources = self._version.users.lookup([user_id])
        return UserRecord(record.profile, vectors[0], cast(Source, sources[0]), self._version.name)

    def titles(self, item_ids: Sequence[str]) -> list[str | None]:
        """Return the title of each item; None for unknown ones."""
        items = [self._version.catalogue.get(item_id) for item_id in item_ids]
        return [None if item is None else item.title for item in items]

    def explain(self, side: Side, subject_id: str) -> Explanation | None:
        """Return what a vector was made from; None for an unknown id."""
        title: str | None = None
        if side == "items":
            vectors, item = self._version.items, self._version.catalogue.get(subject_id)
            if item is None:
                return None
            title, attributes = item.title, item.attributes
        else:
            vectors, profile = self._version.users, self._version.profile(subject_id)
            if profile is None:
                return None
            attributes = profile.attributes
        source = vectors.sources([subject_id])[0] if vectors is not None else "individual"
        texts = self._version.knowledge(side, subject_id)
        return Explanation(
            title=title,
            attributes=attributes,
            source=cast(Source, source),
            cluster_id=self._version.cluster_of(side, subject_id),
            texts=[dataclasses.asdict(text) for text in texts],
            store_version=self._version.name,
        )

    def sample(self, users: int, items: int) -> SampledIds:
        """Return the first ids in the order of the store."""
        return SampledIds(
            self._version.profiles.ids(users),
            [(item.item_id, item.title) for item in self._version.catalogue.first(items)],
            self._version.name,
        )


class Lookup(VersionedPart[StoreReader]):
    """Serves a `StoreReader` per version.

    Args:
        access: Where versions are.
        recent: Opens recent interactions, which are added to the stored ones.

    Raises:
        StoreError: Neither CURRENT nor an older version opens.
    """

    def __init__(self, access: StoreAccess, recent: OpenRecent | None = None) -> None:
        super().__init__(access, StoreReader)
        self._server = VectorServer(access.vectors)
        self._add_recent = None if recent is None else recent()

    async def user(self, user_id: str, version: int) -> UserRecord:
        """Return profile, recent interactions and vector of a user.

        If the vector cannot be looked up, the record lacks it: the history still counts, and the
        scorer marks the answer as degraded.
        """
        reader = await self._versions.get(version)
        stored = reader.profile(user_id)  # first, so that it never waits for a server
        try:
            # Mapped files answer in microseconds: a thread would cost more.
            if reader.waits:
                record = await self._server.run(lambda: reader.with_vector(user_id, stored))
            else:
                record = reader.with_vector(user_id, stored)
        except Exception as error:  # noqa: BLE001  # scores need no vector
            what = error.what if isinstance(error, StoreError) else repr(error)
            logger.warning("scoring a user without vector: %s", what)
            lost = isinstance(error, VectorsLostError)
            lack: Lack = "vectors_lost" if lost else "vectors_unavailable"
            record = UserRecord(stored.profile, lack=lack)
        return record if self._add_recent is None else self._add_recent(user_id, record)

    async def titles(self, item_ids: Sequence[str], version: int) -> list[str | None]:
        """Return the title of each item; None for unknown ones."""
        return (await self._versions.get(version)).titles(item_ids)

    async def explain(self, side: Side, subject_id: str, version: int) -> Explanation | None:
        """Return what a vector was made from; None for an unknown id."""
        reader = await self._versions.get(version)
        if not reader.waits:
            return reader.explain(side, subject_id)
        return await self._server.run(lambda: reader.explain(side, subject_id))

    async def sample(self, users: int, items: int, version: int) -> SampledIds:
        """Return the first ids in the order of the store."""
        return (await self._versions.get(version)).sample(users, items)

    @override
    def close(self) -> None:
        super().close()
        if self._add_recent is not None:
            self._add_recent.close()
