"""Indexed tables in layers: what a newer layer holds hides what an older one says of the key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.schema import KEY_HASH
from reki_ray.store.hash_index import IndexedTable, single_chunk
from reki_ray.store.vectors import FALLBACK, VectorTable

Rows = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]
NO_HASHES: Final[Hashes] = np.zeros(0, np.uint64)
ROUNDING: Final = 1e-6
"""Differences of vectors up to this share of their largest value come from the order of sums."""
_ROWS_A_STEP: Final = 65_536

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
        """First row of a key; None for an unknown one."""
        for table in self._tables:
            row = int(table.find([key])[0])
            if row >= 0:
                values: dict[str, Any] = table.rows.slice(row, 1).to_pylist()[0]
                return values
        return None

    def list_of(self, key: str, column: str) -> pa.Array | None:
        """Values of a list in the first row of a key, without a copy; None for unknown keys."""
        for table in self._tables:
            row = int(table.find([key])[0])
            if row >= 0:
                return single_chunk(table.rows, column)[row].values
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

    def sizes(self) -> list[int]:
        """Rows of each layer, hidden ones included, the newest layer first."""
        return [len(table) for table in self._tables]

    def changed_rows(self, rows: pa.Table) -> Rows | None:
        """Rows of another table, indexed by the same key, that these layers do not hold alike.

        Args:
            rows: As `write_indexed` returns them.

        Returns:
            All rows (N,) of keys that differ in any; None if no newer layer can make this table
            of these, because a key is missing or a column is of another type.
        """
        if any(not table.rows.schema.equals(rows.schema) for table in self._tables):
            return None
        places = np.concatenate([np.arange(len(table)) for table in self._tables])
        layers = np.repeat(np.arange(len(self._tables)), self.sizes())
        hashes = np.concatenate([table.hashes for table in self._tables])
        for layer, hidden in enumerate(self._hidden):
            layers[np.flatnonzero(layers == layer)[hidden]] = -1
        visible = np.flatnonzero(layers >= 0)
        visible = visible[np.argsort(hashes[visible], kind="stable")]
        ours = rows.column(KEY_HASH).to_numpy()
        if not np.isin(hashes[visible], ours).all():
            return None
        first, count = _runs(ours, ours)
        theirs, their_count = _runs(hashes[visible], ours)
        changed = count != their_count
        pairs = np.flatnonzero(~changed)
        partners = visible[theirs[pairs] + pairs - first[pairs]]
        for layer, table in enumerate(self._tables):
            here = layers[partners] == layer
            a, b = pairs[here], places[partners[here]]
            for start in range(0, len(a), _ROWS_A_STEP):
                step = slice(start, start + _ROWS_A_STEP)
                one, other = rows.take(pa.array(a[step])), table.rows.take(pa.array(b[step]))
                for name in set(rows.column_names) - {KEY_HASH}:
                    changed[a[step]] |= _differ(
                        one.column(name).combine_chunks(), other.column(name).combine_chunks()
                    )
        return np.flatnonzero(np.isin(first, first[changed]))

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
        """Source of the vector of each id, as `lookup` returns it."""
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
        """Per layer: places in `ids` that it answers, and its rows."""
        pending = np.arange(len(ids))
        for table in self._tables:
            rows = table.find([ids[place] for place in pending.tolist()])
            hit = rows >= 0
            yield table, pending[hit], rows[hit]
            pending = pending[~hit]


def _hidden_rows(tables: Sequence[IndexedTable]) -> list[Rows]:
    """Rows of each layer that a newer one hides, ascending."""
    hidden = []
    for place, table in enumerate(tables):
        newer = {key for other in tables[:place] for key in other.keys.to_pylist()}
        hashes = np.unique(np.concatenate([NO_HASHES, *(t.hashes for t in tables[:place])]))
        first, count = _runs(table.hashes, hashes)
        rows = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(count.sum())
        # Another key may have the same hash.
        same = [key in newer for key in table.keys.take(pa.array(rows, pa.int64())).to_pylist()]
        hidden.append(rows[np.array(same, dtype=bool)])
    return hidden


def _runs(hashes: Hashes, wanted: Hashes) -> tuple[Rows, Rows]:
    """First place of each wanted hash among sorted ones, and how often it occurs."""
    first = np.searchsorted(hashes, wanted, "left").astype(np.int64)
    return first, np.searchsorted(hashes, wanted, "right") - first


def _differ(ours: pa.Array, theirs: pa.Array) -> Flags:
    """Whether the values at each place differ; vectors do beyond rounding errors alone."""
    kind = ours.type
    if pa.types.is_dictionary(kind):
        return _differ(ours.dictionary_decode(), theirs.dictionary_decode())
    if pa.types.is_fixed_size_list(kind):
        a, b = (
            array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1).astype("f4")
            for array in (ours, theirs)
        )
        far: Flags = ~(np.abs(a - b) <= ROUNDING * np.abs(b).max(1, keepdims=True)).all(axis=1)
        return far
    if pa.types.is_struct(kind):
        parts = [_differ(ours.field(i), theirs.field(i)) for i in range(kind.num_fields)]
        any_part: Flags = np.logical_or.reduce(parts)
        return any_part
    valid, other = (array.is_valid().to_numpy(zero_copy_only=False) for array in (ours, theirs))
    differ: Flags = valid != other
    if not pa.types.is_nested(kind):
        unequal = pc.fill_null(pc.not_equal(ours, theirs), fill_value=False)
        differ |= unequal.to_numpy(zero_copy_only=False)
        return differ
    lengths, others = (np.diff(array.offsets.to_numpy()) for array in (ours, theirs))
    compared = valid & other & (lengths == others)
    differ |= valid & other & (lengths != others)
    if pa.types.is_map(kind):
        entries = pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))
        ours, theirs = ours.cast(entries), theirs.cast(entries)
    inner = _differ(*(array.filter(pa.array(compared)).flatten() for array in (ours, theirs)))
    total = np.concatenate([[0], np.cumsum(inner)])
    ends = np.cumsum(lengths[compared])
    differ[compared] = total[ends] > total[ends - lengths[compared]]
    return differ
