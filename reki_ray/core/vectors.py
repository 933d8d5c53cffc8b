"""Vector tables: conversion between numpy and Arrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.core.formats import counted
from reki_ray.errors import DataError
from reki_ray.schema import FACTOR, ID, SOURCE, VECTOR, WHOLE_ANSWER, Source, vectors_schema

ENCODER_METADATA: Final = "reki.encoder."
"""Prefix of the Parquet metadata that identifies the encoder of the vectors."""

_SMALLEST_NORM = 1e-12


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Scale rows (N, d) to unit length, as float32; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = (vectors / np.maximum(norms, _SMALLEST_NORM)).astype(np.float32)
    return scaled


def require_finite(ids: Sequence[str], vectors: np.ndarray, *, what: str) -> None:
    """Refuse NaN and infinity.

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
    """Vector table of whole-answer vectors (N, d), one row for each of N distinct ids.

    The identity of the encoder, as `{"model": ...}`, becomes metadata of the table.

    Raises:
        DataError: A vector is not finite.
    """
    require_finite(ids, vectors, what="vectors")
    schema = vectors_schema(vectors.shape[1])
    if encoder is not None:
        names = {f"{ENCODER_METADATA}{name}": value for name, value in encoder.items()}
        schema = schema.with_metadata(names)
    whole = [WHOLE_ANSWER] * len(vectors)
    columns = {ID: ids, FACTOR: whole, VECTOR: vector_column(vectors), SOURCE: sources}
    return pa.table(columns, schema=schema)


def factors_table(
    ids: Sequence[str],
    factors: Sequence[str],
    vectors: np.ndarray,
    sources: Sequence[Source],
    encoder: Mapping[str, str],
) -> pa.Table:
    """Vector table of vectors (N, K, d) by factor; zero vectors have no row.

    Each of the N distinct ids has a nonzero vector, and a source.
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
    """Representations by factor, concatenated.

    Attributes:
        ids: N distinct ids, in order of their first rows.
        factors: K factors, sorted.
        vectors: (N, K * d) float32, zero where an id lacks a factor.
        sources: N sources.
    """

    ids: list[str]
    factors: tuple[str, ...]
    vectors: np.ndarray
    sources: list[str]


def read_factor_vectors(table: pa.Table) -> FactorVectors:
    """Read a vector table with one or more rows per id, in any order.

    Raises:
        DataError: An id has two vectors of the same factor.
    """
    ids = table[ID].combine_chunks().dictionary_encode()
    factors = tuple(sorted(pc.unique(table[FACTOR]).to_pylist()))
    columns = pc.index_in(table[FACTOR], value_set=pa.array(factors, pa.string())).to_numpy()
    rows = ids.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    cells = rows * len(factors) + columns
    order = np.argsort(cells, kind="stable")
    duplicates = np.flatnonzero(np.diff(cells[order]) == 0)
    if len(duplicates):
        raise DataError(
            counted(len(duplicates), "duplicate vector"),
            where=f"id {ids.dictionary[int(rows[order[duplicates[0]]])].as_py()}",
            todo="Run `reki run --until encode --force encode`.",
        )
    vectors = stack(table[VECTOR])
    if len(factors) > 1:  # else one row per id, already in order: avoids a copy of large tables
        stacked = vectors
        shape = (len(ids.dictionary), len(factors), stacked.shape[1])
        vectors = np.zeros(shape, dtype=np.float32)
        vectors[rows, columns] = stacked
    first = np.unique(rows, return_index=True)[1]
    return FactorVectors(
        ids.dictionary.to_pylist(),
        factors,
        vectors.reshape(len(vectors), -1),
        table[SOURCE].take(pa.array(first)).to_pylist(),
    )


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
