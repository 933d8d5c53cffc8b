"""Immutable, numbered versions of everything that serving needs.

    <root>/v<number>/{manifest.json, users.arrow, items.arrow, profiles.arrow,
                      catalogue.arrow, knowledge.arrow, model/}
    <root>/CURRENT                         number of the version that is served
    <root>/HISTORY                         which versions were promoted when

A version is built in a scratch folder, checked, and renamed into place; then the pointer
moves by a rename. A crash at any moment leaves the served version unchanged. A delta has no
model/ and names the version that it lies over, which must stay.

Writers of versions take turns by one lock; the pointer has a lock of its own, which is held for
its move alone: a promotion never waits for a version that is being built or exported.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from reki_ray.config import AdapterSettings, RekiConfig
from reki_ray.core import atomic
from reki_ray.core.workspace import Workspace
from reki_ray.errors import StoreError
from reki_ray.schema import ID, ITEM_ID, PROFILES_SCHEMA, SIDES, USER_ID, Side
from reki_ray.store import promotions
from reki_ray.store.deltas import Delta, check_fits, write_compacted, write_delta
from reki_ray.store.export import export_side
from reki_ray.store.hash_index import write_indexed
from reki_ray.store.kv import Advance, ignore_progress
from reki_ray.store.manifest import (
    CATALOGUE_FILE,
    KNOWLEDGE_FILE,
    MANIFEST,
    MANIFEST_FORMAT,
    MODEL_FOLDER,
    NO_MODEL,
    PROFILES_FILE,
    VECTOR_FILES,
    Description,
    Manifest,
    VersionWriter,
    checksum,
    folder_of,
    layers_of,
    note_verified,
    seal_of,
    verified_seals,
    write_manifest,
)
from reki_ray.store.manifest import verify as verify_files
from reki_ray.store.promotions import Promotion
from reki_ray.store.soundness import require_sound
from reki_ray.store.tables import CATALOGUE_SCHEMA, KNOWLEDGE_SCHEMA
from reki_ray.store.vectors import DType, write_vectors
from reki_ray.store.version import StoreVersion

STORE_FOLDER: Final = "publish"

"""Folder of the versions, below a workspace."""


def store_of(config: RekiConfig, workspace: Workspace) -> VersionStore:
    """The versions of a run.

    Args:
        config: The run; its `store.vectors` says where replicas look vectors up.
        workspace: Its workspace, on the local disk.

    Raises:
        ConfigError: The workspace is remote.
    """
    root = workspace.local_path(STORE_FOLDER)
    return VersionStore(root, config.store.vectors.resolved())


__all__ = [
    "CATALOGUE_FILE",
    "CURRENT",
    "KNOWLEDGE_FILE",
    "MANIFEST",
    "MANIFEST_FORMAT",
    "MODEL_FOLDER",
    "PROFILES_FILE",
    "VECTOR_FILES",
    "Description",
    "Manifest",
    "StoreVersion",
    "VersionStore",
]

CURRENT: Final = "CURRENT"

VectorsById = tuple[Sequence[str], npt.NDArray[Any]]
"""N distinct ids and their vectors, shape (N, q)."""

_SCRATCH: Final = ".scratch-"

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)

"""As folders and the pointer name it; `int` would take `+1`, `1_0` and 400 digits too."""

_LOCK_MODE: Final = 0o666

"""Publisher and service may be two users, whatever the umask."""

_POINTER_SECONDS: Final = 5.0

"""Longest wait for another process that moves the pointer, which takes milliseconds."""

_UNCHANGED: Final = (
    "Nothing was changed: look at `reki versions`, and try again if it is still wanted."
)

_logger = logging.getLogger(__name__)


class VersionStore:
    """All versions below one folder on the local disk.

    Args:
        root: The folder; `publish` creates it.
        vectors: Where replicas look vectors up: what is published is exported to there, and
            nothing is promoted that is not there. None: in the versions' own files.
    """

    def __init__(self, root: Path | str, vectors: AdapterSettings | None = None) -> None:
        self.root = Path(root)
        self.vectors = vectors or AdapterSettings()

    def versions(self) -> list[int]:
        """Numbers of the finished versions, ascending."""
        if not self.root.is_dir():
            return []
        names = (entry.name for entry in self.root.iterdir() if entry.is_dir())
        return sorted(int(n[1:]) for n in names if n[:1] == "v" and _NUMBER.fullmatch(n[1:]))

    def current(self) -> int:
        """Number of the version that is served.

        Raises:
            StoreError: Nothing is published, or the pointer is damaged.
        """
        pointer = self.root / CURRENT
        try:
            content = pointer.read_bytes().decode("ascii", "replace").strip()
        except FileNotFoundError as error:
            raise StoreError(
                "nothing is published", where=str(self.root), todo="Run `reki publish` first."
            ) from error
        except OSError as error:
            raise StoreError(
                f"the pointer cannot be read: {error.strerror or error}",
                where=str(pointer),
                todo="Make it a file that may be read, then run `reki promote N` with one of "
                f"{self.versions()}.",
            ) from error
        if _NUMBER.fullmatch(content) is None:
            raise StoreError(
                "the pointer holds no version number",
                where=str(pointer),
                todo=f"Run `reki promote N` with one of {self.versions()}.",
            )
        return int(content)

    def history(self) -> list[Promotion]:
        """All promotions, oldest first.

        Raises:
            StoreError: The history is damaged or cannot be read.
        """
        return promotions.read(self.root)

    def folder(self, version: int) -> Path:
        """Folder of a version."""
        return folder_of(self.root, version)

    def open(
        self,
        version: int | None = None,
        *,
        verify: bool = True,
        vectors: AdapterSettings | None = None,
    ) -> StoreVersion:
        """Open a version.

        Args:
            verify: Compare every file of every layer with its checksum, which reads all of it.
            vectors: Where vectors are looked up; None: in the version's own files.

        Raises:
            StoreError: The version is missing, damaged, or its parts do not fit together; a
                version below it is missing or was changed; a server does not hold it.
        """
        number = self.current() if version is None else version
        layers = self.layers(number)
        if verify:
            for folder, manifest in layers:
                verify_files(folder, manifest)
        return StoreVersion(layers, vectors)

    def open_served(self, version: int | None = None) -> StoreVersion:
        """Open a version as replicas do.

        Vectors are those of `vectors`. Checksums are compared only where the files are not those
        that a promotion, or a replica before, has compared.

        Raises:
            StoreError: See `open`.
        """
        number = self.current() if version is None else version
        seal = seal_of(self.layers(number))  # before: what is written meanwhile shows
        if self._is_sealed(number) or seal in verified_seals(self.root):
            return self.open(number, verify=False, vectors=self.vectors)
        opened = self.open(number, vectors=self.vectors)
        note_verified(self.root, seal)
        return opened

    def layers(self, version: int) -> list[tuple[Path, Manifest]]:
        """Folders and manifests of a version and of all that it lies over, newest first.

        Raises:
            StoreError: One is missing, was changed, or does not fit the one above it.
        """
        return layers_of(self.root, version)

    def publish(
        self, fill: VersionWriter, *, promote: bool = True, expected: int | None = None
    ) -> int:
        """Build a version, and make it the current one.

        Args:
            fill: Writes the version's files into a folder, and describes them.
            expected: Promote it only if this version is current at the end; None: whichever is.

        Raises:
            StoreError: The disk refuses, what was built does not open or cannot be exported, or
                another version than the expected one is current; the served version is unchanged.
        """
        atomic.make_folder(self.root)
        with FileLock(self.root / ".lock", mode=_LOCK_MODE):
            for abandoned in self.root.glob(f"{_SCRATCH}*"):  # of a publish that was killed
                shutil.rmtree(abandoned)
            scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=self.root))
            try:
                number = self._next_number()
                self._build(scratch, fill, number)
                atomic.move(scratch, self.folder(number))
            except OSError as error:
                raise StoreError(
                    f"the version cannot be built: {error.strerror or error}",
                    where=error.filename or str(scratch),
                    todo="Make room on the disk or mend the rights, then publish again.",
                ) from error
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            self._export(number)
            if promote:
                self._promote_built(number, expected)
        return number

    def publish_vectors(
        self,
        *,
        users: VectorsById | None = None,
        items: VectorsById | None = None,
        dtype: DType = "float32",
        promote: bool = True,
    ) -> int:
        """Publish vectors by id, of any origin and without a model; they serve lookups only.

        Unknown ids get the mean vector of their side.

        Args:
            users: N distinct ids and their vectors, shape (N, q).
            items: The same for items, whose vectors may have another length.
            dtype: Stored type; float16 halves the files.
            promote: Make it the current version.

        Raises:
            StoreError: An id occurs twice, or ids and vectors do not fit together.
            NotFiniteError: A vector is not finite.

        Example:
            >>> import numpy as np, tempfile
            >>> store = VersionStore(tempfile.mkdtemp())
            >>> store.publish_vectors(items=(["m1", "m2"], np.eye(2, dtype=np.float32)))
            1
            >>> vectors, sources = store.open().items.lookup(["m2", "unknown"])
            >>> vectors.tolist(), sources
            ([[0.0, 1.0], [0.5, 0.5]], ['individual', 'fallback'])
        """

        def fill(folder: Path) -> Description:
            for name, schema, key in (
                (PROFILES_FILE, PROFILES_SCHEMA, USER_ID),
                (CATALOGUE_FILE, CATALOGUE_SCHEMA, ITEM_ID),
                (KNOWLEDGE_FILE, KNOWLEDGE_SCHEMA, ID),
            ):
                write_indexed(folder / name, schema.empty_table(), key)
            fallback: dict[Side, list[float]] = {}
            given: dict[Side, VectorsById | None] = {"users": users, "items": items}
            for side, pair in given.items():
                if pair is None:
                    continue
                ids, vectors = list(pair[0]), np.asarray(pair[1])
                sources = ["individual"] * len(ids)
                write_vectors(folder / VECTOR_FILES[side], ids, vectors, sources, dtype=dtype)
                mean = vectors.mean(axis=0) if ids else np.zeros(vectors.shape[1])
                fallback[side] = [float(value) for value in mean]
            return Description(
                arm="",
                backbone="",
                seed=0,
                model_fingerprint=NO_MODEL,
                dimension=0,
                dtype=dtype,
                prestore="r",
                users=0,
                items=0,
                fallback=fallback,
            )

        return self.publish(fill, promote=promote)

    def upsert(self, delta: Delta, *, base: int | None = None, promote: bool = True) -> int:
        """Write a small version that lies over another.

        Args:
            delta: New and changed rows.
            base: Version to lie over; None takes the current one.

        Raises:
            StoreError: The delta does not fit the base; the served version is unchanged.
        """

        def fill(folder: Path) -> Description:
            # Here, under the lock: a version that another writer has just made is not passed over.
            below = self.open(base, verify=False)
            check_fits(delta, below)
            return write_delta(delta, below, folder)

        return self.publish(fill, promote=promote)

    def compact(self, version: int | None = None, *, promote: bool = True) -> int:
        """Write one full version of the same content as a version in layers.

        Args:
            version: Its number; None takes the current one.
            promote: Make the full version the current one.

        Returns:
            The full version's number; the given one's where it is full already.

        Raises:
            StoreError: A layer is missing or damaged; the served version is unchanged.
        """
        manifest = self.open(version).manifest
        if manifest.base is None:
            return manifest.version
        # Who promotes another version meanwhile has the last word.
        expected = self.current() if promote else None
        # Opened again under the lock, see `upsert`.
        return self.publish(
            lambda folder: write_compacted(self.open(version), folder),
            promote=promote,
            expected=expected,
        )

    def promote(self, version: int, *, expected: int | None = None) -> None:
        """Make a version the current one, after its checksums were verified and it was opened.

        Args:
            expected: Do so only if this version is current; None: whichever is.

        Raises:
            StoreError: The version is missing, damaged, or its vectors do not fit its model, or
                another version than the expected one is current; the served version is unchanged.
        """
        self._require_current(expected)
        self._promote(version, expected=expected, rollback=False)

    def rollback(self, *, expected: int | None = None) -> int:
        """Go back to the version promoted before the present one.

        Args:
            expected: Do so only if this version is current, so that a command that is sent twice
                goes back once; None: whichever is.

        Raises:
            StoreError: There is none, or it is damaged, or another version than the expected one
                is current, or becomes so meanwhile; the served version is unchanged.
        """
        self._require_current(expected)
        present = self.current()
        target = promotions.before(self.history(), present)
        if target is None:
            raise StoreError(
                "no version was promoted before the present one",
                where=str(self.root / promotions.HISTORY),
                todo=f"Name one of {self.versions()}: `reki promote N`.",
            )
        self._promote(target, expected=present, rollback=True)
        return target

    def _promote(self, version: int, *, expected: int | None, rollback: bool) -> None:
        verified = seal_of(self.layers(version))  # before: what is written meanwhile shows
        with closing(self.open(version, vectors=self.vectors)) as opened:
            require_sound(opened)
        self._point_to(version, expected=expected, rollback=rollback, seal=verified)

    def _next_number(self) -> int:
        numbers = self.versions()
        with contextlib.suppress(StoreError):  # a damaged history keeps no version from coming
            numbers += [one.version for one in self.history()]  # a deleted one's stays used
        return max(numbers, default=0) + 1

    def _build(self, scratch: Path, fill: VersionWriter, number: int) -> None:
        manifest = write_manifest(scratch, fill(scratch), number)
        below = [] if manifest.base is None else self.layers(manifest.base.version)
        require_sound(StoreVersion([(scratch, manifest), *below]))

    def _export(self, number: int) -> None:
        try:
            export_vectors(self.open(number, verify=False), self.vectors)
        except StoreError as error:
            raise StoreError(
                f"version {number} is built, but not exported and not promoted: {error.what}",
                where=error.where,
                todo=f"{error.todo} Then: `reki export --version {number}` and `reki promote "
                f"{number}`.",
            ) from error

    def _promote_built(self, number: int, expected: int | None) -> None:
        try:
            self._point_to(number, expected=expected, seal=self._seal_of_built(number))
        except StoreError as error:
            raise StoreError(
                f"version {number} is built, but not promoted: {error.what}",
                where=error.where,
                todo=f"If it is still wanted: `reki promote {number}`.",
            ) from error

    def _seal_of_built(self, number: int) -> str:
        layers = self.layers(number)
        base = layers[0][1].base  # its checksums were not compared now
        return seal_of(layers) if base is None or self._is_sealed(base.version) else ""

    def _is_sealed(self, number: int) -> bool:
        """Whether a promotion has compared the checksums of the files as they are now."""
        found = seal_of(self.layers(number))
        try:
            return any(one.seal == found for one in self.history())
        except StoreError:  # a damaged history costs time, but no version
            return False

    def _point_to(
        self, number: int, *, expected: int | None, seal: str, rollback: bool = False
    ) -> None:
        with self._pointer():
            self._require_current(expected)
            move = Promotion(version=number, at=int(time.time()), rollback=rollback, seal=seal)
            try:
                with atomic.writing(self.root / promotions.HISTORY, mode=0o644) as noted:
                    noted.write(promotions.extended(self.root, self._current_or_none(), move))
                    # On the disk before the pointer moves, so that a full disk refuses both.
                    noted.flush()
                    os.fsync(noted.fileno())
                    atomic.replace_file(self.root / CURRENT, f"{number}\n".encode(), mode=0o644)
            except OSError as error:
                self._settle(number, error)

    def _settle(self, number: int, error: OSError) -> None:
        """What became of a move of the pointer that met an error."""
        current = self._current_or_none()
        if current == number:
            _logger.warning("version %d is served, but not noted as promoted: %s", number, error)
            return
        served = "nothing is served" if current is None else f"version {current} is still served"
        raise StoreError(
            f"version {number} is not promoted, {served}: {error.strerror or error}",
            where=str(error.filename2 or error.filename or self.root / CURRENT),
            todo=f"Make room on the disk or mend the rights, then `reki promote {number}`.",
        ) from error

    def _current_or_none(self) -> int | None:
        try:
            return self.current()
        except StoreError:
            return None

    @contextmanager
    def _pointer(self) -> Iterator[None]:
        """Keep others from moving the pointer."""
        lock = FileLock(self.root / ".pointer.lock", timeout=_POINTER_SECONDS, mode=_LOCK_MODE)
        try:
            lock.acquire()
        except (Timeout, OSError) as error:
            taken = isinstance(error, Timeout)
            raise StoreError(
                "another process is moving the pointer"
                if taken
                else f"the pointer cannot be locked: {error.strerror or error}",
                where=str(self.root / CURRENT),
                todo=_UNCHANGED,
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _require_current(self, expected: int | None) -> None:
        if expected is not None and (current := self.current()) != expected:
            raise StoreError(
                f"version {current} is current, not {expected}",
                where=str(self.root / CURRENT),
                todo=_UNCHANGED,
            )


def export_vectors(
    version: StoreVersion, settings: AdapterSettings, advance: Advance = ignore_progress
) -> int:
    """Load the vectors of an opened version into LMDB or a server; does nothing the second time.

    Args:
        version: Any opened version; layers are flattened.
        settings: Where to; kind arrow needs no export.
        advance: Receives the number of vectors written since its last call.

    Returns:
        Number of vectors that are there now.

    Raises:
        ConfigError: The package of this kind is not installed.
        StoreError: The server is unreachable, or holds another store's version of this number.
    """
    total = 0
    manifest = checksum(version.folder / MANIFEST)
    for side in SIDES:
        vectors = version.stored_vectors(side)
        if vectors is not None:
            export_side(settings, version.manifest.version, side, vectors, manifest, advance)
            total += len(vectors)
    return total
