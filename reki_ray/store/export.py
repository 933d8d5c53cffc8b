"""Vectors in LMDB or on a Redis server: where a version's own files are exported to."""

from __future__ import annotations

import importlib.util

from reki_ray.config import AdapterSettings
from reki_ray.errors import ConfigError
from reki_ray.schema import Side
from reki_ray.store.kv import Advance, Meta, ServedVectors, prefix_of
from reki_ray.store.vectors import VectorTable


def export_side(
    settings: AdapterSettings,
    version: int,
    side: Side,
    vectors: VectorTable,
    manifest: str,
    advance: Advance = lambda _: None,
) -> None:
    """Load one side; see `version.export_vectors`.

    Args:
        manifest: SHA-256 of the version's manifest; readers ask for the same.
        advance: Receives the number of vectors written since its last call.
    """
    meta = Meta(
        rows=len(vectors), dimension=vectors.dimension, dtype=vectors.dtype, manifest=manifest
    )
    prefix = prefix_of(settings.namespace, version, side)
    _server_of(settings).export_side(settings, prefix, vectors, meta, advance)


def open_vectors(
    settings: AdapterSettings, version: int, side: Side, exported: VectorTable, manifest: str
) -> ServedVectors:
    """Open one side of an export.

    Raises:
        ConfigError: The package of this kind is not installed.
        StoreError: The export is missing, unfinished, of another version, or unreachable.
    """
    prefix = prefix_of(settings.namespace, version, side)
    return _server_of(settings)(settings, prefix, exported, manifest)


def _server_of(settings: AdapterSettings) -> type[ServedVectors]:
    if importlib.util.find_spec(settings.kind) is None:
        raise ConfigError(
            f"store.vectors.kind is {settings.kind}, but the package {settings.kind} is not "
            "installed",
            where="store.vectors.kind",
            todo="Install it: `pip install 'reki-ray[stores]'`.",
        )
    if settings.kind == "lmdb":
        from reki_ray.store.lmdb import LmdbVectors  # an optional package

        return LmdbVectors
    from reki_ray.store.redis import RedisVectors  # an optional package

    return RedisVectors
