"""Deployment `Lookup`: profiles, users' vectors and the text behind vectors."""

from __future__ import annotations

import dataclasses
from typing import cast

from deployments.messages import NO_PROFILE, Behind, Sample, UserRecord
from reki_ray.schema import Side, Source
from reki_ray.store.versions import StoreVersion, VersionStore


class StoreReader:
    """Answers from one opened version; files are mapped once, here.

    Args:
        version: The opened version.
    """

    def __init__(self, version: StoreVersion) -> None:
        self._version = version

    def user(self, user_id: str) -> UserRecord:
        """Profile and vector of a user; fallbacks where the store does not know them."""
        profile = self._version.profile(user_id)
        source: Source = "fallback" if profile is None else "individual"
        vector = None
        if self._version.users is not None:
            vectors, sources = self._version.users.lookup([user_id])
            vector, source = vectors[0], cast(Source, sources[0])
        return UserRecord(profile or NO_PROFILE, vector, source, self._version.name)

    def behind(self, side: Side, subject_id: str) -> Behind | None:
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

    def sample(self, users: int, items: int) -> Sample:
        """The first ids in the order of the store."""
        return Sample(
            self._version.profiles.ids(users),
            [(item.item_id, item.title) for item in self._version.catalogue.first(items)],
            self._version.name,
        )


class Lookup:
    """Serves a `StoreReader`.

    Args:
        publish_root: Folder of the versions.
        version: Number of the version.

    Raises:
        StoreError: The version is missing or damaged.
    """

    def __init__(self, publish_root: str, version: int) -> None:
        self._reader = StoreReader(VersionStore(publish_root).open(version))

    # A lookup takes microseconds: a thread of its own would cost more than it frees.
    async def user(self, user_id: str) -> UserRecord:
        """See `StoreReader.user`."""
        return self._reader.user(user_id)

    async def behind(self, side: Side, subject_id: str) -> Behind | None:
        """See `StoreReader.behind`."""
        return self._reader.behind(side, subject_id)

    async def sample(self, users: int, items: int) -> Sample:
        """See `StoreReader.sample`."""
        return self._reader.sample(users, items)
