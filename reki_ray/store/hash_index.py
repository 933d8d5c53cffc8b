"""Arrow tables that are found by key: memory-mapped, with a sorted 64-bit hash index.

A file holds one record batch whose rows are sorted by the hash of their key, so that the
column of hashes is the index: a lookup is a binary search over a memory-mapped array, and
replicas on one machine share the pages. Hashes may collide; the key itself decides, compared
byte by byte in the mapped file, so that no list of keys is ever built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reki_ray.errors import StoreError
from reki_ray.schema import KEY_HASH

_KEYS_A_STEP: Final = 65_536

REPUBLISH = "Run `reki publish` to write a new version, or go back to an older one."


def unusable(what: str, path: Path | str) -> StoreError:
    """Error for a version's file that is missing, damaged, or does not fit the others."""
    return StoreError(what, where=str(path), todo=REPUBLISH)


def hash_keys(keys: Sequence[str]) -> npt.NDArray[np.uint64]:
    """64-bit BLAKE2b (N,) of every key: the same on every machine and in every process."""
    digests = [hashlib.blake2b(_encoded(key), digest_size=8).digest() for key in keys]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def write_indexed(path: Path, data: pa.Table, key: str, *, unique: bool = False) -> pa.Table:
    """Write a table as an Arrow IPC file that `IndexedTable` finds rows in, and return its rows.

    Args:
        data: Rows in any order; those of equal keys keep their order.
        key: Column of strings to find rows by.

    Raises:
        StoreError: A key occurs twice, and `unique` forbids it.
    """
    keys = data.column(key)
    # A part at a time, so that the keys are never all Python objects.
    parts = [
        hash_keys(keys.slice(start, _KEYS_A_STEP).to_pylist())
        for start in range(0, len(keys), _KEYS_A_STEP)
    ]
    hashes = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
    order = np.argsort(hashes, kind="stable")
    # 64-bit offsets: the rows must stay one batch, also above 2 GiB of text.
    wide = [
        field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field
        for field in data.schema
    ]
    rows = data.cast(pa.schema(wide)).take(pa.array(order)).combine_chunks()
    if unique and _has_duplicate(hashes[order], rows.column(key)):
        raise StoreError("an id occurs twice", where=str(path), todo="Give each id once.")
    index = pa.field(KEY_HASH, pa.uint64(), nullable=False)
    rows = rows.add_column(0, index, pa.array(hashes[order], pa.uint64()))
    _write_rows(path, rows)
    return rows


def keep_rows(path: Path, rows: pa.Table) -> None:
    """Replace a file of `write_indexed` by some of its rows, in the order of the index."""
    shorter = path.with_name(f"{path.name}.shorter")  # the rows may be mapped from the file itself
    _write_rows(shorter, rows.combine_chunks())
    shorter.replace(path)


def _write_rows(path: Path, rows: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)


def _has_duplicate(hashes: npt.NDArray[np.uint64], keys: pa.ChunkedArray) -> bool:
    """Whether a key occurs twice; only keys of equal hashes are looked at."""
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    rows = np.unique(np.concatenate([same, same + 1]))
    return len(set(keys.take(pa.array(rows, pa.int64())).to_pylist())) < len(rows)


class IndexedTable:
    """A file of `write_indexed`, memory-mapped.

    Attributes:
        rows: All rows, in the order of the index.
        keys: Their keys.
        hashes: Hashes of their keys, ascending.

    Raises:
        StoreError: The file is missing, damaged, or has no index on this key.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        try:
            self.rows: pa.Table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (pa.ArrowException, OSError) as error:
            raise unusable(f"the file is missing or damaged: {error}", path) from error
        if (
            not {KEY_HASH, key} <= set(self.rows.column_names)
            or self.rows.column(KEY_HASH).num_chunks > 1
            or not pa.types.is_large_string(self.rows.schema.field(key).type)
        ):
            raise unusable(f"the file has no index on {key}", path)
        self.hashes = column_values(self.rows, KEY_HASH)
        self.keys = single_chunk(self.rows, key)
        self._offsets, self._bytes = _text_buffers(self.keys)

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def find(self, keys: Sequence[str]) -> npt.NDArray[np.int64]:
        """First row of each of N keys, shape (N,); -1 for unknown keys."""
        first = np.full(len(keys), -1, dtype=np.int64)
        if not len(self) or not len(keys):
            return first
        encoded = [_encoded(key) for key in keys]
        hashes = hash_keys(keys)
        rows = np.searchsorted(self.hashes, hashes).astype(np.int64)
        last = len(self) - 1
        pending = np.arange(len(keys))
        while True:
            at = rows[pending]
            same_hash = (at <= last) & (self.hashes[np.minimum(at, last)] == hashes[pending])
            pending = pending[same_hash]
            if not pending.size:
                return first
            hit = self._holds(rows[pending], [encoded[p] for p in pending.tolist()])
            first[pending[hit]] = rows[pending[hit]]
            pending = pending[~hit]
            rows[pending] += 1  # another key with the same hash: the next row may be ours

    def find_all(self, key: str) -> pa.Table:
        """All rows of one key, in the order in which they were written."""
        wanted = hash_keys([key])[0]
        low, high = (np.searchsorted(self.hashes, wanted, side) for side in ("left", "right"))
        rows = np.arange(low, high, dtype=np.int64)
        holds = self._holds(rows, [_encoded(key)] * len(rows))
        return self.rows.take(pa.array(rows[holds]))

    def _holds(self, rows: npt.NDArray[np.int64], keys: list[bytes]) -> npt.NDArray[np.bool_]:
        """Whether each row's key is the one beside it."""
        text = self._bytes
        starts, ends = self._offsets[rows].tolist(), self._offsets[rows + 1].tolist()
        return np.array(
            [text[a:b] == key for a, b, key in zip(starts, ends, keys, strict=True)], dtype=bool
        )


def _encoded(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")  # a lone surrogate is found nowhere


def _text_buffers(keys: pa.Array) -> tuple[npt.NDArray[np.int64], memoryview]:
    """Offsets (N + 1,) and bytes of a column of text, both mapped."""
    _, offsets, text = keys.buffers()
    if offsets is None or not len(keys):
        return np.zeros(1, np.int64), memoryview(b"")
    values = np.frombuffer(offsets, dtype=np.int64)[keys.offset : keys.offset + len(keys) + 1]
    return values, memoryview(b"" if text is None else text).cast("B")  # signed, as Arrow has it


def single_chunk(rows: pa.Table, column: str) -> pa.Array:
    """A column of a one-batch table as one array, without a copy."""
    chunks = rows.column(column).chunks
    return chunks[0] if chunks else pa.array([], rows.schema.field(column).type)


def column_values(rows: pa.Table, column: str) -> npt.NDArray[np.uint64]:
    """A column of numbers as a NumPy view on the mapped file."""
    values: npt.NDArray[np.uint64] = single_chunk(rows, column).to_numpy(zero_copy_only=True)
    return values
