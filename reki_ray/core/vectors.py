"""Vectors between numpy and Arrow: what every room that keeps representations shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.errors import DataError
from reki_ray.schema import FACTOR, ID, SOURCE, VECTOR, WHOLE_ANSWER, Source, vectors_schema

ENCODER_METADATA: Final = "reki.encoder."
"""Prefix of the Parquet metadata that says which encoder a table's vectors are from."""

_SMALLEST_NORM = 1e-12


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Scale rows to unit length.

    Args:
        vectors: (N, d); rows of zeros stay zeros.

    Returns:
        (N, d) float32.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = (vectors / np.maximum(norms, _SMALLEST_NORM)).astype(np.float32)
    return scaled


def require_finite(ids: Sequence[str], vectors: np.ndarray, *, what: str) -> None:
    """Reject NaN and infinity, naming the first id that has one.

    Args:
        ids: N ids.
        vectors: (N, d).
        what: What the vectors are, for the message.

    Raises:
        DataError: A vector is not finite.
    """
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise DataError(
            f"{len(broken)} {what} hold NaN or infinity",
            where=f"id {ids[broken[0]]}",
            todo="Check this id's text and the encoder's precision, then run the stage again.",
        )


def vectors_table(
    ids: Sequence[str],
    vectors: np.ndarray,
    sources: Sequence[Source],
    encoder: Mapping[str, str] | None = None,
) -> pa.Table:
    """Whole-answer vectors as rows of a vector table.

    Args:
        ids: N distinct ids.
        vectors: (N, d).
        sources: N sources.
        encoder: Which encoder they are from, as `{"model": ...}`; kept as metadata of the table.

    Returns:
        N rows of `schema.vectors_schema(d)`, in the order of `ids`.

    Raises:
        DataError: A vector is not finite.
    """
    require_finite(ids, vectors, what="vectors")
    count, dimension = vectors.shape
    schema = vectors_schema(dimension)
    rows = pa.table(
        [
            pa.array(ids, pa.string()),
            pa.array([WHOLE_ANSWER] * count, pa.string()),
            vector_column(vectors),
            pa.array(sources, pa.string()),
        ],
        schema=schema,
    )
    if encoder is None:
        return rows
    return rows.replace_schema_metadata(
        {f"{ENCODER_METADATA}{name}": value for name, value in encoder.items()}
    )


def factors_table(
    ids: Sequence[str],
    factors: Sequence[str],
    vectors: np.ndarray,
    sources: Sequence[Source],
    encoder: Mapping[str, str],
) -> pa.Table:
    """Vectors by factor as rows of a vector table; a factor of zeros has no row.

    Args:
        ids: N distinct ids.
        factors: K names.
        vectors: (N, K, d), at least one of an id not zero.
        sources: N sources.
        encoder: Which encoder they are from.

    Raises:
        DataError: A vector is not finite.
    """
    rows, columns = np.nonzero(vectors.any(axis=2))
    places = pa.array(rows)
    table = vectors_table(
        pa.array(ids, pa.string()).take(places).to_pylist(),
        vectors[rows, columns],
        pa.array(sources, pa.string()).take(places).to_pylist(),
        encoder,
    )
    names = pa.array(factors, pa.string()).take(pa.array(columns))
    return table.set_column(1, table.schema.field(FACTOR), names)


class FactorVectors(NamedTuple):
    """Representations by factor, side by side.

    Attributes:
        ids: N distinct ids, in the order of their first rows.
        factors: K factors, in the order of their names.
        vectors: (N, K * d) float32, zeros where an id lacks a factor.
        sources: N sources.
    """

    ids: list[str]
    factors: tuple[str, ...]
    vectors: np.ndarray
    sources: list[str]


def read_factor_vectors(table: pa.Table) -> FactorVectors:
    """Content of a vector table, one or more rows an id.

    Args:
        table: Columns id, factor, vector and source; in any order of rows.

    Raises:
        DataError: An id has two vectors of one factor.
    """
    ids = table[ID].combine_chunks().dictionary_encode()
    factors = tuple(sorted(pc.unique(table[FACTOR]).to_pylist()))
    columns = pc.index_in(table[FACTOR], value_set=pa.array(factors, pa.string())).to_numpy()
    rows = ids.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    _require_distinct(ids.dictionary, rows, rows * len(factors) + columns)
    found = stack(table[VECTOR])
    if len(factors) == 1:
        vectors = found  # one row an id, in their order: large tables are not copied
    else:
        shape = (len(ids.dictionary), len(factors), found.shape[1])
        vectors = np.zeros(shape, dtype=np.float32)
        vectors[rows, columns] = found
    first = np.unique(rows, return_index=True)[1]
    return FactorVectors(
        ids.dictionary.to_pylist(),
        factors,
        vectors.reshape(len(vectors), -1),
        table[SOURCE].take(pa.array(first)).to_pylist(),
    )


def _require_distinct(ids: pa.Array, rows: np.ndarray, cells: np.ndarray) -> None:
    """Refuse two rows of one cell; `rows` (R,) tells the id of each."""
    order = np.argsort(cells, kind="stable")
    twice = np.flatnonzero(np.diff(cells[order]) == 0)
    if len(twice):
        raise DataError(
            f"{len(twice)} vectors come once more",
            where=f"id {ids[int(rows[order[twice[0]]])].as_py()}",
            todo="Run `reki run --until encode --force encode`.",
        )


def encoder_of(table: pa.Table) -> dict[str, str]:
    """Which encoder a table's vectors are from; empty where it does not say."""
    found = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return {
        key.removeprefix(ENCODER_METADATA): value
        for key, value in found.items()
        if key.startswith(ENCODER_METADATA)
    }


def read_vectors(table: pa.Table) -> tuple[list[str], np.ndarray]:
    """Ids and vectors (N, d) float32 of a vector table, in row order."""
    return table[ID].to_pylist(), stack(table[VECTOR])


def vector_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """Vectors (N, d) as an Arrow column of N lists of d float32."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    kind = vectors_schema(vectors.shape[1]).field(VECTOR).type
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def stack(column: pa.ChunkedArray) -> np.ndarray:
    """An Arrow column of N lists of d float32 as vectors (N, d) float32."""
    dimension = column.type.list_size
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors: np.ndarray = flat.reshape(-1, dimension).astype(np.float32, copy=False)
    return vectors
