"""Candidates from an opened version, whatever it holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from reki_ray.retrieval.candidates import Candidates, NewItems
from reki_ray.retrieval.files import ITEMS_FILE, TOWERS_FILE
from reki_ray.schema import ITEM_ID
from reki_ray.store.hash_index import IndexedTable
from reki_ray.store.manifest import MODEL_FOLDER, RETRIEVAL_FOLDER
from reki_ray.store.version import StoreVersion

if TYPE_CHECKING:
    from reki_ray.retrieval.candidates import Vectors


class PopularItems:
    """The most popular unseen items, for a version that was published without retrieval files.

    Args:
        version: The opened version.
    """

    def __init__(self, version: StoreVersion) -> None:
        path = version.layers[-1][0] / MODEL_FOLDER / "model.json"
        features = json.loads(path.read_bytes())["features"]
        counts = dict(zip(features["items"], features["item_counts"], strict=True))
        self._ids = sorted(version.catalogue.ids, key=lambda item: (-counts.get(item, 0), item))

    def __len__(self) -> int:
        return len(self._ids)

    def of(
        self,
        user_id: str,
        history: Sequence[tuple[str, float | None]],
        count: int,
        exclude: Sequence[str] = (),
    ) -> list[str]:
        """See `Candidates.of`; what the user met is known from `history` alone."""
        left_out = {*exclude, *(item for item, _ in history)}
        return list(islice((item for item in self._ids if item not in left_out), count))


def open_candidates(version: StoreVersion) -> Candidates | PopularItems:
    """What finds candidates in a version.

    A delta has the retrieval files of its base. Items that it adds, or that were compacted with
    it, lie where their content puts them, and stand behind all others in popularity.

    Raises:
        StoreError: A file is missing or damaged, or they do not fit together.
    """
    folder = version.layers[-1][0] / RETRIEVAL_FOLDER
    if not folder.is_dir():
        return PopularItems(version)
    items = IndexedTable(folder / ITEMS_FILE, ITEM_ID)
    if len(version.catalogue) == len(items):
        return Candidates(folder)
    ids = version.catalogue.ids
    places = np.flatnonzero(items.find(ids) < 0).tolist()
    new = [ids[place] for place in places]
    vectors = _new_vectors(version, places, new) if (folder / TOWERS_FILE).exists() else None
    return Candidates(folder, NewItems(new, vectors))


def _new_vectors(version: StoreVersion, places: Sequence[int], ids: Sequence[str]) -> Vectors:
    # torch is slow to import, and only items that came later need it
    import torch

    from reki_ray.models.candidate_scorer import CatalogueInputs
    from reki_ray.retrieval.builder import content_of, load_towers

    attributes = version.catalogue.attributes
    inputs = CatalogueInputs(
        version.load_model(),
        ids,
        [attributes[place] for place in places],
        None if version.items is None else version.items.lookup(ids)[0],
        None if version.items is None else version.items.fallback,
        prestored=version.prestore,
    )
    towers = load_towers(version.layers[-1][0] / RETRIEVAL_FOLDER)
    vectors: Vectors = towers.new_item_vectors(torch.from_numpy(content_of(inputs))).numpy()
    return vectors
