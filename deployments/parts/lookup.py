"""Deployment `Lookup`: profiles, users' vectors and the texts behind vectors."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

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

T = TypeVar("T")

logger = logging.getLogger(__name__)


def read_profile(version: StoreVersion, user_id: str) -> UserRecord:
    """Return the record of a user, known or not, without vector and version."""
    profile = version.profile(user_id)
    source: Source = "fallback" if profile is None else "individual"
    return UserRecord(profile or NO_PROFILE, source=source)


def add_vector(version: StoreVersion, user_id: str, record: UserRecord) -> UserRecord:
    """Return the record of a user with the vector, that of the fallback for an unknown user.

    Raises:
        StoreError: A vector server does not answer, or has lost its vectors.
    """
    if version.users is None:
        return dataclasses.replace(record, store_version=version.name)
    vectors, sources = version.users.lookup([user_id])
    return UserRecord(record.profile, vectors[0], cast(Source, sources[0]), version.name)


def _explain(version: StoreVersion, side: Side, subject_id: str) -> KnowledgeResponse | None:
    subject: CatalogueItem | Profile | None
    if side == "items":
        vectors, subject = version.items, version.catalogue.get(subject_id)
    else:
        vectors, subject = version.users, version.profile(subject_id)
    if subject is None:
        return None
    source = vectors.sources([subject_id])[0] if vectors is not None else "individual"
    return KnowledgeResponse(
        id=subject_id,
        side=side,
        title=getattr(subject, "title", None),
        attributes=subject.attributes,
        source=cast(Source, source),
        cluster_id=version.cluster_of(side, subject_id),
        knowledge=[KnowledgeText(**vars(text)) for text in version.knowledge(side, subject_id)],
        store_version=version.name,
    )


class Lookup(VersionCache[StoreVersion]):
    """Answers from the files of a version; without `online`, recent events are not added."""

    def __init__(self, access: StoreAccess, online: OnlineArgs | None = None) -> None:
        super().__init__(access, lambda version: version)
        self.start()
        self._server = VectorServer(access.vectors)
        self._add_recent = None if online is None else RecentHistories(online, access)

    async def user(self, user_id: str, version: int) -> UserRecord:
        """Return profile, recent interactions and vector of a user.

        If the vector cannot be looked up, the record lacks it: the history still counts, and the
        scorer marks the answer as degraded.
        """
        opened = await self.get(version)
        stored = read_profile(opened, user_id)  # first, so that it never waits for a server
        try:
            record = await self._look_up(opened, lambda: add_vector(opened, user_id, stored))
        except Exception as error:  # noqa: BLE001  # scores need no vector
            what = error.what if isinstance(error, StoreError) else repr(error)
            logger.warning("scoring a user without vector: %s", what)
            lost = isinstance(error, VectorsLostError)
            lack: Lack = "vectors_lost" if lost else "vectors_unavailable"
            record = UserRecord(stored.profile, lack=lack)
        return record if self._add_recent is None else self._add_recent(user_id, record)

    async def titles(self, item_ids: Sequence[str], version: int) -> list[str | None]:
        """Return the title of each item; None for unknown ones."""
        catalogue = (await self.get(version)).catalogue
        items = [catalogue.get(item_id) for item_id in item_ids]
        return [None if item is None else item.title for item in items]

    async def explain(self, side: Side, subject_id: str, version: int) -> KnowledgeResponse | None:
        """Return what a vector was made from; None for an unknown id."""
        opened = await self.get(version)
        return await self._look_up(opened, lambda: _explain(opened, side, subject_id))

    async def sample(self, users: int, items: int, version: int) -> SampleResponse:
        """Return the first ids in the order of the store."""
        opened = await self.get(version)
        first = opened.catalogue.first(items)
        return SampleResponse(
            users=opened.profiles.ids(users),
            items=[SampleItem(item_id=item.item_id, title=item.title) for item in first],
            store_version=opened.name,
        )

    async def _look_up(self, version: StoreVersion, read: Callable[[], T]) -> T:
        # Mapped files answer in microseconds: a thread would cost more.
        return await self._server.run(read) if version.waits else read()

    @override
    def close(self) -> None:
        super().close()
        if self._add_recent is not None:
            self._add_recent.close()
