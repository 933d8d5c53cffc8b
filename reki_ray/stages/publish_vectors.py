"""The vectors of every id: augmented by a model of the version, or as they were encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reki_ray.core.progress import Task
from reki_ray.core.vectors import normalise, read_factor_vectors
from reki_ray.core.workspace import Workspace
from reki_ray.errors import DataError
from reki_ray.models.artifact import Bundle
from reki_ray.schema import Side, Table
from reki_ray.store.manifest import VECTOR_FILES, Prestore
from reki_ray.store.vectors import FALLBACK, DType, write_vectors

Vectors = npt.NDArray[np.float32]

_ROWS_A_STEP: Final = 65_536


@dataclass(frozen=True)
class SideRepresentations:
    """What models know of one side: representations r (N, K d) of N ids, and their sources."""

    ids: list[str]
    r: Vectors
    sources: list[str]

    @property
    def unknown(self) -> Vectors:
        """Representation (1, K d) of an id that nothing is known of."""
        known = np.array([source != FALLBACK for source in self.sources], dtype=bool)
        return mean_direction(self.r[known] if known.any() else self.r)


def read_side(
    workspace: Workspace, bundle: Bundle[Any, Any], side: Side, expected: pa.ChunkedArray
) -> SideRepresentations:
    """Representations of a side, whose ids are `expected`, as a model takes them.

    Raises:
        DataError: They do not cover the ids, or are of other factors than the model's.
    """
    origin = bundle.origin
    path = origin.user_representations if side == "users" else origin.item_representations
    if not path:  # the arm knows nothing of this side: the zero vector, as in training
        ids = expected.to_pylist()
        zeros = np.zeros((len(ids), bundle.architecture.width(side)), np.float32)
        return SideRepresentations(ids, zeros, [FALLBACK] * len(ids))
    ids, factors, r, sources = read_factor_vectors(workspace.read_table(Table(path, None)))
    if len(ids) != len(expected) or set(ids) != set(expected.to_pylist()):
        raise DataError(
            f"{len(ids)} representations do not cover the {len(expected)} {side} once each",
            where=workspace.path(path),
            todo="Run `reki run --until encode --force encode`.",
        )
    trained = bundle.architecture.factors(side)
    if factors != trained:
        raise DataError(
            f"representations of {side} are of the factors {', '.join(factors)}, the model "
            f"was trained with {', '.join(trained)}",
            where=workspace.path(path),
            todo="Run `reki run --until train --force encode`.",
        )
    return SideRepresentations(ids, r, sources)


def write_side(
    folder: Path,
    side: Side,
    known: SideRepresentations,
    augment: Callable[[Vectors], Vectors],
    *,
    dtype: DType,
    task: Task,
) -> list[float]:
    """Write the vectors of a side, and return that of an id that nothing is known of.

    Args:
        augment: Makes of representations (n, K d) what is stored.

    Raises:
        DataError: A vector is not finite in the stored type.
    """
    fallback = augment(known.unknown)
    _require_finite(fallback, [f"unknown {side}"], side, dtype)
    vectors = np.empty((len(known.r), fallback.shape[1]), dtype=np.float32)
    for start in range(0, len(vectors), _ROWS_A_STEP):
        part = known.r[start : start + _ROWS_A_STEP].copy()  # torch wants writable memory
        rows = slice(start, start + len(part))
        vectors[rows] = augment(part)
        _require_finite(vectors[rows], known.ids[rows], side, dtype)
        task.advance(len(part))
    write_vectors(folder / VECTOR_FILES[side], known.ids, vectors, known.sources, dtype=dtype)
    return [float(x) for x in fallback[0]]


def augmentation(
    bundle: Bundle[Any, Any], side: Side, prestore: Prestore
) -> Callable[[Vectors], Vectors]:
    """What makes stored vectors of representations of a side: HEIN, or nothing."""
    if prestore == "r":
        return lambda r: r
    return bundle.augment_users if side == "users" else bundle.augment_items


def mean_direction(r: Vectors) -> Vectors:
    """Mean of representations (N, d) with length 1, shape (1, d); zero where N is 0."""
    mean = r.mean(axis=0, keepdims=True) if len(r) else np.zeros((1, r.shape[1]), np.float32)
    return normalise(mean)


def _require_finite(vectors: Vectors, ids: Sequence[str], side: Side, dtype: DType) -> None:
    """Refuse vectors (n, q) that are NaN or infinite, or become so in the stored type."""
    with np.errstate(over="ignore"):
        finite = np.isfinite(vectors.astype(dtype)).all(axis=1)
    if not finite.all():
        raise DataError(
            f"the {dtype} vector of {ids[int(np.argmin(finite))]!r} is not finite",
            where=f"publish, {side}",
            todo="With publish.dtype float16, take float32; else look for NaN in the "
            "representations that `reki encode` wrote.",
        )
