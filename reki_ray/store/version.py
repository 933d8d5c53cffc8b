"""One version, opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reki_ray.config import AdapterSettings
from reki_ray.errors import StoreError
from reki_ray.schema import SIDES, Side
from reki_ray.store.hash_index import unusable
from reki_ray.store.kv import Advance, KeyedVectors, export_side, open_vectors
from reki_ray.store.manifest import (
    CATALOGUE_FILE,
    KNOWLEDGE_FILE,
    MANIFEST,
    MODEL_FOLDER,
    NO_MODEL,
    PROFILES_FILE,
    VECTOR_FILES,
    Manifest,
    Prestore,
    checksum,
)
from reki_ray.store.tables import (
    Catalogue,
    CatalogueItem,
    Knowledge,
    KnowledgeEntry,
    Profile,
    Profiles,
)
from reki_ray.store.vectors import VectorTable

if TYPE_CHECKING:  # torch is slow to import, and the lookup does without it
    from reki_ray.models.artifact import ModelBundle, Vectors
    from reki_ray.models.candidate_scorer import CandidateScorer


class StoreVersion:
    """One version: memory-mapped files, safe to share between threads.

    Args:
        layers: Folder and manifest of the version, then of what it lies over; a full version
            has one layer.
        vectors: Where vectors are looked up; None or kind arrow: in the version's own files.

    Raises:
        StoreError: A file is missing or damaged, the vectors do not fit the manifest, or the
            server of vectors does not hold this version.
    """

    def __init__(
        self, layers: Sequence[tuple[Path, Manifest]], vectors: AdapterSettings | None = None
    ) -> None:
        self.folder, self.manifest = layers[0]
        self.layers = tuple(layers)
        folders = [folder for folder, _ in layers]
        self.profiles = Profiles([folder / PROFILES_FILE for folder in folders])
        self.catalogue = Catalogue([folder / CATALOGUE_FILE for folder in folders])
        self.knowledge_rows = Knowledge([folder / KNOWLEDGE_FILE for folder in folders])
        self._settings = vectors
        self.users: KeyedVectors | None = self._open_vectors("users")
        self.items: KeyedVectors | None = self._open_vectors("items")

    @property
    def name(self) -> str:
        """As `v3`."""
        return f"v{self.manifest.version}"

    @property
    def waits(self) -> bool:
        """Whether a lookup of vectors waits for a server, and may fail with it."""
        return self._settings is not None and self._settings.kind == "redis"

    @property
    def prestore(self) -> Prestore:
        """Whether the vectors are augmented ones, h, or representations, r."""
        return self.manifest.prestore

    def profile(self, user_id: str) -> Profile | None:
        """Attributes and latest interactions of a user; None for an unknown one."""
        return self.profiles.get(user_id)

    def knowledge(self, side: Side, subject_id: str) -> list[KnowledgeEntry]:
        """The text behind the vector of an id; empty if there is none."""
        return self.knowledge_rows.of(side, subject_id)

    def cluster_of(self, side: Side, subject_id: str) -> str | None:
        """Cluster whose knowledge an id shares; None if it has its own or none."""
        return self.knowledge_rows.cluster_of(side, subject_id)

    def stored_vectors(self, side: Side) -> VectorTable | None:
        """The vectors of a side in the version's own files; None if there are none."""
        fallback = self.manifest.fallback.get(side)
        if fallback is None:
            return None
        vector = np.array(fallback, dtype=np.float32)
        table = VectorTable([folder / VECTOR_FILES[side] for folder, _ in self.layers], vector)
        if self.prestore == "h" and table.dimension != self.manifest.dimension:
            raise unusable(
                f"the vectors have length {table.dimension}, the manifest says "
                f"{self.manifest.dimension}",
                table.tables[0].path,
            )
        for layer, stored in zip(table.tables, table.vectors, strict=True):
            if stored.dtype != self.manifest.dtype:
                raise unusable(
                    f"the vectors of {side} are {stored.dtype}, the manifest says "
                    f"{self.manifest.dtype}",
                    layer.path,
                )
        return table

    def require_model(self) -> None:
        """Refuse, by a StoreError, a version that holds vectors alone."""
        if self.manifest.model_fingerprint == NO_MODEL:
            raise StoreError(
                f"version {self.name} holds vectors without a model: it answers lookups, but "
                "scores and recommends nothing",
                where=str(self.folder),
                todo="Promote a version that `reki publish` wrote; `reki versions` lists them.",
            )

    def load_model(self) -> ModelBundle:
        """The model that the vectors were computed with.

        Raises:
            StoreError: The version holds vectors alone, the model's fingerprint is not the
                manifest's, or its vectors have another length than the stored ones.
        """
        self.require_model()
        from reki_ray.models import artifact  # see TYPE_CHECKING above

        folder = self.layers[-1][0] / MODEL_FOLDER  # a delta has the model of its base
        loaded = artifact.load(folder)
        if loaded.fingerprint != self.manifest.model_fingerprint:
            raise unusable(
                f"the vectors belong to model {self.manifest.model_fingerprint[:12]}, the folder "
                f"holds model {loaded.fingerprint[:12]}",
                folder,
            )
        for side in SIDES:
            length = len(self.manifest.fallback.get(side, ()))
            wide = loaded.architecture.width(side) if self.prestore == "r" else loaded.augmented_dim
            if length not in {0, wide}:
                raise unusable(
                    f"the vectors of {side} have length {length}, the model needs {wide}", folder
                )
        return loaded

    def load_scorer(self, items: Sequence[CatalogueItem] | None = None) -> CandidateScorer:
        """The model over this version's catalogue, or a part of it, and the item vectors.

        Where the version holds representations, the scorer augments them: the catalogue's at
        once, the user's at every request.

        Raises:
            StoreError: See `load_model`.
        """
        from reki_ray.models.candidate_scorer import CandidateScorer  # see TYPE_CHECKING

        ids, attributes = self.catalogue.inputs(items)
        vectors = self.item_vectors(ids)
        return CandidateScorer(
            self.load_model(), ids, attributes, *vectors, prestored=self.prestore
        )

    def item_vectors(self, ids: Sequence[str]) -> tuple[Vectors, Vectors] | tuple[None, None]:
        """Stored vectors (N, q) of N items, and that of unknown ones (q,), if there are any."""
        if self.items is None:
            return None, None
        return self.items.lookup(ids)[0], self.items.fallback

    def close(self) -> None:
        """Close connections of the vectors; mapped files close with their last reader."""
        for vectors in (self.users, self.items):
            if vectors is not None:
                vectors.close()

    def _open_vectors(self, side: Side) -> KeyedVectors | None:
        stored = self.stored_vectors(side)
        if self._settings is None or self._settings.kind == "arrow" or stored is None:
            return stored
        manifest = checksum(self.folder / MANIFEST)
        return open_vectors(self._settings, self.manifest.version, side, stored, manifest)


def export_vectors(
    version: StoreVersion, settings: AdapterSettings, advance: Advance = lambda _: None
) -> int:
    """Load the vectors of an opened version into LMDB or a server, and return how many it has.

    Does nothing the second time, and for kind arrow. Layers are flattened.

    Args:
        advance: Receives the number of vectors written since its last call.

    Raises:
        ConfigError: The package of this kind is not installed.
        StoreError: The server is unreachable, or holds another store's version of this number.
    """
    total, number = 0, version.manifest.version
    manifest = checksum(version.folder / MANIFEST)
    for side in SIDES:
        vectors = version.stored_vectors(side)
        if vectors is not None:
            if settings.kind != "arrow":
                export_side(settings, number, side, vectors, manifest, advance)
            total += len(vectors)
    return total
