"""Vectors by id on a key-value server: keys, values, and the lookup.

A key names namespace, version and side; its value is one byte, the code of the source, and the
vector's bytes (little endian). The key `<prefix>@meta` is written last: without it an export is
unfinished and is not opened. It is read again with every lookup: a server that was emptied, or that
holds another export by now, must not pass for one that never knew the ids.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from reki_ray.config import AdapterSettings
from reki_ray.core.imports import load, require
from reki_ray.errors import StoreError
from reki_ray.schema import Side
from reki_ray.store.vectors import FALLBACK, SOURCES, Batch, DType, VectorTable

EXPORT_AGAIN: Final = "Export the version again: `reki export --version N`."
_READABLE_BYTES: Final = 300
"""LMDB's keys end at 511 bytes; a longer id is named by its digest."""
_SERVERS: Final = {
    "lmdb": "reki_ray.store.lmdb:LmdbVectors",
    "redis": "reki_ray.store.redis:RedisVectors",
}
"""Import paths of the kinds of `ServedVectors`, each of which needs an optional package."""

Advance = Callable[[int], None]
"""Receives the number of vectors written since its last call."""


class VectorsLostError(StoreError):
    """A server has lost or damaged vectors that were exported to it; it answers all the same."""


class Meta(BaseModel):
    """What an export says of itself, written when it is complete.

    `manifest` is the SHA-256 of the exported version's manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    dimension: int
    dtype: DType
    manifest: str


def prefix_of(namespace: str, version: int, side: Side) -> bytes:
    """Begin of all keys of one side of a version."""
    return f"{namespace}/v{version}/{side}/".encode()


def key_of(prefix: bytes, vector_id: str) -> bytes:
    """Key of an id: readable where it is short, else by a digest that does not collide."""
    raw = vector_id.encode("utf-8", "surrogatepass")
    if len(raw) <= _READABLE_BYTES:
        return prefix + b"=" + raw
    return prefix + b"#" + hashlib.blake2b(raw, digest_size=32).hexdigest().encode()


def meta_key(prefix: bytes) -> bytes:
    """Key of the `Meta` of an export."""
    return prefix + b"@meta"


def pack(prefix: bytes, batch: Batch) -> dict[bytes, bytes]:
    """Keys and values of rows."""
    ids, vectors, sources = batch
    stored = np.ascontiguousarray(vectors).astype(vectors.dtype.newbyteorder("<"), copy=False)
    return {
        key_of(prefix, name): bytes([SOURCES.index(source)]) + vector.tobytes()
        for name, vector, source in zip(ids, stored, sources, strict=True)
    }


class ServedVectors(abc.ABC):
    """Vectors of an export, looked up by key.

    Args:
        prefix: Begin of the export's keys.
        exported: What was exported, to distinguish ids that the server has lost from unknown ones.
        manifest: SHA-256 of the manifest of the version that is wanted.

    Attributes:
        dimension: Length q of a vector.
        fallback: Vector of ids that are not held, shape (q,).

    Raises:
        StoreError: The export is missing, unfinished, of another version, or unreachable.
    """

    def __init__(
        self, settings: AdapterSettings, prefix: bytes, exported: VectorTable, manifest: str
    ) -> None:
        self._prefix = prefix
        self._exported = exported
        self.fallback = exported.fallback
        self._where = where = self.connect(settings)
        try:
            self._mark = self.fetch([meta_key(prefix)])[0]
            meta = read_meta(self._mark, where, prefix)
            if meta is None or meta.manifest != manifest:
                held = "no complete" if meta is None else "another store's"
                what = f"holds {held} export of {prefix.decode()}"
                raise StoreError(what, where=where, todo=EXPORT_AGAIN)
            if self.fallback.shape != (meta.dimension,):
                raise StoreError(
                    f"the vectors have length {meta.dimension}, the fallback vector has shape "
                    f"{self.fallback.shape}",
                    where=where,
                    todo=EXPORT_AGAIN,
                )
        except StoreError:
            self.close()
            raise
        self._rows = meta.rows
        self._type: np.dtype[Any] = np.dtype(meta.dtype).newbyteorder("<")
        self.dimension: int = meta.dimension

    @abc.abstractmethod
    def connect(self, settings: AdapterSettings) -> str:
        """Open the export, and return the name of the server or folder, for errors."""

    @staticmethod
    @abc.abstractmethod
    def export_side(
        settings: AdapterSettings,
        prefix: bytes,
        vectors: VectorTable,
        meta: Meta,
        advance: Advance,
    ) -> None:
        """Write one side; a complete export of the same version is left alone.

        Raises:
            StoreError: It cannot be written, or another store's version of this number is there.
        """

    def closed_error(self) -> StoreError:
        """What `fetch` raises after `close`."""
        return StoreError(
            "the vectors are closed", where=self._where, todo="Open the version again."
        )

    @abc.abstractmethod
    def fetch(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Value of each key; None for unknown keys.

        Raises:
            StoreError: The server is unreachable or closed.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close what is open."""

    def __len__(self) -> int:
        return self._rows

    def lookup(self, ids: Sequence[str]) -> tuple[npt.NDArray[np.float32], list[str]]:
        """Vectors (N, q) and sources of N ids; an unknown id gets the fallback and its name."""
        values = self._values(ids)
        vectors = np.empty((len(ids), self.dimension), dtype=np.float32)
        vectors[:] = self.fallback
        known = [place for place, value in enumerate(values) if value is not None]
        joined = b"".join(value[1:] for value in values if value is not None)
        vectors[known] = np.frombuffer(joined, self._type).reshape(-1, self.dimension)
        return vectors, _sources(values)

    def sources(self, ids: Sequence[str]) -> list[str]:
        """Source of the vector of each id, as `lookup` returns it."""
        return _sources(self._values(ids))

    def _values(self, ids: Sequence[str]) -> list[bytes | None]:
        if not ids:
            return []
        keys = [key_of(self._prefix, name) for name in ids]
        *values, mark = self.fetch([*keys, meta_key(self._prefix)])
        if mark != self._mark:
            raise self._lost("the export")
        missing = [name for name, value in zip(ids, values, strict=True) if value is None]
        if self._exported.known(missing).any():
            raise self._lost("some of the vectors")
        size = 1 + self.dimension * self._type.itemsize
        for value in values:
            if value is not None and (len(value) != size or value[0] >= len(SOURCES)):
                raise VectorsLostError(
                    f"a value below {self._prefix.decode()} is not a vector of length "
                    f"{self.dimension}: it is damaged",
                    where=self._where,
                    todo=EXPORT_AGAIN,
                )
        return values

    def _lost(self, what: str) -> VectorsLostError:
        return VectorsLostError(
            f"the server no longer holds {what} of {self._prefix.decode()}",
            where=self._where,
            todo=f"{EXPORT_AGAIN} See that it is not emptied, and evicts nothing (maxmemory-policy "
            "noeviction).",
        )


def read_meta(value: bytes | None, where: str, prefix: bytes) -> Meta | None:
    """`Meta` of an export; None if there is none.

    Raises:
        StoreError: It is damaged.
    """
    if value is None:
        return None
    try:
        return Meta.model_validate_json(value)
    except ValidationError as error:
        raise StoreError(
            f"the description of {prefix.decode()} is damaged", where=where, todo=EXPORT_AGAIN
        ) from error


def replaceable_meta(value: bytes | None, where: str, prefix: bytes) -> Meta | None:
    """`Meta` of an export that may be written again; None if it is missing or damaged."""
    with contextlib.suppress(StoreError):
        return read_meta(value, where, prefix)
    return None


KeyedVectors = VectorTable | ServedVectors
"""Vectors of one side of one version, by id, wherever they are."""


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
    """
    meta = Meta(
        rows=len(vectors), dimension=vectors.dimension, dtype=vectors.dtype, manifest=manifest
    )
    prefix = prefix_of(settings.namespace, version, side)
    _server_of(settings).export_side(settings, prefix, vectors, meta, advance)


def open_vectors(
    settings: AdapterSettings, version: int, side: Side, exported: VectorTable, manifest: str
) -> ServedVectors:
    """Open one side of an export; see `ServedVectors`.

    Raises:
        ConfigError: The package of this kind is not installed.
    """
    prefix = prefix_of(settings.namespace, version, side)
    return _server_of(settings)(settings, prefix, exported, manifest)


def _server_of(settings: AdapterSettings) -> type[ServedVectors]:
    require(settings.kind, "store.vectors.kind")
    server: type[ServedVectors] = load(_SERVERS[settings.kind])
    return server


def _sources(values: Sequence[bytes | None]) -> list[str]:
    return [FALLBACK if value is None else SOURCES[value[0]] for value in values]
