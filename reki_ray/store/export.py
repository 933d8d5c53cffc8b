"""Where vectors are looked up: a version's own Arrow files, LMDB, or a Redis server."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from reki_ray.config import AdapterSettings
from reki_ray.errors import ConfigError
from reki_ray.schema import Side
from reki_ray.store.kv import Advance, KeyedVectors, StoredVectors, ignore_progress

if TYPE_CHECKING:
    pass

__all__ = ["KeyedVectors", "StoredVectors", "export_side", "open_vectors"]

_PACKAGES: Final = {"lmdb": "lmdb", "redis": "redis"}


def export_side(  # what names an export
    settings: AdapterSettings,
    version: int,
    side: Side,
    vectors: StoredVectors,
    manifest: str,
    advance: Advance = ignore_progress,
) -> None:
    """Load one side; see `versions.export_vectors`.

    Args:
        manifest: SHA-256 of the version's manifest; readers ask for the same.
        advance: Receives the number of vectors written since its last call.
    """
    _need_package(settings)
    if settings.kind == "lmdb":
        from reki_ray.store import lmdb  # an optional package

        root = Path(settings.url)
        lmdb.export_side(root, settings.namespace, version, side, vectors, manifest, advance)
    elif settings.kind == "redis":
        from reki_ray.store import redis  # an optional package

        redis.export_side(settings, version, side, vectors, manifest, advance)


def open_vectors(  # what names an export
    settings: AdapterSettings,
    version: int,
    side: Side,
    fallback: npt.NDArray[np.float32],
    manifest: str,
    exported: StoredVectors | None = None,
) -> KeyedVectors:
    """Open one side of an export.

    Args:
        fallback: Vector of ids that it does not hold, shape (q,).
        exported: What was exported, to distinguish lost ids from unknown ones.

    Raises:
        ConfigError: The package of this kind is not installed.
        StoreError: The export is missing, unfinished, of another version, or unreachable.
    """
    _need_package(settings)
    if settings.kind == "lmdb":
        from reki_ray.store.lmdb import LmdbVectors  # optional package

        root = Path(settings.url)
        return LmdbVectors(root, settings.namespace, version, side, fallback, manifest, exported)
    from reki_ray.store.redis import RedisVectors  # optional package

    return RedisVectors(settings, version, side, fallback, manifest, exported)


def _need_package(settings: AdapterSettings) -> None:
    package = _PACKAGES.get(settings.kind)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"store.vectors.kind is {settings.kind}, but the package {package} is not installed",
            where="store.vectors.kind",
            todo="Install it: `pip install 'reki-ray[stores]'`.",
        )
