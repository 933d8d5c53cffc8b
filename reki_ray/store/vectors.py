"""Vectors found by id: one memory-mapped file a side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.errors import StoreError
from reki_ray.schema import FACTOR, ID, SOURCE, VECTOR, WHOLE_ANSWER, Source
from reki_ray.store.hash_index import (
    REPUBLISH,
    HashKeys,
    IndexedTable,
    hash_keys,
    single_chunk,
    write_indexed,
)

DType = Literal["float32", "float16"]

FALLBACK: Source = "fallback"
SOURCES: Final[tuple[str, ...]] = get_args(Source)
"""Names behind the stored codes."""


def write_vectors(
    path: Path,
    ids: Sequence[str] | pa.Array,
    vectors: npt.NDArray[Any],
    sources: Sequence[str] | pa.Array,
    *,
    dtype: DType = "float32",
    hashing: HashKeys = hash_keys,
) -> None:
    """Write the vectors of one side.

    Args:
        vectors: Augmented vectors h, shape (N, q).
        sources: Where each vector comes from: individual, cluster or fallback.
        dtype: Stored type; float16 halves the file and costs about 3 decimal digits.
        hashing: Hash of ids; a parameter so that collisions can be tested.

    Raises:
        StoreError: The lengths differ, or an id occurs twice.
    """
    if vectors.ndim != 2 or not len(ids) == len(vectors) == len(sources):
        raise StoreError(
            f"{len(ids)} ids, vectors of shape {vectors.shape} and {len(sources)} sources "
            "do not fit together",
            where=str(path),
            todo="Give one vector and one source an id.",
        )
    kind = pa.float16() if dtype == "float16" else pa.float32()
    values = pa.array(np.ascontiguousarray(vectors, dtype=dtype).reshape(-1), kind)
    element = pa.field("item", kind, nullable=False)
    codes = pc.index_in(pa.array(sources, pa.string()), value_set=pa.array(SOURCES))
    if codes.null_count:
        raise StoreError(
            "a source is not one of " + ", ".join(SOURCES),
            where=str(path),
            todo="Name one of them.",
        )
    factors = pa.array(np.zeros(len(ids), np.uint8))
    columns = {
        ID: pa.array(ids, pa.string()) if not isinstance(ids, pa.Array) else ids,
        FACTOR: pa.DictionaryArray.from_arrays(factors, pa.array([WHOLE_ANSWER])),
        VECTOR: pa.FixedSizeListArray.from_arrays(values, type=pa.list_(element, vectors.shape[1])),
        SOURCE: pa.DictionaryArray.from_arrays(codes.cast(pa.uint8()), pa.array(SOURCES)),
    }
    schema = pa.schema([pa.field(name, c.type, nullable=False) for name, c in columns.items()])
    write_indexed(path, pa.table(columns, schema=schema), ID, hashing=hashing, unique=True)


class VectorTable:
    """The vectors of one side, memory-mapped.

    Args:
        path: A file of `write_vectors`.
        fallback: Vector of ids that the file does not hold, shape (q,).
        hashing: Hash that the file was written with.

    Raises:
        StoreError: The file is missing or damaged, or the fallback has another length.
    """

    def __init__(
        self, path: Path, fallback: npt.NDArray[np.float32], *, hashing: HashKeys = hash_keys
    ) -> None:
        self.index = IndexedTable(path, ID, hashing=hashing)
        rows = self.index.rows
        if not {VECTOR, SOURCE} <= set(rows.column_names) or not pa.types.is_fixed_size_list(
            rows.schema.field(VECTOR).type
        ):
            raise StoreError("the file holds no vectors", where=str(path), todo=REPUBLISH)
        self.dimension: int = rows.schema.field(VECTOR).type.list_size
        if fallback.shape != (self.dimension,):
            raise StoreError(
                f"the vectors have length {self.dimension}, the fallback vector has shape "
                f"{fallback.shape}",
                where=str(path),
                todo=REPUBLISH,
            )
        self.fallback = fallback.astype(np.float32)
        flat = single_chunk(rows, VECTOR).flatten().to_numpy(zero_copy_only=True)
        self.vectors: npt.NDArray[Any] = flat.reshape(-1, self.dimension)
        self._names, self._codes = _source_codes(rows, path)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def dtype(self) -> DType:
        """Stored type of the vectors."""
        return "float16" if self.vectors.dtype == np.float16 else "float32"

    @property
    def keys(self) -> pa.Array:
        """All ids in the order of the rows of `vectors`, memory-mapped."""
        return self.index.keys

    def ids(self, limit: int | None = None) -> list[str]:
        """The first ids, or all, in the order of the rows of `vectors`."""
        found: list[str] = self.keys.slice(0, limit).to_pylist()
        return found

    def batches(self, size: int) -> Iterator[tuple[list[str], npt.NDArray[Any], list[str]]]:
        """Ids, stored vectors and sources of all rows, at most `size` at a time."""
        for start in range(0, len(self), size):
            rows = np.arange(start, min(start + size, len(self)), dtype=np.int64)
            ids = self.keys.slice(start, len(rows)).to_pylist()
            yield ids, self.vectors[start : start + len(rows)], self.sources_at(rows)

    def close(self) -> None:
        """Nothing to close: the mapping goes with its last reader."""

    def find(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Row of every id, shape (N,); -1 for unknown ids."""
        return self.index.find(ids)

    def holds(self, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether there is a vector of each id, shape (N,)."""
        return self.index.find(ids) >= 0

    def lookup(self, ids: Sequence[str]) -> tuple[npt.NDArray[np.float32], list[str]]:
        """Vectors of ids.

        Returns:
            Vectors, shape (N, q), and the source of each; an unknown id gets the fallback
            vector and the source `fallback`.
        """
        rows = self.index.find(ids)
        vectors = np.empty((len(ids), self.dimension), dtype=np.float32)
        known = rows >= 0
        vectors[known] = self.vectors[rows[known]]
        vectors[~known] = self.fallback
        return vectors, self.sources_at(rows)

    def sources(self, ids: Sequence[str]) -> list[str]:
        """Source of the vector of each id, as `lookup` returns it."""
        return self.sources_at(self.index.find(ids))

    def sources_at(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Source of each row, shape (N,); `fallback` for row -1."""
        # The name behind the last one is that of a missing row.
        codes = np.full(len(rows), len(self._names) - 1, dtype=np.int64)
        known = rows >= 0
        codes[known] = self._codes[rows[known]]
        names = self._names
        return [names[code] for code in codes.tolist()]


def _source_codes(rows: pa.Table, path: Path) -> tuple[list[str], npt.NDArray[np.uint8]]:
    """Names of sources, with `fallback` once more at the end, and the mapped codes (N,)."""
    column = single_chunk(rows, SOURCE)
    if column.type != pa.dictionary(pa.uint8(), pa.string()):
        raise StoreError("the sources are not codes", where=str(path), todo=REPUBLISH)
    codes = column.indices.to_numpy(zero_copy_only=True)
    return [*column.dictionary.to_pylist(), FALLBACK], codes
