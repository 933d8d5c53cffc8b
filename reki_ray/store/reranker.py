"""The reranker of a version: its files, and how they are opened.

    <version>/reranker/{model.safetensors, model.json}
    <version>/reranker/{users.arrow, items.arrow}     vectors h, where the version prestores h

A reranker has a HEIN of its own, trained with it, so it needs augmented vectors of its own. Where
the version prestores representations, its HEIN makes them of these, as the model of clicks does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reki_ray.models import artifact as bundles
from reki_ray.models.artifact import Vectors
from reki_ray.models.candidate_scorer import CatalogueInputs, HistoryEvent, UserInput
from reki_ray.models.list_scorer import ListScorer
from reki_ray.schema import Side
from reki_ray.store.hash_index import unusable
from reki_ray.store.layers import files_of
from reki_ray.store.manifest import RERANKER_FOLDER, VECTOR_FILES, RerankerDescription
from reki_ray.store.tables import CatalogueItem, Profile
from reki_ray.store.vectors import VectorTable
from reki_ray.store.version import StoreVersion


class VersionReranker:
    """Puts lists in order with the reranker of one opened version.

    Args:
        items: Part of the catalogue to put in order; None takes all of it.

    Raises:
        StoreError: A file is missing or damaged, or is not what the manifest says.
    """

    def __init__(
        self,
        version: StoreVersion,
        description: RerankerDescription,
        items: Sequence[CatalogueItem] | None = None,
    ) -> None:
        # A delta has the reranker of its base, and may have vectors of its own for it.
        self._folders = [folder / RERANKER_FOLDER for folder, _ in version.layers]
        folder = self._folders[-1]
        self._fallback = {
            side: np.array(vector, np.float32) for side, vector in description.fallback.items()
        }
        bundle = bundles.load_reranker(folder)
        if bundle.fingerprint != description.fingerprint:
            raise unusable(
                f"the manifest names reranker {description.fingerprint[:12]}, the folder "
                f"holds {bundle.fingerprint[:12]}",
                folder,
            )
        ids, attributes = version.catalogue.inputs(items)
        vectors: Vectors | None = None
        fallback = self._fallback.get("items")
        self._users = None
        if version.prestore == "h" and bundle.uses_knowledge:
            self._users = self._table("users")
            vectors = self._table("items").lookup(ids)[0]
        elif version.items is not None:
            vectors, fallback = version.items.lookup(ids)[0], version.items.fallback
            assert version.users is not None
            self._fallback["users"] = version.users.fallback
        inputs = CatalogueInputs(
            bundle, ids, attributes, vectors, fallback, prestored=version.prestore
        )
        self.scorer = ListScorer(bundle, inputs)

    def order(
        self, user_id: str, profile: Profile, stored: Vectors | None, item_ids: Sequence[str]
    ) -> list[int]:
        """Places of items for a user, the best one first.

        Args:
            stored: The version's vector of the user; None if it could not be read.
            item_ids: Items, best guess first.
        """
        return self.scorer.order(self.user_input(user_id, profile, stored), item_ids)

    def user_input(self, user_id: str, profile: Profile, stored: Vectors | None) -> UserInput:
        """What is known of a user, for `scorer`; see `order`."""
        vector = self._fallback.get("users")
        if self._users is not None:
            vector = self._users.lookup([user_id])[0][0]
        elif stored is not None and vector is not None:
            vector = stored
        events = [HistoryEvent(*event) for event in profile.latest(self.scorer.bundle.history)]
        return UserInput(profile.attributes, events, vector)

    def _table(self, side: Side) -> VectorTable:
        return VectorTable(files_of(self._folders, VECTOR_FILES[side]), self._fallback[side])


def open_reranker(version: StoreVersion) -> VersionReranker | None:
    """The reranker of an opened version; None if it has none.

    Raises:
        StoreError: A file is missing or damaged, or is not what the manifest says.
    """
    description = version.manifest.reranker
    return None if description is None else VersionReranker(version, description)
