"""Vectors in LMDB: one immutable folder a side of a version, shared by all readers."""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import lmdb
from typing_extensions import override

from reki_ray.config import AdapterSettings
from reki_ray.core import atomic
from reki_ray.errors import StoreError
from reki_ray.store.kv import (
    EXPORT_AGAIN,
    Advance,
    Meta,
    ServedVectors,
    meta_key,
    pack,
    replaceable_meta,
)
from reki_ray.store.vectors import VectorTable

_ROWS_A_STEP: Final = 10_000
_SMALLEST_MAP: Final = 1 << 24
_DATA: Final = "data.mdb"


class _UnreadableError(StoreError):
    """A folder is missing or damaged."""


class _Environment:
    """A folder opened for reading. LMDB wants one a process, so that equal paths share it."""

    _opened: Final[weakref.WeakValueDictionary[tuple[int, int], _Environment]] = (
        weakref.WeakValueDictionary()
    )
    _lock: Final = threading.Lock()

    def __init__(self, path: Path) -> None:
        # A finished folder is never written to: readers need no lock file.
        self.handle = lmdb.open(str(path), readonly=True, lock=False, create=False)

    @classmethod
    def of(cls, path: Path) -> _Environment:
        """The folder at this path now; readers of an earlier export keep theirs.

        Raises:
            _UnreadableError: It is missing or damaged.
        """
        with cls._lock:
            try:
                state = (path / _DATA).stat()
                environment = cls._opened.get((state.st_dev, state.st_ino))
                if environment is None:
                    environment = cls(path)
                    cls._opened[state.st_dev, state.st_ino] = environment
            except (OSError, lmdb.Error) as error:
                raise _UnreadableError(
                    f"there is no readable export: {error}", where=str(path), todo=EXPORT_AGAIN
                ) from error
            return environment


class LmdbVectors(ServedVectors):
    """Vectors of one side of a version in LMDB."""

    _environment: _Environment | None

    @override
    def connect(self, settings: AdapterSettings) -> str:
        path = _folder_of(settings, self._prefix)
        self._environment = _Environment.of(path)
        return str(path)

    @override
    def fetch(self, keys: Sequence[bytes]) -> list[bytes | None]:
        environment = self._environment
        if environment is None:
            raise self.closed_error()
        try:
            with environment.handle.begin() as transaction:
                return [transaction.get(key) for key in keys]
        except lmdb.Error as error:
            raise StoreError(
                f"LMDB cannot read: {error}", where=self._where, todo=EXPORT_AGAIN
            ) from error

    @override
    def close(self) -> None:
        self._environment = None  # the folder closes with its last reader

    @staticmethod
    @override
    def export_side(
        settings: AdapterSettings,
        prefix: bytes,
        vectors: VectorTable,
        meta: Meta,
        advance: Advance,
    ) -> None:
        target = _folder_of(settings, prefix)
        if target.exists() and _is_whole(target, prefix, vectors, meta):
            return
        scratch = None
        try:
            atomic.make_folder(target.parent)
            scratch = Path(tempfile.mkdtemp(prefix=".scratch-", dir=target.parent))
            whole, damaged = scratch / "whole", scratch / "damaged"
            whole.mkdir()
            _write(whole, prefix, vectors, meta, advance)
            whole.chmod(0o755)  # whatever the umask: readers may be another user
            (whole / _DATA).chmod(0o644)
            if target.exists():  # who has it open goes on reading it
                target.rename(damaged)
            atomic.move(whole, target)
        except (OSError, lmdb.Error) as error:
            raise StoreError(
                f"the export cannot be written: {error}",
                where=str(target),
                todo="Make room on the disk or mend the rights.",
            ) from error
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)


def _folder_of(settings: AdapterSettings, prefix: bytes) -> Path:
    """Folder of one side of a version; neither part of the prefix holds a slash."""
    return Path(settings.url).resolve() / prefix.decode().rstrip("/").replace("/", "-")


def _is_whole(target: Path, prefix: bytes, vectors: VectorTable, meta: Meta) -> bool:
    """Whether a folder holds all of an export, byte for byte.

    Raises:
        StoreError: It holds another store's version of this number.
    """
    try:
        with _Environment.of(target).handle.begin() as transaction:
            there = replaceable_meta(transaction.get(meta_key(prefix)), str(target), prefix)
            if there is not None and there.manifest != meta.manifest:
                raise StoreError(
                    "the folder holds another store's version of this number",
                    where=str(target),
                    todo="Choose another store.vectors.namespace, or remove the folder.",
                )
            return there == meta and all(
                transaction.get(key) == value
                for batch in vectors.batches(_ROWS_A_STEP)
                for key, value in pack(prefix, batch).items()
            )
    except (lmdb.Error, _UnreadableError):
        return False


def _write(folder: Path, prefix: bytes, vectors: VectorTable, meta: Meta, advance: Advance) -> None:
    environment = lmdb.open(str(folder), map_size=_SMALLEST_MAP, lock=False)
    try:
        for batch in vectors.batches(_ROWS_A_STEP):
            _put(environment, pack(prefix, batch))
            advance(len(batch[0]))
        _put(environment, {meta_key(prefix): meta.model_dump_json().encode()})
        environment.sync(True)
    finally:
        environment.close()


def _put(environment: lmdb.Environment, pairs: dict[bytes, bytes]) -> None:
    while True:
        try:
            with environment.begin(write=True) as transaction, transaction.cursor() as cursor:
                cursor.putmulti(sorted(pairs.items()))
        except lmdb.MapFullError:  # the transaction is undone; the file is sparse
            environment.set_mapsize(2 * environment.info()["map_size"])
        else:
            return
