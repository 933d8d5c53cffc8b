"""Vectors found by id: one memory-mapped file a side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reki_ray.errors import StoreError
from reki_ray.schema import FACTOR, ID, SOURCE, VECTOR, WHOLE_ANSWER, Source
from reki_ray.store.index import (
    REPUBLISH,
    HashKeys,
    IndexedTable,
    hash_keys,
    single_chunk,
    write_indexed,
)

DType = Literal["float32", "float16"]

FALLBACK: Source = "fallback"


def write_vectors(
    path: Path,
    ids: Sequence[str],
    vectors: npt.NDArray[Any],
    sources: Sequence[str],
    *,
    dtype: DType = "float32",
    hashing: HashKeys = hash_keys,
) -> None:
    """Write the vectors of one side.

    Args:
        path: New file.
        ids: N distinct ids.
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
    if len(set(ids)) != len(ids):
        raise StoreError("an id occurs twice", where=str(path), todo="Give each id once.")
    kind = pa.float16() if dtype == "float16" else pa.float32()
    values = pa.array(np.ascontiguousarray(vectors, dtype=dtype).reshape(-1), kind)
    element = pa.field("item", kind, nullable=False)
    columns = {
        ID: pa.array(ids, pa.string()),
        FACTOR: pa.array([WHOLE_ANSWER], pa.string()).take(pa.array(np.zeros(len(ids), np.int64))),
        VECTOR: pa.FixedSizeListArray.from_arrays(values, type=pa.list_(element, vectors.shape[1])),
        SOURCE: pa.array(sources, pa.string()),
    }
    schema = pa.schema([pa.field(name, c.type, nullable=False) for name, c in columns.items()])
    write_indexed(path, pa.table(columns, schema=schema), ID, hashing=hashing)


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
        self._index = IndexedTable(path, ID, hashing=hashing)
        rows = self._index.rows
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
        self._sources = single_chunk(rows, SOURCE)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def ids(self) -> list[str]:
        """All ids, in the order of the rows of `vectors`."""
        found: list[str] = self._index.keys.to_pylist()
        return found

    def lookup(self, ids: Sequence[str]) -> tuple[npt.NDArray[np.float32], list[str]]:
        """Vectors of ids.

        Args:
            ids: N ids, with repetitions and in any order.

        Returns:
            Vectors, shape (N, q), and the source of each; an unknown id gets the fallback
            vector and the source `fallback`.
        """
        rows = self._index.find(ids)
        vectors = np.empty((len(ids), self.dimension), dtype=np.float32)
        known = rows >= 0
        vectors[known] = self.vectors[rows[known]]
        vectors[~known] = self.fallback
        return vectors, self._sources_at(rows)

    def sources(self, ids: Sequence[str]) -> list[str]:
        """Source of the vector of each id, as `lookup` tells it."""
        return self._sources_at(self._index.find(ids))

    def _sources_at(self, rows: npt.NDArray[np.int64]) -> list[str]:
        stored = self._sources.take(pa.array(rows, mask=rows < 0)).to_pylist()
        return [FALLBACK if source is None else source for source in stored]
