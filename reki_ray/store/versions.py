"""Immutable, numbered versions of everything that serving needs.

    <root>/v<number>/{manifest.json, users.arrow, items.arrow, profiles.arrow,
                      catalogue.arrow, knowledge.arrow, model/}
    <root>/CURRENT, HISTORY                see `store.promotions`

A version is built in a scratch folder, checked, and renamed into place; then the pointer
moves by a rename. A crash at any moment leaves the served version unchanged. A delta has no
model/ and names the version that it lies over, which must stay.

Writers of versions take turns by one lock; the pointer has a lock of its own, which is held for
its move alone: a promotion never waits for a version that is being built or exported.

The root may also be a URL, as `s3://bucket/demo/publish`, see `store.remote`: versions are then
uploaded, and fetched by each node that opens them.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reki_ray.config import AdapterSettings, RekiConfig
from reki_ray.core.storage import is_url
from reki_ray.core.workspace import Workspace
from reki_ray.errors import StoreError
from reki_ray.schema import SIDES, Side
from reki_ray.store import promotions
from reki_ray.store.deltas import Delta, check_fits, write_compacted, write_delta
from reki_ray.store.files import LocalFiles, StoreFiles
from reki_ray.store.hash_index import write_indexed
from reki_ray.store.manifest import (
    NO_MODEL,
    VECTOR_FILES,
    Description,
    Manifest,
    VersionWriter,
    folder_of,
    note_verified,
    seal_of,
    verified_seals,
    write_manifest,
)
from reki_ray.store.promotions import NotCurrentError, Promotion
from reki_ray.store.soundness import require_sound
from reki_ray.store.tables import TABLES
from reki_ray.store.vectors import DType, write_vectors
from reki_ray.store.version import StoreVersion, export_vectors

STORE_FOLDER: Final = "publish"
"""Folder of the versions, below a workspace."""

VectorsById = tuple[Sequence[str], npt.NDArray[Any]]
"""N distinct ids and their vectors, shape (N, q)."""

_ATTEMPTS: Final = 5
"""Times that an upsert is built again because another version was promoted meanwhile."""


class VersionStore:
    """All versions below one folder, or below a URL that every node sees.

    Args:
        root: The folder, which `publish` creates, or the URL, as `s3://bucket/demo/publish`.
        vectors: Where replicas look vectors up: what is published is exported to there, and
            nothing is promoted that is not there. None: in the versions' own files.

    Attributes:
        root: The folder; for a URL that of this node's copies.
        location: The folder, or the URL.
    """

    def __init__(self, root: Path | str, vectors: AdapterSettings | None = None) -> None:
        self._files = _files_of(root)
        self.root = self._files.root
        self.location = self._files.location
        self.vectors = vectors or AdapterSettings()
        self._pointer = self._files.pointer

    def versions(self) -> list[int]:
        """Numbers of the finished versions, ascending."""
        return self._files.numbers()

    def current(self) -> int:
        """Number of the version that is served.

        Raises:
            StoreError: Nothing is published, or the pointer is damaged.
        """
        return self._pointer.current()

    def history(self) -> list[Promotion]:
        """All promotions, oldest first.

        Raises:
            StoreError: The history is damaged or cannot be read.
        """
        return self._pointer.history()

    def folder(self, version: int) -> Path:
        """Folder of a version; for a URL that of this node's copy, once there is one."""
        return folder_of(self.root, version)

    def manifest(self, version: int) -> Manifest:
        """Manifest of a version, of which nothing else is fetched.

        Raises:
            StoreError: There is no such version, or its manifest is damaged.
        """
        return self._files.manifest(version)

    def manifests(self, version: int) -> list[Manifest]:
        """Manifests of a version and of all that it lies over, newest first; fetches nothing else.

        Raises:
            StoreError: See `layers`.
        """
        return self._files.manifests(version)

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
        layers = self._files.verify(number) if verify else self.layers(number)
        return StoreVersion(layers, vectors)

    def open_served(self, version: int | None = None) -> StoreVersion:
        """Open a version as replicas do.

        Vectors are those of `vectors`. Checksums are compared only where the files are not those
        that a promotion, or a replica before, has compared.
        """
        number = self.current() if version is None else version
        seals = self._files.seals(self.layers(number))  # before: what is written meanwhile shows
        known = all(self._files.is_sealed(s) or s in verified_seals(self.root) for s in seals)
        if self._copies and self.vectors.kind == "lmdb":  # a folder of this node, as the copies are
            self._export(number)
        opened = self.open(number, verify=not known, vectors=self.vectors)
        if not known:
            for seal in seals:
                note_verified(self.root, seal)
        return opened

    def layers(self, version: int) -> list[tuple[Path, Manifest]]:
        """Folders and manifests of a version and of all that it lies over, newest first.

        Raises:
            StoreError: One is missing, was changed, or does not fit the one above it.
        """
        return self._files.layers(version)

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
        with self._files.turn():
            before = None if self._files.takes_turns else self._current_or_none()
            scratch = self._files.scratch()
            try:
                number = self._files.next_number()
                manifest = self._build(scratch, fill, number)
                self._files.place(scratch, number)
            except OSError as error:
                raise StoreError(
                    f"the version cannot be built: {error.strerror or error}",
                    where=error.filename or str(scratch),
                    todo="Make room on the disk or mend the rights, then publish again.",
                ) from error
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            self._export(number)
            # Without turns, a delta over the current version would hide one promoted meanwhile.
            if expected is None and manifest.base is not None and manifest.base.version == before:
                expected = before
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
            for name, (schema, key) in TABLES.items():
                write_indexed(folder / name, schema.empty_table(), key)
            fallback: dict[Side, list[float]] = {}
            for side, pair in zip(SIDES, (users, items), strict=True):
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

        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(NotCurrentError):
                return self.publish(fill, promote=promote)
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
        self._pointer.require(expected)
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
        self._pointer.require(expected)
        present = self.current()
        target = promotions.before(self.history(), present)
        if target is None:
            raise StoreError(
                "no version was promoted before the present one",
                where=f"{self.location}/{promotions.HISTORY}",
                todo=f"Name one of {self.versions()}: `reki promote N`.",
            )
        self._promote(target, expected=present, rollback=True)
        return target

    def _promote(self, version: int, *, expected: int | None, rollback: bool) -> None:
        verified = seal_of(self.layers(version))  # before: what is written meanwhile shows
        if self._copies:
            self._files.verify(version, published=True)
        with closing(self.open(version, vectors=self.vectors)) as opened:
            require_sound(opened)
        self._pointer.move(version, expected=expected, rollback=rollback, seal=verified)

    @property
    def _copies(self) -> bool:
        """Whether local files are copies of what a URL holds."""
        return not self._files.takes_turns

    def _current_or_none(self) -> int | None:
        try:
            return self.current()
        except StoreError:
            return None

    def _build(self, scratch: Path, fill: VersionWriter, number: int) -> Manifest:
        manifest = write_manifest(scratch, fill(scratch), number)
        below = [] if manifest.base is None else self.layers(manifest.base.version)
        require_sound(StoreVersion([(scratch, manifest), *below]))
        return manifest

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
            layers = self.layers(number)
            # The checksums of what it lies over were not compared now.
            compared = len(layers) == 1 or self._files.is_sealed(seal_of(layers[1:]))
            seal = seal_of(layers) if compared else ""
            self._pointer.move(number, expected=expected, seal=seal)
        except StoreError as error:
            kind = NotCurrentError if isinstance(error, NotCurrentError) else StoreError
            raise kind(
                f"version {number} is built, but not promoted: {error.what}",
                where=error.where,
                todo=f"If it is still wanted: `reki promote {number}`.",
            ) from error


def store_of(config: RekiConfig, workspace: Workspace) -> VersionStore:
    """The versions of a run, whose `store.vectors` says where replicas look vectors up."""
    root = (
        workspace.path(STORE_FOLDER) if workspace.is_local else f"{workspace.root}/{STORE_FOLDER}"
    )
    return VersionStore(root, config.store.vectors.resolved())


def _files_of(root: Path | str) -> StoreFiles:
    if isinstance(root, str) and is_url(root):
        from reki_ray.store.remote import RemoteFiles  # imports fsspec

        return RemoteFiles(root)
    return LocalFiles(Path(root))
