"""Versions on a storage that every node sees, such as `s3://bucket/demo/publish`.

    <url>/v<number>/...                    files of a version; manifest.json is written last
    <url>/numbers/<number>                 numbers that were given to a writer
    <url>/promotions/<number>.json         all promotions; one of several writers creates each
    <url>/CURRENT                          the latest of them that its writer lived to note

Nothing is renamed. A version exists once its manifest is there, and is promoted once a promotion
names it: CURRENT says where to look for the latest one, and who finds a later one follows that.

A node fetches a version once, into `versions` of the cache folder, and maps that copy:

    <cache>/versions/<digest of the url>/v<number>/
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from reki_ray.core import atomic
from reki_ray.core.downloads import cache_folder
from reki_ray.core.storage import Storage
from reki_ray.errors import EngineError, StoreError
from reki_ray.store.files import Layers
from reki_ray.store.hash_index import REPUBLISH
from reki_ray.store.manifest import (
    MANIFEST,
    MAX_LAYERS,
    DamagedError,
    Manifest,
    folder_of,
    layers_of,
    note_verified,
    parse_manifest,
    read_manifest,
    seal_of,
    verified_seals,
)
from reki_ray.store.manifest import verify as verify_files
from reki_ray.store.promotions import CURRENT, Promotion, VersionPointer, require_current

KEPT_COPIES: Final = 16
"""Versions that a node keeps copies of; the one used longest ago goes first."""

_NUMBERS: Final = "numbers"
_PROMOTIONS: Final = "promotions"
_MIRROR: Final = "manifests"
_SCRATCH: Final = ".scratch-"
_ABANDONED_SECONDS: Final = 86_400.0
_TRANSFERS: Final = 8
_BLOCK: Final = 8 * 2**20
_ATTEMPTS: Final = 3
_READ_ONLY: Final = 0o444
_VERSION: Final = re.compile(r"v([1-9][0-9]{0,17})/(.+)", re.ASCII)
_NUMBER: Final = re.compile(r"0*([1-9][0-9]{0,17})(\.json)?", re.ASCII)

_logger = logging.getLogger(__name__)


class RemotePromotion(Promotion):
    """A promotion as an object.

    Attributes:
        number: Its own number, from 1.
        token: Tells it from the same promotion by another writer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    token: str


class RemotePointer:
    """Which version of a remote store is served.

    Writers take no lock: of those that create the promotion after the latest one, one succeeds, and
    the others look again.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def current(self) -> int:
        """Number of the version that is served.

        Raises:
            StoreError: Nothing is published, or the storage refuses.
        """
        latest = self._latest()
        if latest is None:
            raise StoreError(
                "nothing is published",
                where=self._storage.location,
                todo="Run `reki publish` first.",
            )
        return latest.version

    def require(self, expected: int | None) -> None:
        """Refuse another current version than the expected one, see `Pointer.require`."""
        if expected is not None:
            require_current(self.current(), expected, self._where)

    def history(self) -> list[Promotion]:
        """All promotions, oldest first.

        Raises:
            StoreError: One is missing or damaged, or the storage refuses.
        """
        with storage_errors():
            numbers = self._numbers()
            with ThreadPoolExecutor(_TRANSFERS) as pool:
                records = list(pool.map(self._read, numbers))
        return [
            Promotion(**record.model_dump(include=set(Promotion.model_fields)))
            for record in records
            if record is not None
        ]

    def move(self, number: int, *, expected: int | None, seal: str, rollback: bool = False) -> None:
        """Make a version the current one; seals are those of one node's copies, and not kept.

        Raises:
            StoreError: Another version is current, or the storage refuses.
        """
        while True:
            latest = self._latest()
            if expected is not None:
                require_current(None if latest is None else latest.version, expected, self._where)
            record = RemotePromotion(
                version=number,
                at=int(time.time()),
                rollback=rollback,
                number=1 if latest is None else latest.number + 1,
                token=uuid.uuid4().hex,
            )
            try:
                created = self._storage.create(_record_path(record.number), _encoded(record))
            except EngineError as error:
                raise StoreError(
                    f"it is unknown whether version {number} is promoted: {error.what}",
                    where=error.where,
                    todo="Look at `reki versions`, and try again if it is still wanted.",
                ) from error
            if created:
                break
        self._note(record)

    def _note(self, record: RemotePromotion) -> None:
        """Write CURRENT, and again if another promotion came meanwhile."""
        latest: RemotePromotion | None = record
        try:
            while latest is not None:
                noted = latest
                self._storage.write(CURRENT, _encoded(noted))
                latest = self._read(noted.number + 1)
        except EngineError as error:
            # It is promoted all the same: readers look for later promotions.
            _logger.warning("version %d is promoted, CURRENT is old: %s", record.version, error)

    def _latest(self) -> RemotePromotion | None:
        with storage_errors():
            latest = self._noted()
            if latest is None:
                numbers = self._numbers()
                latest = self._read(numbers[-1]) if numbers else None
            while (later := self._read(1 if latest is None else latest.number + 1)) is not None:
                latest = later
        return latest

    def _noted(self) -> RemotePromotion | None:
        try:
            return RemotePromotion.model_validate_json(self._storage.read_bytes(CURRENT))
        except (FileNotFoundError, ValidationError):  # the promotions themselves are there
            return None

    def _read(self, number: int) -> RemotePromotion | None:
        path = _record_path(number)
        try:
            return RemotePromotion.model_validate_json(self._storage.read_bytes(path))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise StoreError(
                "the promotion is damaged",
                where=f"{self._storage.location}/{path}",
                todo="Remove it and CURRENT; then `reki promote N`.",
            ) from error

    def _numbers(self) -> list[int]:
        names = (name for name, _ in listed(self._storage, _PROMOTIONS))
        return sorted(int(found[1]) for name in names if (found := _NUMBER.fullmatch(name)))

    @property
    def _where(self) -> str:
        return f"{self._storage.location}/{CURRENT}"


class _Reservation(BaseModel):
    """Who got a number."""

    host: str
    token: str
    at: float


class RemoteFiles:
    """Versions below a URL, and this node's copies of them."""

    takes_turns = False

    def __init__(self, url: str) -> None:
        self._storage = Storage(url)
        self.location = self._storage.location
        digest = hashlib.sha256(self.location.encode()).hexdigest()[:16]
        self.root = cache_folder() / "versions" / digest
        self.pointer: VersionPointer = RemotePointer(self._storage)

    def numbers(self) -> list[int]:
        """Numbers of the versions whose manifest is there."""
        with storage_errors():
            return sorted(n for n, names in self._listed().items() if MANIFEST in names)

    def manifest(self, version: int) -> Manifest:
        """That of the storage; it never changes, and is read once a node."""
        manifest = self._mirrored(version)
        if manifest is None:
            raise self._missing(version)
        return manifest

    def manifests(self, version: int) -> list[Manifest]:
        """Those of the storage."""
        self._walk(version, self._mirrored)
        return [manifest for _, manifest in layers_of(self.root / _MIRROR, version)]

    def layers(self, version: int) -> Layers:
        """Copies of this node, which are fetched where there are none."""
        self._walk(version, self._fetched)
        return layers_of(self.root, version)

    def verify(self, version: int, *, published: bool = False) -> Layers:
        """Read all copies, and fetch damaged ones again."""
        had = set(self._copies())
        layers = self.layers(version)
        for folder, manifest in layers:
            if published and manifest.version in had:  # else it was compared when it was fetched
                self._verify_published(manifest)
            try:
                verify_files(folder, manifest)
            except DamagedError as error:
                _logger.warning("fetching version %d again: %s", manifest.version, error)
                with self._locked(manifest.version):
                    _drop(folder)
                    self._fetch(manifest.version)
        return self.layers(version)

    def seals(self, layers: Layers) -> Sequence[str]:
        """A seal of each copy."""
        return [seal_of([layer]) for layer in layers]

    def is_sealed(self, seal: str) -> bool:
        """Whether the copy of this seal was compared with its checksums on this node."""
        return seal in verified_seals(self.root)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Writers do not wait for one another: each gets a number of its own."""
        with _cache_errors(self.root):
            atomic.make_folder(self.root)
            self._remove_old(self.root.glob(f"{_SCRATCH}*"))
        yield

    def scratch(self) -> Path:
        """A folder beside the copies."""
        return Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}build-", dir=self.root))

    def next_number(self) -> int:
        """Reserve a number, which stays used whatever becomes of its version."""
        with storage_errors():
            files = self._listed()
            names = (name for name, _ in listed(self._storage, _NUMBERS))
            used = {int(found[1]) for name in names if (found := _NUMBER.fullmatch(name))}
            self._remove_abandoned(files)
            number = max(used | files.keys(), default=0) + 1
            while True:
                own = _Reservation(
                    host=socket.gethostname(), token=uuid.uuid4().hex, at=time.time()
                )
                if self._storage.create(f"{_NUMBERS}/{number:08d}", own.model_dump_json().encode()):
                    return number
                number += 1

    def place(self, scratch: Path, number: int) -> None:
        """Upload the files, the manifest last, and keep the folder as this node's copy."""
        manifest = read_manifest(scratch)

        def upload(name: str) -> None:
            target = self._storage.path(_version_path(number, name))
            self._storage.filesystem.put_file(str(scratch / name), target)

        try:
            with self._storage.guarded("written"), ThreadPoolExecutor(_TRANSFERS) as pool:
                list(pool.map(upload, manifest.files))
            content = (scratch / MANIFEST).read_bytes()
            self._storage.write(_version_path(number, MANIFEST), content)
        except EngineError as error:
            raise StoreError(
                f"the version cannot be uploaded: {error.what}",
                where=error.where,
                todo=f"{error.todo} Then publish again.",
            ) from error
        with self._locked(number):
            _drop(folder_of(self.root, number))  # of an earlier store at this URL
            atomic.move(scratch, folder_of(self.root, number))
            note_verified(self.root, seal_of([(folder_of(self.root, number), manifest)]))
        self._evict()

    # --- copies ------------------------------------------------------------------------------

    def _walk(self, version: int, have: Callable[[int], Manifest | None]) -> None:
        """Have the manifests, or the copies, of a version and of all that it lies over."""
        manifest = have(version)
        if manifest is None:
            raise self._missing(version)
        # What is missing below, or too deep, `layers_of` reports.
        for _ in range(MAX_LAYERS):
            if manifest is None or manifest.base is None:
                return
            manifest = have(manifest.base.version)

    def _missing(self, version: int) -> StoreError:
        return StoreError(
            "there is no such version",
            where=f"{self.location}/v{version}",
            todo="Open one that `reki publish` wrote; `reki versions` lists them.",
        )

    def _mirrored(self, number: int) -> Manifest | None:
        folder = folder_of(self.root / _MIRROR, number)
        if (folder / MANIFEST).exists() and not self._is_of_another_store(number, folder):
            return read_manifest(folder)
        content = self._manifest(number)
        if content is None:
            return None
        with _cache_errors(folder):
            atomic.replace_file(folder / MANIFEST, content)
        return read_manifest(folder)

    def _fetched(self, number: int) -> Manifest | None:
        folder = folder_of(self.root, number)
        with contextlib.suppress(StoreError):  # it is looked at again below
            if not self._is_of_another_store(number, folder):
                found = read_manifest(folder)
                with contextlib.suppress(OSError):  # the cache may be another user's
                    os.utime(folder)
                return found
        with self._locked(number):
            with contextlib.suppress(StoreError):  # another process has fetched it meanwhile
                if not self._is_of_another_store(number, folder):
                    return read_manifest(folder)
            with _cache_errors(self.root):
                _drop(folder)
            manifest = self._fetch(number)
        self._evict()
        return manifest

    def _is_of_another_store(self, number: int, folder: Path) -> bool:
        """Whether this URL was emptied and published to again since the copy was made."""
        try:
            published = self._manifest(number)
        except StoreError as error:  # copies are served while the storage is away
            _logger.warning("version %d is served from this node's copy: %s", number, error)
            return False
        copied = folder / MANIFEST
        return published is not None and copied.exists() and copied.read_bytes() != published

    def _fetch(self, number: int) -> Manifest | None:
        """Copy a version to this node, under its lock; None if there is none.

        Raises:
            DamagedError: A file is missing, or is not the one that was published.
            StoreError: The storage or the disk refuses.
        """
        content = self._manifest(number)
        if content is None:
            return None
        manifest = parse_manifest(content, f"{self.location}/{_version_path(number, MANIFEST)}")
        folder = folder_of(self.root, number)
        with _cache_errors(self.root):
            for left in self.root.glob(f"{_SCRATCH}v{number}-*"):  # of a fetch that was killed
                shutil.rmtree(left, ignore_errors=True)
            scratch = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}v{number}-", dir=self.root))
            try:
                with storage_errors(), ThreadPoolExecutor(_TRANSFERS) as pool:
                    list(
                        pool.map(
                            lambda name: self._copy(number, name, manifest, scratch / name),
                            manifest.files,
                        )
                    )
                (scratch / MANIFEST).write_bytes(content)
                (scratch / MANIFEST).chmod(_READ_ONLY)
                scratch.chmod(0o755)
                atomic.move(scratch, folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        note_verified(self.root, seal_of([(folder, manifest)]))
        return manifest

    def _copy(self, number: int, name: str, manifest: Manifest, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_ATTEMPTS):
            with target.open("wb") as file:
                digest = self._stream(number, name, file.write)
            if digest == manifest.files[name]:
                # Replicas map it: one that is cut short kills every reader by SIGBUS.
                target.chmod(_READ_ONLY)
                return
        raise self._damaged(number, name)

    def _verify_published(self, manifest: Manifest) -> None:
        number = manifest.version
        with storage_errors():
            content = self._manifest(number)
            if content is None or parse_manifest(content, self.location) != manifest:
                raise self._damaged(number, MANIFEST)

            def check(name: str) -> None:
                for _ in range(_ATTEMPTS):
                    if self._stream(number, name, lambda _: None) == manifest.files[name]:
                        return
                raise self._damaged(number, name)

            with ThreadPoolExecutor(_TRANSFERS) as pool:
                list(pool.map(check, manifest.files))

    def _stream(self, number: int, name: str, take: Callable[[bytes], object]) -> str:
        """Read a file in blocks; returns its SHA-256."""
        digest = hashlib.sha256()
        path = self._storage.path(_version_path(number, name))
        with self._storage.guarded("read"):
            try:
                source = self._storage.filesystem.open(
                    path, "rb", block_size=_BLOCK, cache_type="readahead"
                )
            except FileNotFoundError as error:
                raise self._damaged(number, name, "a file is missing") from error
            with source:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    take(block)
        return digest.hexdigest()

    def _manifest(self, number: int) -> bytes | None:
        with storage_errors():
            try:
                return self._storage.read_bytes(_version_path(number, MANIFEST))
            except FileNotFoundError:
                return None

    def _damaged(
        self,
        number: int,
        name: str,
        what: str = "the file is damaged: its checksum is not the manifest's",
    ) -> DamagedError:
        where = f"{self.location}/{_version_path(number, name)}"
        return DamagedError(what, where=where, todo=REPUBLISH)

    def _copies(self) -> dict[int, Path]:
        found = ((re.fullmatch(r"v([1-9][0-9]*)", p.name), p) for p in self.root.glob("v*"))
        return {int(name[1]): path for name, path in found if name}

    def _evict(self) -> None:
        """Remove the copies used longest ago; who has one mapped keeps it."""
        with contextlib.suppress(OSError):  # leftovers only take space
            copies = self._copies()
            used = sorted(copies, key=lambda number: copies[number].stat().st_mtime, reverse=True)
            for number in used[KEPT_COPIES:]:
                with self._locked(number):
                    _drop(copies[number])

    @contextlib.contextmanager
    def _locked(self, number: int) -> Iterator[None]:
        """One process of this node at a time writes or removes the copy of a version."""
        with _cache_errors(self.root):
            atomic.make_folder(self.root)
            lock = FileLock(self.root / f".v{number}.lock")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    # --- the storage -------------------------------------------------------------------------

    def _listed(self) -> dict[int, set[str]]:
        """Names of the files of each version, whole or not."""
        files: dict[int, set[str]] = {}
        for name, _ in listed(self._storage, ""):
            if found := _VERSION.fullmatch(name):
                files.setdefault(int(found[1]), set()).add(found[2])
        return files

    def _remove_abandoned(self, files: dict[int, set[str]]) -> None:
        """Remove files of versions whose writers have been dead for long."""
        for number, names in files.items():
            if MANIFEST in names:
                continue
            with contextlib.suppress(FileNotFoundError, ValidationError):
                content = self._storage.read_bytes(f"{_NUMBERS}/{number:08d}")
                given = _Reservation.model_validate_json(content)
                if time.time() - given.at > _ABANDONED_SECONDS:
                    self._storage.remove(f"v{number}")

    def _remove_old(self, folders: Iterable[Path]) -> None:
        for folder in folders:
            if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def listed(storage: Storage, folder: str) -> list[tuple[str, dict[str, Any]]]:
    """Files at any depth below a folder of a storage: paths from there, and their attributes."""
    base = storage.path(folder) if folder else storage.path("").rstrip("/")
    with storage.guarded("read"):
        try:
            found: dict[str, dict[str, Any]] = storage.filesystem.find(base, detail=True)
        except FileNotFoundError:
            return []
    prefix = base.lstrip("/") + "/"
    return [
        (path.lstrip("/").removeprefix(prefix), info)
        for path, info in found.items()
        if path.lstrip("/").startswith(prefix)
    ]


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Turn errors of the storage into those of a store."""
    try:
        yield
    except EngineError as error:
        raise StoreError(error.what, where=error.where, todo=error.todo) from error


@contextlib.contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the cache cannot be written: {error.strerror or error}",
            where=error.filename or str(folder),
            todo="Make room on the disk, or set REKI_CACHE to a folder that you may write.",
        ) from error


def _drop(folder: Path) -> None:
    if folder.exists():
        aside = folder.with_name(f"{_SCRATCH}{uuid.uuid4().hex}")
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _version_path(number: int, name: str) -> str:
    return f"v{number}/{name}"


def _record_path(number: int) -> str:
    return f"{_PROMOTIONS}/{number:08d}.json"


def _encoded(record: RemotePromotion) -> bytes:
    return (json.dumps(record.model_dump(mode="json")) + "\n").encode()
