"""Candidates for users, out of the retrieval files of a version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load_file

from reki_ray.retrieval.files import (
    INDEX_FILE,
    ITEMS_FILE,
    SEEN_FILE,
    TOWERS_FILE,
    item_vectors,
    read_description,
)
from reki_ray.retrieval.index import ItemIndex, Rows, Vectors, best_rows
from reki_ray.schema import ITEM_ID, ITEM_ROWS, SAMPLE_COUNT, USER_ID
from reki_ray.store.hash_index import IndexedTable, column_values, hash_keys, unusable
from reki_ray.store.layers import LayeredTable

NOTHING: Rows = np.zeros(0, np.int64)


@dataclass(frozen=True)
class NewItems:
    """Items that the retrieval files do not hold.

    Args:
        ids: N ids.
        vectors: Their vectors (N, D); None without.
    """

    ids: Sequence[str]
    vectors: Vectors | None


class Candidates:
    """Finds unseen items: near a user who is known by what they liked, popular for others.

    Args:
        folders: The retrieval files, and those of deltas over them, oldest first.
        new: Items of no file.

    Raises:
        StoreError: A file is missing or damaged, or they do not fit together.
    """

    def __init__(self, folders: Sequence[Path], new: NewItems | None = None) -> None:
        folder, *later = folders
        items = IndexedTable(folder / ITEMS_FILE, ITEM_ID)
        self._items = items
        self._seen = LayeredTable([part / SEEN_FILE for part in reversed(folders)], USER_ID)
        self._description = read_description(folder)
        new = _later_items([IndexedTable(part / ITEMS_FILE, ITEM_ID) for part in later], new)
        self._keys = pa.chunked_array([items.keys, pa.array(new.ids, pa.large_string())])
        self._new = {item: row for row, item in enumerate(new.ids, len(items))}
        # No later item was in the training. Ties by hash, as the rows of one file are sorted.
        counts = np.zeros(len(self._keys), np.int64)
        counts[: len(items)] = column_values(items.rows, SAMPLE_COUNT)
        hashes = np.append(items.hashes, hash_keys(new.ids))
        self._by_popularity: Rows = np.lexsort((hashes, -counts))
        self._vectors = item_vectors(items)
        if self._vectors is not None:
            path = folder / INDEX_FILE
            self._index = ItemIndex(self._vectors, path if path.exists() else None)
            self._weight, self._bias = _user_tower(folder / TOWERS_FILE, self._vectors.shape[1])
            empty = np.zeros((0, self._vectors.shape[1]), np.float32)
            self._new_vectors = empty if new.vectors is None else new.vectors

    def __len__(self) -> int:
        return len(self._keys)

    def of(
        self,
        user_id: str,
        history: Sequence[tuple[str, float | None]],
        count: int,
        exclude: Sequence[str] = (),
    ) -> list[str]:
        """Distinct unseen items, the best guess first; fewer than `count` if no more are left.

        Args:
            user_id: The user, whose stored interactions are all left out; any text.
            history: Items that the user met and their ratings, oldest first; left out too.
            exclude: Items to leave out besides.
        """
        met = self._rows([item for item, _ in history])
        excluded = np.unique(np.concatenate([self._stored(user_id), met, self._rows(exclude)]))
        excluded = excluded[excluded >= 0]
        found = self._near([rating for _, rating in history], met, count, excluded)
        if len(found) < count:
            found = np.append(found, self._popular(count - len(found), excluded, found))
        names: list[str] = self._keys.take(pa.array(found)).to_pylist()
        return names

    def _rows(self, ids: Sequence[str]) -> Rows:
        """Row of every item; -1 for unknown items."""
        rows = self._items.find(ids)
        if self._new:
            for place in np.flatnonzero(rows < 0).tolist():
                rows[place] = self._new.get(ids[place], -1)
        return rows

    def _stored(self, user_id: str) -> Rows:
        row = self._seen.row(user_id)
        if row is None:
            return NOTHING
        met: Rows = row.column(ITEM_ROWS)[0].values.to_numpy().astype(np.int64)
        return met

    def _near(self, ratings: Sequence[float | None], met: Rows, count: int, excluded: Rows) -> Rows:
        """Rows of the items nearest to what the user liked last; none where nothing is known."""
        above = self._description.positive_above
        liked = np.array([rating is None or rating > above for rating in ratings], dtype=bool)
        rows = met[liked & (met >= 0)][-self._description.history :] if len(met) else met
        if self._vectors is None or not len(rows):
            return NOTHING
        later = rows >= len(self._vectors)
        parts = [self._vectors[rows[~later]], self._new_vectors[rows[later] - len(self._vectors)]]
        query = np.concatenate(parts).mean(axis=0) @ self._weight.T + self._bias
        found, scores = self._index.search(query, count, excluded[excluded < len(self._vectors)])
        if len(self._new_vectors):
            new = np.arange(len(self._vectors), len(self._keys))
            scored = self._new_vectors @ query
            kept = ~np.isin(new, excluded)
            found, scores = np.append(found, new[kept]), np.append(scores, scored[kept])
            found = found[best_rows(scores, min(count, len(scores)))[0]]
        return found

    def _popular(self, count: int, excluded: Rows, found: Rows) -> Rows:
        left_out = np.append(excluded, found)
        # At most as many as are left out can precede the ones wanted.
        first = self._by_popularity[: count + len(left_out)]
        rows: Rows = first[~np.isin(first, left_out)][:count]
        return rows


def _later_items(tables: Sequence[IndexedTable], new: NewItems | None) -> NewItems:
    """Items of deltas, then those of no file."""
    ids = [item for table in tables for item in table.keys.to_pylist()]
    vectors = [part for table in tables if (part := item_vectors(table)) is not None]
    if new is not None:
        ids += new.ids
        vectors += [] if new.vectors is None else [new.vectors]
    return NewItems(ids, np.concatenate(vectors) if vectors else None)


def _user_tower(path: Path, dimension: int) -> tuple[Vectors, Vectors]:
    """Weight (D, D) and bias (D,) of the tower of users."""
    try:
        weights = load_file(path)
        weight, bias = weights["users.weight"], weights["users.bias"]
    except (OSError, SafetensorError, KeyError) as error:
        raise unusable(f"the towers are missing or damaged: {error}", path) from error
    if weight.shape != (dimension, dimension) or bias.shape != (dimension,):
        raise unusable(
            f"the tower of users takes vectors of length {weight.shape[1]}, items have {dimension}",
            path,
        )
    return weight, bias
