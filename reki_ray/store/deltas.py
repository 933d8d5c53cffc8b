"""Deltas: what a small version changes of the one below it, and one full version of both."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reki_ray.errors import StoreError
from reki_ray.schema import ID, ITEM_ID, KEY_HASH, PROFILES_SCHEMA, SIDES, USER_ID, Side
from reki_ray.store.hash_index import IndexedTable, keep_rows, write_indexed
from reki_ray.store.layers import LayeredTable, files_of
from reki_ray.store.manifest import (
    LATER_FOLDER,
    MANIFEST,
    MAX_LAYERS,
    MODEL_FOLDER,
    MUST_MATCH,
    RERANKER_FOLDER,
    RETRIEVAL_FOLDER,
    VECTOR_FILES,
    Base,
    Description,
    Prestore,
    checksum,
    retrieval_folders,
)
from reki_ray.store.tables import CATALOGUE_SCHEMA, KNOWLEDGE_SCHEMA, TABLES
from reki_ray.store.vectors import DType, write_vectors
from reki_ray.store.version import StoreVersion

DELTA_SHARE: Final = 0.2
"""Largest share of the full version's rows in the deltas over it; past it `reki update` writes a
full version."""

_KEYS: Final = {
    **{name: key for name, (_, key) in TABLES.items()},
    **dict.fromkeys(VECTOR_FILES.values(), ID),
    **{f"{RERANKER_FOLDER}/{name}": ID for name in VECTOR_FILES.values()},
}
"""Files that are found in by key, and the column of the key."""


@dataclass(frozen=True)
class NewVectors:
    """Vectors of new or changed ids.

    Attributes:
        vectors: As the base prestores them, h or r, shape (N, q).
        sources: Where each comes from: individual, cluster or fallback.
    """

    ids: Sequence[str]
    vectors: npt.NDArray[Any]
    sources: Sequence[str]


@dataclass(frozen=True)
class Delta:
    """What an upsert brings; each row replaces the base's row of the same key.

    Attributes:
        model_fingerprint: Fingerprint of the model behind the vectors.
        dimension: Length q of that model's augmented vectors h; 0 where there are none.
        profiles: Table of PROFILES_SCHEMA, as `profiles_table` makes it.
        knowledge: Table of `knowledge_table`; it replaces all rows of the subjects in it.
    """

    model_fingerprint: str
    dimension: int
    dtype: DType = "float32"
    prestore: Prestore = "h"
    vectors: dict[Side, NewVectors] = field(default_factory=dict)
    profiles: pa.Table = field(default_factory=PROFILES_SCHEMA.empty_table)
    catalogue: pa.Table = field(default_factory=CATALOGUE_SCHEMA.empty_table)
    knowledge: pa.Table = field(default_factory=KNOWLEDGE_SCHEMA.empty_table)


def check_fits(delta: Delta, base: StoreVersion) -> None:
    """Refuse a delta that does not belong over a version.

    Raises:
        StoreError: Model, dimension, stored type or prestore mode differ, the base has no such
            vectors, or it has too many layers.
    """
    for name in MUST_MATCH:
        ours, theirs = getattr(delta, name), getattr(base.manifest, name)
        if ours != theirs:
            what = {"model_fingerprint": "model", "prestore": "prestore mode"}.get(name, name)
            raise StoreError(
                f"the upsert's {what} is {ours}, that of version {base.name} is {theirs}",
                where=str(base.folder),
                todo="Publish a full version of the new model: `reki publish`.",
            )
    for side, new in delta.vectors.items():
        expected = len(base.manifest.fallback.get(side, ()))
        if new.vectors.ndim != 2 or new.vectors.shape[1] != expected:
            raise StoreError(
                f"the upsert's vectors of {side} have shape {new.vectors.shape}, those of version "
                f"{base.name} have length {expected}",
                where=str(base.folder),
                todo="Publish a full version: `reki publish`.",
            )
    if len(base.layers) >= MAX_LAYERS:
        raise StoreError(
            f"version {base.name} has {len(base.layers)} layers already",
            where=str(base.folder),
            todo="Run `reki compact`, which merges them into one full version; then upsert again.",
        )


def write_delta(delta: Delta, base: StoreVersion, folder: Path) -> Description:
    """Write a delta's files, and describe it.

    Raises:
        StoreError: An id occurs twice, or ids, vectors and sources do not fit together.
    """
    tables = (delta.profiles, delta.catalogue, delta.knowledge)
    for rows, (name, (schema, key)) in zip(tables, TABLES.items(), strict=True):
        try:
            cast = rows.cast(schema)
        except (pa.ArrowException, ValueError) as error:
            raise StoreError(
                f"the upsert's rows do not have the columns of {name}: {error}",
                where=str(base.folder),
                todo="Give the columns of that file, with a value in those that must have one.",
            ) from error
        write_indexed(folder / name, cast, key, unique=key != ID)
    for side in SIDES:
        if side not in base.manifest.fallback:
            continue
        empty = np.zeros((0, len(base.manifest.fallback[side])), np.float32)
        new = delta.vectors.get(side, NewVectors((), empty, ()))
        path = folder / VECTOR_FILES[side]
        write_vectors(path, list(new.ids), new.vectors, list(new.sources), dtype=delta.dtype)
    return _description(
        base,
        users=_count_with(base.profiles, delta.profiles[USER_ID]),
        items=_count_with(base.catalogue, delta.catalogue[ITEM_ID]),
        base=_base_of(base),
    )


def write_compacted(version: StoreVersion, folder: Path) -> Description:
    """Write a full version of the same content as a version in layers, and describe it."""
    base = version.layers[-1][0]
    for name in (MODEL_FOLDER, RERANKER_FOLDER):
        if (base / name).exists():
            shutil.copytree(base / name, folder / name, ignore=shutil.ignore_patterns("*.arrow"))
    for path, key in _KEYS.items():
        if (base / path).exists():
            rows = _layered(version, path, key).rows().drop_columns([KEY_HASH])
            write_indexed(folder / path, rows, key)
    for place, source in enumerate(retrieval_folders(version.layers)):
        target = folder / RETRIEVAL_FOLDER
        if place:
            target = target / LATER_FOLDER / f"{place:06d}"
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(LATER_FOLDER))
    return _description(
        version, users=len(version.profiles), items=len(version.catalogue), base=None
    )


def changes_over(
    folder: Path, description: Description, base: StoreVersion
) -> dict[str, pa.Table] | None:
    """Rows of a full version, in a folder, that a delta over another would hold, by file.

    None if a full version is due: a delta cannot express the change, the chain would be longer than
    MAX_LAYERS, or its deltas would hold more than DELTA_SHARE of the rows below.
    """
    ours, theirs = description, base.manifest
    same = ("arm", "backbone", "seed", *MUST_MATCH)
    if (
        any(getattr(ours, name) != getattr(theirs, name) for name in same)
        or ours.vector_lengths != theirs.vector_lengths
        or (ours.reranker and ours.reranker.fingerprint)
        != (theirs.reranker and theirs.reranker.fingerprint)
        or max(len(base.layers), len(retrieval_folders(base.layers))) >= MAX_LAYERS
    ):
        return None
    changes, upper, lower = {}, 0, 0
    for path, key in _KEYS.items():
        if not (folder / path).exists():
            continue
        rows, layers = IndexedTable(folder / path, key).rows, _layered(base, path, key)
        changed = layers.changed_rows(rows)
        if changed is None:
            return None
        changes[path] = rows.take(pa.array(changed))
        *newer, oldest = layers.sizes()
        upper, lower = upper + len(changed) + sum(newer), lower + oldest
    return changes if upper <= DELTA_SHARE * lower else None


def reduce_to_delta(
    folder: Path, description: Description, base: StoreVersion, changes: Mapping[str, pa.Table]
) -> Description:
    """Make a full version's files a delta, but for its retrieval files, and describe it."""
    for path, rows in changes.items():
        keep_rows(folder / path, rows)
    for name in (MODEL_FOLDER, RERANKER_FOLDER):
        for model_file in (folder / name).glob("model.*"):
            model_file.unlink()
        if (folder / name).is_dir() and not any((folder / name).iterdir()):
            (folder / name).rmdir()
    return description.model_copy(update={"base": _base_of(base)})


def _base_of(version: StoreVersion) -> Base:
    return Base(version=version.manifest.version, manifest=checksum(version.folder / MANIFEST))


def _layered(version: StoreVersion, path: str, key: str) -> LayeredTable:
    return LayeredTable(files_of([folder for folder, _ in version.layers], path), key)


def _count_with(layers: LayeredTable, keys: pa.ChunkedArray) -> int:
    """Number of rows with those of new keys."""
    return len(layers) + int((~layers.known(keys.to_pylist())).sum())


def _description(
    version: StoreVersion, *, users: int, items: int, base: Base | None
) -> Description:
    fields = version.manifest.model_dump(include=set(Description.model_fields))
    return Description.model_validate({**fields, "users": users, "items": items, "base": base})
