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
from reki_ray.store.manifest import MODEL_FOLDER, retrieval_folders
from reki_ray.store.version import StoreVersion

if TYPE_CHECKING:
    from pathlib import Path

    from reki_ray.retrieval.index import Vectors


class PopularItems:
    """The most popular unseen items, for a version that was published without retrieval files."""

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

    Items that came by `VersionStore.upsert`, without retrieval files, get the vectors that the
    towers make of their content.

    Raises:
        StoreError: A file is missing or damaged, they do not fit together, or the version has no
            model.
    """
    folders = retrieval_folders(version.layers)
    if not folders:
        version.require_model()
        return PopularItems(version)
    tables = [IndexedTable(folder / ITEMS_FILE, ITEM_ID) for folder in folders]
    if len(version.catalogue) == sum(len(table) for table in tables):
        return Candidates(folders)
    ids = version.catalogue.ids
    known = np.logical_or.reduce([table.find(ids) >= 0 for table in tables])
    places = np.flatnonzero(~known).tolist()
    new = [ids[place] for place in places]
    vectors = None
    if (folders[0] / TOWERS_FILE).exists():
        vectors = _new_vectors(version, folders[0], places, new)
    return Candidates(folders, NewItems(new, vectors))


def _new_vectors(
    version: StoreVersion, retrieval: Path, places: Sequence[int], ids: Sequence[str]
) -> Vectors:
    # torch is slow to import, and only items that came later need it
    import torch

    from reki_ray.models.candidate_scorer import CatalogueInputs
    from reki_ray.retrieval.builder import content_of, load_towers

    attributes = version.catalogue.attributes
    inputs = CatalogueInputs(
        version.load_model(),
        ids,
        [attributes[place] for place in places],
        *version.item_vectors(ids),
        prestored=version.prestore,
    )
    towers = load_towers(retrieval)
    vectors: Vectors = towers.new_item_vectors(torch.from_numpy(content_of(inputs))).numpy()
    return vectors
