"""Vectors found by id: memory-mapped files, one per layer and side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.errors import StoreError
from reki_ray.schema import FACTOR, ID, SOURCE, VECTOR, WHOLE_ANSWER, Source
from reki_ray.store.hash_index import single_chunk, unusable, write_indexed
from reki_ray.store.layers import LayeredTable, Rows

DType = Literal["float32", "float16"]

FALLBACK: Source = "fallback"
SOURCES: Final[tuple[str, ...]] = get_args(Source)
"""Names behind the stored codes."""

Batch = tuple[list[str], npt.NDArray[Any], list[str]]
"""Ids, vectors (N, q) as they are stored, and sources."""


def write_vectors(
    path: Path,
    ids: Sequence[str] | pa.Array,
    vectors: npt.NDArray[Any],
    sources: Sequence[str] | pa.Array,
    *,
    dtype: DType = "float32",
) -> None:
    """Write the vectors of one side.

    Args:
        vectors: Augmented vectors h, shape (N, q).
        sources: Where each vector comes from: individual, cluster or fallback.
        dtype: Stored type; float16 halves the file and costs about 3 decimal digits.

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
    write_indexed(path, pa.table(columns, schema=schema), ID, unique=True)


class VectorTable(LayeredTable):
    """The vectors of one side, memory-mapped.

    Args:
        paths: A file of `write_vectors` a layer, the newest first; all but the last are small.
        fallback: Vector of ids that the files do not hold, shape (q,).

    Attributes:
        dimension: Length q of a vector.
        vectors: Stored vectors of each layer, shape (N, q).

    Raises:
        StoreError: A file is missing or damaged, or the fallback has another length.
    """

    key = ID

    def __init__(self, paths: Sequence[Path], fallback: npt.NDArray[np.float32]) -> None:
        super().__init__(paths)
        self.dimension = fallback.size
        self.fallback = fallback.astype(np.float32)
        self.vectors: list[npt.NDArray[Any]] = []
        self._codes: list[npt.NDArray[np.uint8]] = []
        self._names: list[list[str]] = []
        for table in self.tables:
            rows = table.rows
            if not {VECTOR, SOURCE} <= set(rows.column_names) or not pa.types.is_fixed_size_list(
                rows.schema.field(VECTOR).type
            ):
                raise unusable("the file holds no vectors", table.path)
            dimension = rows.schema.field(VECTOR).type.list_size
            if fallback.shape != (dimension,):
                raise unusable(
                    f"the vectors have length {dimension}, the fallback vector has shape "
                    f"{fallback.shape}",
                    table.path,
                )
            sources = single_chunk(rows, SOURCE)
            if sources.type != pa.dictionary(pa.uint8(), pa.string()):
                raise unusable("the sources are not codes", table.path)
            flat = single_chunk(rows, VECTOR).flatten().to_numpy(zero_copy_only=True)
            self.vectors.append(flat.reshape(-1, dimension))
            self._codes.append(sources.indices.to_numpy(zero_copy_only=True))
            self._names.append(sources.dictionary.to_pylist())

    @property
    def dtype(self) -> DType:
        """Stored type of the vectors."""
        return "float16" if self.vectors[0].dtype == np.float16 else "float32"

    def lookup(self, ids: Sequence[str]) -> tuple[npt.NDArray[np.float32], list[str]]:
        """Vectors (N, q) and sources of N ids; an unknown id gets the fallback and its name."""
        places_and_rows = list(self.find(ids))
        vectors = np.empty((len(ids), self.dimension), dtype=np.float32)
        vectors[:] = self.fallback
        for layer, places, rows in places_and_rows:
            vectors[places] = self.vectors[layer][rows]
        return vectors, self._sources(len(ids), places_and_rows)

    def sources(self, ids: Sequence[str]) -> list[str]:
        """Source of the vector of each id, as `lookup` returns it."""
        return self._sources(len(ids), self.find(ids))

    def batches(self, size: int) -> Iterator[Batch]:
        """All visible rows, at most `size` at a time."""
        for layer, (table, hidden) in enumerate(zip(self.tables, self.hidden, strict=True)):
            for start in range(0, len(table), size):
                rows = np.arange(start, min(start + size, len(table)), dtype=np.int64)
                rows = rows[~np.isin(rows, hidden)]
                ids = table.keys.take(pa.array(rows)).to_pylist()
                sources = self._sources(len(rows), [(layer, np.arange(len(rows)), rows)])
                if ids:
                    yield ids, self.vectors[layer][rows], sources

    def close(self) -> None:
        """Nothing to close: the mappings go with their last reader."""

    def _sources(self, count: int, hits: Iterable[tuple[int, Rows, Rows]]) -> list[str]:
        """Sources of `count` ids, out of what `find` says of them."""
        sources: list[str] = [FALLBACK] * count
        for layer, places, rows in hits:
            names = self._names[layer]
            for place, code in zip(places.tolist(), self._codes[layer][rows].tolist(), strict=True):
                sources[place] = names[code]
        return sources
