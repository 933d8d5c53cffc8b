"""Immutable, numbered versions of everything that serving needs.

    <root>/v<number>/{manifest.json, users.arrow, items.arrow, profiles.arrow,
                      catalogue.arrow, knowledge.arrow, model/}
    <root>/CURRENT                         number of the version that is served

A version is built in a scratch folder, checked, and renamed into place; then the pointer
moves by a rename. A crash at any moment leaves the old version in force.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reki_ray.errors import StoreError
from reki_ray.schema import Side
from reki_ray.store.contents import Catalogue, Knowledge, KnowledgeEntry, Profile, Profiles
from reki_ray.store.index import REPUBLISH
from reki_ray.store.vectors import DType, VectorTable

if TYPE_CHECKING:  # torch is slow to import, and the lookup does without it
    from reki_ray.models.bundle import ModelBundle
    from reki_ray.models.scoring import CandidateScorer

MANIFEST_FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
CURRENT: Final = "CURRENT"
MODEL_FOLDER: Final = "model"
PROFILES_FILE: Final = "profiles.arrow"
CATALOGUE_FILE: Final = "catalogue.arrow"
KNOWLEDGE_FILE: Final = "knowledge.arrow"
VECTOR_FILES: Final[dict[Side, str]] = {"users": "users.arrow", "items": "items.arrow"}

_SCRATCH: Final = ".scratch-"


class Description(BaseModel):
    """What the builder of a version says of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str = Field(description="Arm of the served model.")
    backbone: str = Field(description="Backbone of the served model.")
    seed: int = Field(description="Seed of the served model's training.")
    model_fingerprint: str = Field(description="Fingerprint of the served model.")
    dimension: int = Field(ge=0, description="Length of the vectors; 0 where there are none.")
    dtype: DType = Field("float32", description="Stored type of the vectors.")
    users: int = Field(ge=0, description="Number of profiles.")
    items: int = Field(ge=0, description="Number of catalogue items.")
    fallback: dict[Side, list[float]] = Field(
        description="Vector of ids that a side's file does not hold; a side without is absent."
    )


class Manifest(Description):
    """A version's manifest.json."""

    format: int = MANIFEST_FORMAT
    version: int = Field(ge=1, description="Number of the version.")
    created_at: int = Field(description="Seconds since the epoch.")
    files: dict[str, str] = Field(description="SHA-256 of every file, by path.")


Fill = Callable[[Path], Description]
"""Writes a version's files into the folder it is given, and describes them."""


class StoreVersion:
    """One version, opened: memory-mapped files, safe to share between threads.

    Args:
        folder: The version's folder.
        manifest: Its manifest.

    Raises:
        StoreError: A file is missing or damaged, or the vectors do not fit the manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.profiles = Profiles(folder / PROFILES_FILE)
        self.catalogue = Catalogue(folder / CATALOGUE_FILE)
        self._knowledge = Knowledge(folder / KNOWLEDGE_FILE)
        self.users = self._open_vectors("users")
        self.items = self._open_vectors("items")

    @property
    def name(self) -> str:
        """As `v3`."""
        return f"v{self.manifest.version}"

    def profile(self, user_id: str) -> Profile | None:
        """Attributes and latest interactions of a user; None where the user is unknown."""
        return self.profiles.get(user_id)

    def knowledge(self, side: Side, subject_id: str) -> list[KnowledgeEntry]:
        """The text behind the vector of an id; empty where there is none."""
        return self._knowledge.of(side, subject_id)

    def cluster_of(self, side: Side, subject_id: str) -> str | None:
        """Cluster whose knowledge an id shares; None where it has its own or none."""
        return self._knowledge.cluster_of(side, subject_id)

    def load_model(self) -> ModelBundle:
        """The model that the vectors were computed with.

        Raises:
            StoreError: The model's fingerprint is not the manifest's.
        """
        from reki_ray.models import bundle  # noqa: PLC0415  # see TYPE_CHECKING above

        loaded = bundle.load(self.folder / MODEL_FOLDER)
        if loaded.fingerprint != self.manifest.model_fingerprint:
            raise StoreError(
                f"the vectors belong to model {self.manifest.model_fingerprint[:12]}, the folder "
                f"holds model {loaded.fingerprint[:12]}",
                where=str(self.folder / MODEL_FOLDER),
                todo=REPUBLISH,
            )
        return loaded

    def load_scorer(self) -> CandidateScorer:
        """The model over this version's catalogue and item vectors.

        Raises:
            StoreError: The model's fingerprint is not the manifest's, or the vectors do not fit.
        """
        from reki_ray.models.scoring import CandidateScorer  # noqa: PLC0415  # see TYPE_CHECKING

        ids = self.catalogue.ids
        return CandidateScorer(
            self.load_model(),
            ids,
            self.catalogue.attributes,
            None if self.items is None else self.items.lookup(ids)[0],
            None if self.items is None else self.items.fallback,
        )

    def _open_vectors(self, side: Side) -> VectorTable | None:
        fallback = self.manifest.fallback.get(side)
        if fallback is None:
            return None
        path = self.folder / VECTOR_FILES[side]
        table = VectorTable(path, np.array(fallback, dtype=np.float32))
        if table.dimension != self.manifest.dimension:
            raise StoreError(
                f"the vectors have length {table.dimension}, the manifest says "
                f"{self.manifest.dimension}",
                where=str(path),
                todo=REPUBLISH,
            )
        return table


class VersionStore:
    """All versions below one folder on the local disk.

    Args:
        root: The folder; `publish` creates it.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def versions(self) -> list[int]:
        """Numbers of the finished versions, ascending."""
        if not self.root.is_dir():
            return []
        names = (entry.name for entry in self.root.iterdir() if entry.is_dir())
        return sorted(int(n[1:]) for n in names if n[:1] == "v" and n[1:].isdecimal())

    def current(self) -> int:
        """Number of the version that is served.

        Raises:
            StoreError: Nothing is published, or the pointer is damaged.
        """
        pointer = self.root / CURRENT
        try:
            return int(pointer.read_text(encoding="ascii"))
        except FileNotFoundError as error:
            raise StoreError(
                "nothing is published", where=str(self.root), todo="Run `reki publish` first."
            ) from error
        except ValueError as error:
            raise StoreError(
                "the pointer holds no version number",
                where=str(pointer),
                todo=f"Write the number of one of {self.versions()} into it.",
            ) from error

    def folder(self, version: int) -> Path:
        """Folder of a version."""
        return self.root / f"v{version}"

    def open(self, version: int | None = None, *, verify: bool = True) -> StoreVersion:
        """Open a version.

        Args:
            version: Its number; None opens the current one.
            verify: Compare every file with its checksum.

        Raises:
            StoreError: The version is missing, damaged, or its parts do not fit together.
        """
        number = self.current() if version is None else version
        folder = self.folder(number)
        manifest = _read_manifest(folder)
        if manifest.version != number:
            raise StoreError(
                f"the manifest is that of version {manifest.version}",
                where=str(folder),
                todo=REPUBLISH,
            )
        if verify:
            _verify(folder, manifest)
        return StoreVersion(folder, manifest)

    def publish(self, fill: Fill) -> int:
        """Build a version and make it the current one.

        Args:
            fill: Writes the version's files into a folder, and describes them.

        Returns:
            The new version's number.

        Raises:
            StoreError: What was built does not open; the old version stays in force.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".lock"):
            for abandoned in self.root.glob(f"{_SCRATCH}*"):  # of a publish that was killed
                shutil.rmtree(abandoned)
            scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=self.root))
            try:
                number = max(self.versions(), default=0) + 1
                self._build(scratch, fill, number)
                scratch.chmod(0o755)  # mkdtemp's folders are closed to other users
                scratch.rename(self.folder(number))
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            self._point_to(number)
        return number

    def _build(self, scratch: Path, fill: Fill, number: int) -> None:
        description = fill(scratch)
        files = [path for path in sorted(scratch.rglob("*")) if path.is_file()]
        manifest = Manifest(
            **description.model_dump(),
            version=number,
            created_at=int(time.time()),
            files={path.relative_to(scratch).as_posix(): _checksum(path) for path in files},
        )
        (scratch / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        StoreVersion(scratch, manifest).load_model()
        for path in (*files, scratch / MANIFEST):
            _sync(path)

    def _point_to(self, number: int) -> None:
        scratch = self.root / f"{CURRENT}.tmp"
        scratch.write_text(f"{number}\n", encoding="ascii")
        _sync(scratch)
        scratch.replace(self.root / CURRENT)
        _sync(self.root)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(
            "there is no such version",
            where=str(folder),
            todo="Open one that `reki publish` wrote.",
        ) from error
    except ValidationError as error:
        raise StoreError(
            f"the manifest is damaged: {error.error_count()} errors",
            where=str(path),
            todo=REPUBLISH,
        ) from error
    if manifest.format != MANIFEST_FORMAT:
        raise StoreError(
            f"the version has format {manifest.format}, not {MANIFEST_FORMAT}",
            where=str(path),
            todo=REPUBLISH,
        )
    return manifest


def _verify(folder: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise StoreError("a file is missing", where=str(path), todo=REPUBLISH)
        if _checksum(path) != expected:
            raise StoreError(
                "the file is damaged: its checksum is not the manifest's",
                where=str(path),
                todo=REPUBLISH,
            )


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Bring a file or folder to the disk, so that the rename after it never outruns it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
