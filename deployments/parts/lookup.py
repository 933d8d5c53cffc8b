"""Deployment `Lookup`: profiles, users' vectors and the text behind vectors."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from deployments.parts.records import NO_PROFILE, Behind, Lack, SampledIds, UserRecord
from deployments.parts.vector_server import VectorServer
from deployments.parts.version_cache import StoreAccess
from reki_ray.errors import StoreError
from reki_ray.schema import Side, Source
from reki_ray.store.kv import VectorsLostError
from reki_ray.store.versions import StoreVersion


class AddRecent(Protocol):
    """Knows the interactions that came since a version was built."""

    def __call__(self, user_id: str, record: UserRecord) -> UserRecord:
        """What is known of a user, with them."""

    def close(self) -> None:
        """End what runs in the background."""


OpenRecent = Callable[[], AddRecent]
"""Opens what is known of recent interactions; called once, in the replica."""


logger = logging.getLogger(__name__)


class StoreReader:
    """Answers from one opened version; files are mapped once, here.

    Args:
        version: The opened version.
    """

    def __init__(self, version: StoreVersion) -> None:
        self._version = version
        self.waits = version.waits

    def profile(self, user_id: str) -> UserRecord:
        """What the version's own files hold of a user; of no version, and so without vector."""
        found = self._version.profile(user_id)
        return UserRecord(found or NO_PROFILE, source="fallback" if found is None else "individual")

    def user(self, user_id: str) -> UserRecord:
        """Profile and vector of a user; fallbacks where the store does not know them.

        Raises:
            StoreError: A server of vectors does not answer, or has lost them.
        """
        return self.with_vector(user_id, self.profile(user_id))

    def with_vector(self, user_id: str, found: UserRecord) -> UserRecord:
        """The profile of a user with the vector.

        Raises:
            StoreError: See `user`.
        """
        if self._version.users is None:
            return dataclasses.replace(found, store_version=self._version.name)
        vectors, sources = self._version.users.lookup([user_id])
        return UserRecord(found.profile, vectors[0], cast(Source, sources[0]), self._version.name)

    def titles(self, item_ids: Sequence[str]) -> list[str | None]:
        """Title of each item; None where the catalogue does not hold it."""
        items = [self._version.catalogue.get(item_id) for item_id in item_ids]
        return [None if item is None else item.title for item in items]

    def explain(self, side: Side, subject_id: str) -> Behind | None:
        """What stands behind the vector of an id; None where the store does not know the id."""
        if side == "items":
            item = self._version.catalogue.get(subject_id)
            title, attributes = (item.title, item.attributes) if item else (None, None)
            known = item is not None
        else:
            profile = self._version.profile(subject_id)
            title, attributes = None, profile.attributes if profile else None
            known = profile is not None
        if not known:
            return None
        vectors = self._version.users if side == "users" else self._version.items
        source = vectors.sources([subject_id])[0] if vectors is not None else "individual"
        return Behind(
            title=title,
            attributes=attributes,
            source=cast(Source, source),
            cluster_id=self._version.cluster_of(side, subject_id),
            texts=[
                dataclasses.asdict(entry) for entry in self._version.knowledge(side, subject_id)
            ],
            store_version=self._version.name,
        )

    def sample(self, users: int, items: int) -> SampledIds:
        """The first ids in the order of the store."""
        return SampledIds(
            self._version.profiles.ids(users),
            [(item.item_id, item.title) for item in self._version.catalogue.first(items)],
            self._version.name,
        )


class Lookup:
    """Serves a `StoreReader` of each version that it is asked for.

    Args:
        access: Where versions are.
        recent: Opens recent interactions, which then join the stored ones; None leaves them out.

    Raises:
        StoreError: Neither CURRENT nor an older version opens.
    """

    def __init__(self, access: StoreAccess, recent: OpenRecent | None = None) -> None:
        self._versions = access.cache(StoreReader)
        self._server = VectorServer(access.vectors)
        self._add_recent = None if recent is None else recent()

    async def prepare(self, version: int) -> None:
        """Open a version, if it is not yet.

        Raises:
            StoreError: It is missing or damaged.
        """
        await self._versions.open(version)

    async def user(self, user_id: str, version: int) -> UserRecord:
        """See `StoreReader.user`; with recent interactions, where they are known.

        Where vectors cannot be looked up, the profile comes without a vector: the history still
        counts, and the scorer says that the answer is degraded.
        """
        reader = await self._versions.get(version)
        found = await self._user(reader, user_id)
        if self._add_recent is None:
            return found
        return self._add_recent(user_id, found)

    async def titles(self, item_ids: Sequence[str], version: int) -> list[str | None]:
        """See `StoreReader.titles`."""
        return (await self._versions.get(version)).titles(item_ids)

    async def explain(self, side: Side, subject_id: str, version: int) -> Behind | None:
        """See `StoreReader.explain`."""
        reader = await self._versions.get(version)
        if not reader.waits:
            return reader.explain(side, subject_id)
        return await self._server.ask(lambda: reader.explain(side, subject_id))

    async def sample(self, users: int, items: int, version: int) -> SampledIds:
        """See `StoreReader.sample`."""
        return (await self._versions.get(version)).sample(users, items)

    def close(self) -> None:
        """End what runs in the background."""
        self._versions.close()
        if self._add_recent is not None:
            self._add_recent.close()

    async def _user(self, reader: StoreReader, user_id: str) -> UserRecord:
        found = reader.profile(user_id)  # first, so that no server keeps it waiting
        try:
            # Mapped files answer in microseconds: a thread would cost more than it frees.
            if not reader.waits:
                return reader.with_vector(user_id, found)
            return await self._server.ask(lambda: reader.with_vector(user_id, found))
        except Exception as error:  # noqa: BLE001  # whatever it is, the history needs no vector
            what = error.what if isinstance(error, StoreError) else repr(error)
            logger.warning("a user is scored without vector: %s", what)
            lost = isinstance(error, VectorsLostError)
            lack: Lack = "vectors_lost" if lost else "vectors_unavailable"
            return UserRecord(found.profile, lack=lack)
