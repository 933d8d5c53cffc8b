"""Arrow tables that are found by key: memory-mapped, with a sorted 64-bit hash index.

A file holds one record batch whose rows are sorted by the hash of their key, so that the
column of hashes is the index: a lookup is a binary search over a memory-mapped array, and
replicas on one machine share the pages. Hashes may collide; the key itself decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reki_ray.errors import StoreError
from reki_ray.schema import KEY_HASH

HashKeys = Callable[[Sequence[str]], npt.NDArray[np.uint64]]

REPUBLISH = "Run `reki publish` to write a new version, or go back to an older one."


def hash_keys(keys: Sequence[str]) -> npt.NDArray[np.uint64]:
    """64-bit BLAKE2b of every key: the same on every machine and in every process.

    Args:
        keys: Any text, also empty; a lone surrogate is hashed and found nowhere.

    Returns:
        Hashes of shape (N,).
    """
    digests = [
        hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for key in keys
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def write_indexed(
    path: Path, data: pa.Table, key: str, *, hashing: HashKeys = hash_keys
) -> pa.Table:
    """Write a table as an Arrow IPC file that `IndexedTable` finds rows in.

    Args:
        path: New file.
        data: Rows in any order.
        key: Column of strings to find rows by; a key may occur in several rows, which then
            keep their order.
        hashing: Hash of keys; a parameter so that collisions can be tested.

    Returns:
        The rows as they were written, in the order of the index.
    """
    hashes = hashing(data.column(key).to_pylist())
    order = np.argsort(hashes, kind="stable")
    # 64-bit offsets: the rows must stay one batch, also above 2 GiB of text.
    wide = pa.schema(
        [
            field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field
            for field in data.schema
        ]
    )
    rows = data.cast(wide).take(pa.array(order)).combine_chunks()
    index = pa.field(KEY_HASH, pa.uint64(), nullable=False)
    rows = rows.add_column(0, index, pa.array(hashes[order], pa.uint64()))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    return rows


class IndexedTable:
    """A file of `write_indexed`, memory-mapped.

    Args:
        path: The file.
        key: Column to find rows by.
        hashing: Hash that the file was written with.

    Raises:
        StoreError: The file is missing, damaged, or has no index on this key.
    """

    def __init__(self, path: Path, key: str, *, hashing: HashKeys = hash_keys) -> None:
        self.path = path
        self._hashing = hashing
        try:
            self.rows: pa.Table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (pa.ArrowException, OSError) as error:
            raise StoreError(
                f"the file is missing or damaged: {error}", where=str(path), todo=REPUBLISH
            ) from error
        if not {KEY_HASH, key} <= set(self.rows.column_names) or self._batches() > 1:
            raise StoreError(f"the file has no index on {key}", where=str(path), todo=REPUBLISH)
        self._hashes = column_values(self.rows, KEY_HASH)
        self._keys = single_chunk(self.rows, key)

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def _batches(self) -> int:
        return int(self.rows.column(KEY_HASH).num_chunks)

    @property
    def keys(self) -> pa.Array:
        """All keys in the order of the rows, memory-mapped."""
        return self._keys

    def find(self, keys: Sequence[str]) -> npt.NDArray[np.int64]:
        """Row of every key.

        Args:
            keys: Keys, N of them, with repetitions and in any order.

        Returns:
            First row of each key, shape (N,); -1 where there is none.
        """
        found = np.full(len(keys), -1, dtype=np.int64)
        hashes = self._hashing(keys)
        rows = np.searchsorted(self._hashes, hashes).astype(np.int64)
        pending = np.arange(len(keys))
        while True:
            candidates = np.minimum(rows[pending], len(self) - 1)
            same_hash = (rows[pending] < len(self)) & (
                self._hashes[candidates] == hashes[pending] if len(self) else False
            )
            pending = pending[same_hash]
            if not pending.size:
                return found
            stored = self._keys.take(pa.array(rows[pending])).to_pylist()
            hit = np.fromiter(
                (key == keys[p] for key, p in zip(stored, pending, strict=True)), dtype=bool
            )
            found[pending[hit]] = rows[pending[hit]]
            pending = pending[~hit]
            rows[pending] += 1  # another key with the same hash: the next row may be ours

    def find_all(self, key: str) -> pa.Table:
        """All rows of one key, in the order in which they were written."""
        low, high = (
            int(np.searchsorted(self._hashes, self._hashing([key])[0], side))
            for side in ("left", "right")
        )
        stored = self._keys.slice(low, high - low).to_pylist()
        rows = [low + offset for offset, other in enumerate(stored) if other == key]
        return self.rows.take(pa.array(rows, pa.int64()))


def single_chunk(rows: pa.Table, column: str) -> pa.Array:
    """A column of a one-batch table as one array, without a copy."""
    chunks = rows.column(column).chunks
    return chunks[0] if chunks else pa.array([], rows.schema.field(column).type)


def column_values(rows: pa.Table, column: str) -> npt.NDArray[np.uint64]:
    """A column of numbers as a NumPy view on the mapped file."""
    values: npt.NDArray[np.uint64] = single_chunk(rows, column).to_numpy(zero_copy_only=True)
    return values
