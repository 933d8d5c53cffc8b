"""Deployment `Lookup`: profiles, users' vectors and the texts behind vectors."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import cast

from typing_extensions import override

from deployments.graph_args import OnlineArgs, StoreAccess
from deployments.parts.recent_histories import RecentHistories
from deployments.parts.records import NO_PROFILE, Lack, UserRecord
from deployments.parts.vector_server import VectorServer
from deployments.parts.version_cache import VersionCache
from deployments.schemas import KnowledgeResponse, KnowledgeText, SampleItem, SampleResponse
from reki_ray.errors import StoreError
from reki_ray.schema import Side, Source
from reki_ray.store.kv import VectorsLostError
from reki_ray.store.tables import CatalogueItem, Profile
from reki_ray.store.version import StoreVersion

logger = logging.getLogger(__name__)


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
        """Return profile and vector of a user, or fallbacks for an unknown one."""
        return self.with_vector(user_id, self.profile(user_id))

    def with_vector(self, user_id: str, record: UserRecord) -> UserRecord:
        """Add the vector to the record of a user.

        Raises:
            StoreError: A vector server does not answer, or has lost its vectors.
        """
        if self._version.users is None:
            return dataclasses.replace(record, store_version=self._version.name)
        vectors, sources = self._version.users.lookup([user_id])
        return UserRecord(record.profile, vectors[0], cast(Source, sources[0]), self._version.name)

    def titles(self, item_ids: Sequence[str]) -> list[str | None]:
        """Return the title of each item; None for unknown ones."""
        items = [self._version.catalogue.get(item_id) for item_id in item_ids]
        return [None if item is None else item.title for item in items]

    def explain(self, side: Side, subject_id: str) -> KnowledgeResponse | None:
        """Return what a vector was made from; None for an unknown id."""
        subject: CatalogueItem | Profile | None
        if side == "items":
            vectors, subject = self._version.items, self._version.catalogue.get(subject_id)
        else:
            vectors, subject = self._version.users, self._version.profile(subject_id)
        if subject is None:
            return None
        source = vectors.sources([subject_id])[0] if vectors is not None else "individual"
        texts = self._version.knowledge(side, subject_id)
        return KnowledgeResponse(
            id=subject_id,
            side=side,
            title=getattr(subject, "title", None),
            attributes=subject.attributes,
            source=cast(Source, source),
            cluster_id=self._version.cluster_of(side, subject_id),
            knowledge=[KnowledgeText(**vars(text)) for text in texts],
            store_version=self._version.name,
        )

    def sample(self, users: int, items: int) -> SampleResponse:
        """Return the first ids in the order of the store."""
        first = self._version.catalogue.first(items)
        return SampleResponse(
            users=self._version.profiles.ids(users),
            items=[SampleItem(item_id=item.item_id, title=item.title) for item in first],
            store_version=self._version.name,
        )


class Lookup(VersionCache[StoreReader]):
    """Serves a `StoreReader` per version; without `online`, recent events are not added."""

    def __init__(self, access: StoreAccess, online: OnlineArgs | None = None) -> None:
        super().__init__(access, StoreReader)
        self.start()
        self._server = VectorServer(access.vectors)
        self._add_recent = None if online is None else RecentHistories(online, access)

    async def user(self, user_id: str, version: int) -> UserRecord:
        """Return profile, recent interactions and vector of a user.

        If the vector cannot be looked up, the record lacks it: the history still counts, and the
        scorer marks the answer as degraded.
        """
        reader = await self.get(version)
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
        return (await self.get(version)).titles(item_ids)

    async def explain(self, side: Side, subject_id: str, version: int) -> KnowledgeResponse | None:
        """Return what a vector was made from; None for an unknown id."""
        reader = await self.get(version)
        if not reader.waits:
            return reader.explain(side, subject_id)
        return await self._server.run(lambda: reader.explain(side, subject_id))

    async def sample(self, users: int, items: int, version: int) -> SampleResponse:
        """Return the first ids in the order of the store."""
        return (await self.get(version)).sample(users, items)

    @override
    def close(self) -> None:
        super().close()
        if self._add_recent is not None:
            self._add_recent.close()
