"""Deltas: what a small version changes of the one below it, and one full version of both."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reki_ray.errors import StoreError
from reki_ray.schema import (
    ID,
    ITEM_ID,
    ITEMS_SCHEMA,
    KEY_HASH,
    PROFILES_SCHEMA,
    SIDES,
    USER_ID,
    Side,
)
from reki_ray.store.hash_index import write_indexed
from reki_ray.store.layers import LayeredTable
from reki_ray.store.manifest import (
    CATALOGUE_FILE,
    KNOWLEDGE_FILE,
    MANIFEST,
    MAX_LAYERS,
    MODEL_FOLDER,
    PROFILES_FILE,
    RERANKER_FOLDER,
    RETRIEVAL_FOLDER,
    VECTOR_FILES,
    Base,
    Description,
    Prestore,
    checksum,
)
from reki_ray.store.tables import KNOWLEDGE_SCHEMA, catalogue_table
from reki_ray.store.vectors import DType, write_vectors
from reki_ray.store.version import StoreVersion

_ROWS_A_STEP: Final = 65_536


@dataclass(frozen=True)
class NewVectors:
    """Vectors of new or changed ids.

    Attributes:
        ids: N distinct ids.
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
        dtype: Stored type of the vectors.
        prestore: Whether they are h or r.
        vectors: New or changed vectors, a side.
        profiles: Table of PROFILES_SCHEMA, as `profiles_table` makes it.
        catalogue: Table of `catalogue_table`.
        knowledge: Table of `knowledge_table`; it replaces all rows of the subjects in it.
    """

    model_fingerprint: str
    dimension: int
    dtype: DType = "float32"
    prestore: Prestore = "h"
    vectors: dict[Side, NewVectors] = field(default_factory=dict)
    profiles: pa.Table = field(default_factory=PROFILES_SCHEMA.empty_table)
    catalogue: pa.Table = field(default_factory=lambda: catalogue_table(ITEMS_SCHEMA.empty_table()))
    knowledge: pa.Table = field(default_factory=KNOWLEDGE_SCHEMA.empty_table)


def check_fits(delta: Delta, base: StoreVersion) -> None:
    """Refuse a delta that does not belong over a version.

    Raises:
        StoreError: Model, dimension, stored type or prestore mode differ, the base has no such
            vectors, or it has too many layers.
    """
    for name, what in (
        ("model_fingerprint", "model"),
        ("dimension", "dimension"),
        ("dtype", "dtype"),
        ("prestore", "prestore mode"),
    ):
        ours, theirs = getattr(delta, name), getattr(base.manifest, name)
        if ours != theirs:
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
            todo="Run `reki compact`, which makes one full version of them; then upsert again.",
        )


def write_delta(delta: Delta, base: StoreVersion, folder: Path) -> Description:
    """Write a delta's files, and describe it.

    Raises:
        StoreError: An id occurs twice, or ids, vectors and sources do not fit together.
    """
    profiles = delta.profiles.cast(PROFILES_SCHEMA)
    write_indexed(folder / PROFILES_FILE, profiles, USER_ID, unique=True)
    write_indexed(folder / CATALOGUE_FILE, delta.catalogue, ITEM_ID, unique=True)
    write_indexed(folder / KNOWLEDGE_FILE, delta.knowledge, ID)
    for side in SIDES:
        if side not in base.manifest.fallback:
            continue
        empty = np.zeros((0, len(base.manifest.fallback[side])), np.float32)
        new = delta.vectors.get(side, NewVectors((), empty, ()))
        path = folder / VECTOR_FILES[side]
        write_vectors(path, list(new.ids), new.vectors, list(new.sources), dtype=delta.dtype)
    return _description(
        base,
        users=len(base.profiles) + _unknown(base.profiles.layers, delta.profiles, USER_ID),
        items=len(base.catalogue) + _unknown(base.catalogue.layers, delta.catalogue, ITEM_ID),
        base=Base(
            version=base.manifest.version,
            manifest=checksum(base.folder / MANIFEST),
        ),
    )


def write_compacted(version: StoreVersion, folder: Path) -> Description:
    """Write a full version of the same content as a version in layers, and describe it."""
    for name, layers, key in (
        (PROFILES_FILE, version.profiles.layers, USER_ID),
        (CATALOGUE_FILE, version.catalogue.layers, ITEM_ID),
        (KNOWLEDGE_FILE, version.knowledge_rows.layers, ID),
    ):
        write_indexed(folder / name, layers.rows().drop_columns([KEY_HASH]), key)
    for side in SIDES:
        stored = version.stored_vectors(side)
        if stored is None:
            continue
        ids: list[str] = []
        sources: list[str] = []
        parts: list[npt.NDArray[Any]] = [np.zeros((0, stored.dimension), version.manifest.dtype)]
        for some_ids, vectors, some_sources in stored.batches(_ROWS_A_STEP):
            ids += some_ids
            parts.append(vectors)
            sources += some_sources
        path = folder / VECTOR_FILES[side]
        dtype = version.manifest.dtype
        write_vectors(path, ids, np.concatenate(parts), sources, dtype=dtype)
    for name in (MODEL_FOLDER, RERANKER_FOLDER, RETRIEVAL_FOLDER):
        source = version.layers[-1][0] / name
        if source.exists():
            shutil.copytree(source, folder / name)
    return _description(
        version, users=len(version.profiles), items=len(version.catalogue), base=None
    )


def _unknown(layers: LayeredTable, rows: pa.Table, key: str) -> int:
    """Number of rows whose key the layers do not hold."""
    return int((~layers.known(rows.column(key).to_pylist())).sum())


def _description(
    version: StoreVersion, *, users: int, items: int, base: Base | None
) -> Description:
    found = version.manifest.model_dump(include=set(Description.model_fields))
    return Description.model_validate({**found, "users": users, "items": items, "base": base})
