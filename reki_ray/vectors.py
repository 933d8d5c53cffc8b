"""Vectors between numpy and Arrow: what every room that keeps representations shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from reki_ray.errors import DataError
from reki_ray.schema import ID, VECTOR, WHOLE_ANSWER, Source, vectors_schema

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


def vectors_table(ids: Sequence[str], vectors: np.ndarray, sources: Sequence[Source]) -> pa.Table:
    """Whole-answer vectors as rows of a vector table.

    Args:
        ids: N distinct ids.
        vectors: (N, d).
        sources: N sources.

    Returns:
        N rows of `schema.vectors_schema(d)`, in the order of `ids`.

    Raises:
        DataError: A vector is not finite.
    """
    require_finite(ids, vectors, what="vectors")
    count, dimension = vectors.shape
    schema = vectors_schema(dimension)
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, type=schema.field(VECTOR).type)
    return pa.table(
        [
            pa.array(ids, pa.string()),
            pa.array([WHOLE_ANSWER] * count, pa.string()),
            column,
            pa.array(sources, pa.string()),
        ],
        schema=schema,
    )


def read_vectors(table: pa.Table) -> tuple[list[str], np.ndarray]:
    """Ids and vectors (N, d) float32 of a vector table, in row order."""
    column = table[VECTOR]
    dimension = column.type.list_size
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return table[ID].to_pylist(), flat.reshape(-1, dimension).astype(np.float32, copy=False)
