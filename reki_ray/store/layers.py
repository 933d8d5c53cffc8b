"""Indexed tables in layers: what a newer layer holds hides what an older one says of the key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reki_ray.store.hash_index import IndexedTable
from reki_ray.store.vectors import FALLBACK, VectorTable

Batch = tuple[list[str], npt.NDArray[Any], list[str]]
"""Ids, vectors (N, q) as they are stored, and sources."""


class LayeredTable:
    """Files of `write_indexed` over one another, memory-mapped.

    Args:
        paths: A file a layer, the newest first; all but the last are small.
        key: Column to find rows by.

    Raises:
        StoreError: A file is missing, damaged, or has no index on this key.
    """

    def __init__(self, paths: Sequence[Path], key: str) -> None:
        self._key = key
        self._tables = [IndexedTable(path, key) for path in paths]
        self._hidden = _hidden_rows(self._tables)

    def __len__(self) -> int:
        return sum(len(t) - len(h) for t, h in zip(self._tables, self._hidden, strict=True))

    def get(self, key: str) -> dict[str, Any] | None:
        """First row of a key; None where there is none."""
        for table in self._tables:
            row = int(table.find([key])[0])
            if row >= 0:
                found: dict[str, Any] = table.rows.slice(row, 1).to_pylist()[0]
                return found
        return None

    def known(self, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether there is a row of each key, shape (N,)."""
        found = np.zeros(len(keys), dtype=bool)
        for table in self._tables:
            found |= table.find(keys) >= 0
        return found

    def find_all(self, key: str) -> pa.Table:
        """All rows of a key, of the newest layer that has any."""
        for table in self._tables[:-1]:
            rows = table.find_all(key)
            if len(rows):
                return rows
        return self._tables[-1].find_all(key)

    def rows(self, limit: int | None = None) -> pa.Table:
        """The first visible rows, or all: newest layer first, in the order of the index."""
        parts, missing = [], limit
        for table, hidden in zip(self._tables, self._hidden, strict=True):
            part = table.rows
            if missing is not None:
                part = part.slice(0, missing + len(hidden))
            if len(hidden):
                visible = np.ones(len(part), dtype=bool)
                visible[hidden[hidden < len(part)]] = False
                part = part.filter(pa.array(visible))
            if missing is not None:
                part = part.slice(0, missing)
                missing -= len(part)
            parts.append(part)
        return pa.concat_tables(parts)

    def keys(self, limit: int | None = None) -> list[str]:
        """Keys of `rows`."""
        found: list[str] = self.rows(limit).column(self._key).to_pylist()
        return found


class LayeredVectors:
    """The vectors of one side in layers.

    Args:
        tables: The layers, the newest first; all but the last are small.
    """

    def __init__(self, tables: Sequence[VectorTable]) -> None:
        self._tables = list(tables)
        self._hidden = _hidden_rows([table.index for table in tables])
        self.dimension: int = tables[-1].dimension
        self.fallback: npt.NDArray[np.float32] = tables[-1].fallback
        self.dtype = tables[-1].dtype

    def __len__(self) -> int:
        return sum(len(t) - len(h) for t, h in zip(self._tables, self._hidden, strict=True))

    def lookup(self, ids: Sequence[str]) -> tuple[npt.NDArray[np.float32], list[str]]:
        """Vectors of ids, shape (N, q), and their sources; see `VectorTable.lookup`."""
        vectors = np.empty((len(ids), self.dimension), dtype=np.float32)
        vectors[:] = self.fallback
        named: list[str] = [FALLBACK for _ in ids]
        for table, places, rows in self._found(ids):
            vectors[places] = table.vectors[rows]
            for place, source in zip(places.tolist(), table.sources_at(rows), strict=True):
                named[place] = source
        return vectors, named

    def holds(self, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether there is a vector of each id, shape (N,)."""
        found = np.zeros(len(ids), dtype=bool)
        for table in self._tables:
            found |= table.holds(ids)
        return found

    def sources(self, ids: Sequence[str]) -> list[str]:
        """Source of the vector of each id, as `lookup` tells it."""
        named: list[str] = [FALLBACK for _ in ids]
        for table, places, rows in self._found(ids):
            for place, source in zip(places.tolist(), table.sources_at(rows), strict=True):
                named[place] = source
        return named

    def ids(self, limit: int | None = None) -> list[str]:
        """The first visible ids, or all: newest layer first, in the order of the index."""
        found: list[str] = []
        for batch, _, _ in self.batches(65_536 if limit is None else max(limit, 1)):
            found += batch
            if limit is not None and len(found) >= limit:
                break
        return found[:limit]

    def batches(self, size: int) -> Iterator[Batch]:
        """All visible rows, at most `size` at a time."""
        for table, hidden in zip(self._tables, self._hidden, strict=True):
            for start in range(0, len(table), size):
                rows = np.arange(start, min(start + size, len(table)), dtype=np.int64)
                rows = rows[~np.isin(rows, hidden)]
                if len(rows):
                    yield (
                        table.keys.take(pa.array(rows)).to_pylist(),
                        table.vectors[rows],
                        table.sources_at(rows),
                    )

    def close(self) -> None:
        """Nothing to close: the mappings go with their last reader."""

    def _found(
        self, ids: Sequence[str]
    ) -> Iterator[tuple[VectorTable, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Per layer: places in `ids` that it answers, and its rows of them."""
        pending = np.arange(len(ids))
        for table in self._tables:
            rows = table.find([ids[place] for place in pending.tolist()])
            hit = rows >= 0
            yield table, pending[hit], rows[hit]
            pending = pending[~hit]


def _hidden_rows(tables: Sequence[IndexedTable]) -> list[npt.NDArray[np.int64]]:
    """Rows of each layer that a newer one hides, ascending."""
    hidden = []
    for place, table in enumerate(tables):
        newer = {key for other in tables[:place] for key in other.keys.to_pylist()}
        rows = [table.rows_of(key) for key in newer]
        hidden.append(np.sort(np.concatenate([np.zeros(0, np.int64), *rows])))
    return hidden
