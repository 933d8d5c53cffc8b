"""Indexed tables in layers: what a newer layer holds hides what an older one says of the key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.schema import KEY_HASH
from reki_ray.store.hash_index import IndexedTable

Rows = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]
NO_HASHES: Final[Hashes] = np.zeros(0, np.uint64)
ROUNDING: Final = 1e-6
"""Differences of vectors up to this share of their largest value come from the order of sums."""
_ROWS_A_STEP: Final = 65_536


def files_of(folders: Sequence[Path], name: str) -> list[Path]:
    """A file of layers, the newest first, without those newer layers that lack it."""
    *newer, oldest = (folder / name for folder in folders)
    return [*(path for path in newer if path.exists()), oldest]


class LayeredTable:
    """Files of `write_indexed` over one another, memory-mapped.

    Args:
        paths: A file a layer, the newest first; all but the last are small.
        key: Column to find rows by; None: that of the subclass.

    Attributes:
        hidden: Rows of each layer that a newer one hides, ascending.

    Raises:
        StoreError: A file is missing, damaged, or has no index on this key.
    """

    key: str

    def __init__(self, paths: Sequence[Path], key: str | None = None) -> None:
        if key is not None:
            self.key = key
        self.tables = [IndexedTable(path, self.key) for path in paths]
        self.hidden = _hidden_rows(self.tables)

    def __len__(self) -> int:
        return sum(len(t) - len(h) for t, h in zip(self.tables, self.hidden, strict=True))

    def find(self, keys: Sequence[str]) -> Iterator[tuple[int, Rows, Rows]]:
        """Per layer: its place, the places in `keys` that it answers, and their first rows."""
        pending = np.arange(len(keys))
        for layer, table in enumerate(self.tables):
            rows = table.find([keys[place] for place in pending.tolist()])
            hit = rows >= 0
            yield layer, pending[hit], rows[hit]
            pending = pending[~hit]

    def row(self, key: str) -> pa.Table | None:
        """First row of a key, without a copy; None for an unknown one."""
        for layer, _, rows in self.find([key]):
            if len(rows):
                return self.tables[layer].rows.slice(int(rows[0]), 1)
        return None

    def known(self, keys: Sequence[str]) -> Flags:
        """Whether there is a row of each key, shape (N,)."""
        known = np.zeros(len(keys), dtype=bool)
        for _, places, _ in self.find(keys):
            known[places] = True
        return known

    def find_all(self, key: str) -> pa.Table:
        """All rows of a key, of the newest layer that has any."""
        rows = self.tables[0].find_all(key)
        for table in self.tables[1:]:
            rows = rows if len(rows) else table.find_all(key)
        return rows

    def rows(self, limit: int | None = None) -> pa.Table:
        """The first visible rows, or all: newest layer first, in the order of the index."""
        parts, missing = [], limit
        for table, hidden in zip(self.tables, self.hidden, strict=True):
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
        return [len(table) for table in self.tables]

    def changed_rows(self, rows: pa.Table) -> Rows | None:
        """Rows of another table, indexed by the same key, that these layers do not hold alike.

        Args:
            rows: As `write_indexed` returns them.

        Returns:
            All rows (N,) of keys that differ in any; None if no newer layer can make this table
            of these, because a key is missing or a column is of another type.
        """
        if any(not table.rows.schema.equals(rows.schema) for table in self.tables):
            return None
        places = np.concatenate([np.arange(len(table)) for table in self.tables])
        layers = np.repeat(np.arange(len(self.tables)), self.sizes())
        hashes = np.concatenate([table.hashes for table in self.tables])
        for layer, hidden in enumerate(self.hidden):
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
        for layer, table in enumerate(self.tables):
            here = layers[partners] == layer
            a, b = pairs[here], places[partners[here]]
            for start in range(0, len(a), _ROWS_A_STEP):
                step = slice(start, start + _ROWS_A_STEP)
                mine, stored = rows.take(pa.array(a[step])), table.rows.take(pa.array(b[step]))
                for name in set(rows.column_names) - {KEY_HASH}:
                    changed[a[step]] |= _differ(
                        mine.column(name).combine_chunks(), stored.column(name).combine_chunks()
                    )
        return np.flatnonzero(np.isin(first, first[changed]))

    def keys(self, limit: int | None = None) -> list[str]:
        """Keys of `rows`."""
        keys: list[str] = self.rows(limit).column(self.key).to_pylist()
        return keys


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
