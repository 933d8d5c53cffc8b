"""What a version's folder holds, and the manifest that says so."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reki_ray.errors import StoreError
from reki_ray.schema import Side
from reki_ray.store.hash_index import REPUBLISH, unusable
from reki_ray.store.vectors import DType

MANIFEST_FORMAT: Final = 2
"""1: sources as text, no layers, vectors h alone. 2: coded sources, layers, vectors h or r."""
MANIFEST: Final = "manifest.json"
VERIFIED: Final = "VERIFIED"
"""File beside CURRENT: seals of versions whose checksums were compared there."""
MODEL_FOLDER: Final = "model"
NO_MODEL: Final = ""
"""Fingerprint in the manifest of a version that holds vectors alone."""
RERANKER_FOLDER: Final = "reranker"
RETRIEVAL_FOLDER: Final = "retrieval"
LATER_FOLDER: Final = "later"
"""Below a compacted version's retrieval files: those of the deltas that were compacted."""
PROFILES_FILE: Final = "profiles.arrow"
CATALOGUE_FILE: Final = "catalogue.arrow"
KNOWLEDGE_FILE: Final = "knowledge.arrow"
VECTOR_FILES: Final[dict[Side, str]] = {"users": "users.arrow", "items": "items.arrow"}

MAX_LAYERS: Final = 9
"""A lookup searches every layer in turn; `reki compact` merges them."""

MUST_MATCH: Final = ("model_fingerprint", "dimension", "dtype", "prestore")
"""Fields that a delta has in common with the version that it lies over."""

_READ_ONLY: Final = 0o444
_OPEN_FOLDER: Final = 0o755

Prestore = Literal["h", "r"]


class DamagedError(StoreError):
    """A file of a version is missing, or is not the one that was published."""


class Base(BaseModel):
    """The version that a delta lies over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1, description="Its number.")
    manifest: str = Field(description="SHA-256 of its manifest.json.")


class RerankerDescription(BaseModel):
    """The reranker of a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Which one.")
    seed: int = Field(description="Seed of its training.")
    fingerprint: str = Field(description="Fingerprint of the model.")
    fallback: dict[Side, list[float]] = Field(
        description="Its augmented vectors of ids that its files do not hold; empty where they are "
        "made when served."
    )


class Description(BaseModel):
    """What the builder of a version says of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str = Field(description="Arm of the served model.")
    backbone: str = Field(description="Backbone of the served model.")
    seed: int = Field(description="Seed of the served model's training.")
    model_fingerprint: str = Field(description="Fingerprint of the served model.")
    dimension: int = Field(
        ge=0, description="Length q of the augmented vectors h; 0 where there are none."
    )
    dtype: DType = Field("float32", description="Stored type of the vectors.")
    prestore: Prestore = Field(
        "h", description="h: augmented vectors; r: representations, augmented when served."
    )
    users: int = Field(ge=0, description="Number of profiles.")
    items: int = Field(ge=0, description="Number of catalogue items.")
    fallback: dict[Side, list[float]] = Field(
        description="Stored vector of ids that a side's file does not hold; a side without is "
        "absent."
    )
    reranker: RerankerDescription | None = Field(
        None, description="What puts recommendations in order; null: nothing does."
    )
    base: Base | None = Field(None, description="Version below a delta; null for a full version.")

    @property
    def vector_lengths(self) -> dict[Side, int]:
        """Length of the stored vectors of each side that has any."""
        return {side: len(vector) for side, vector in self.fallback.items()}


class Manifest(Description):
    """A version's manifest.json."""

    format: int = MANIFEST_FORMAT
    version: int = Field(ge=1, description="Number of the version.")
    created_at: int = Field(description="Seconds since the epoch.")
    files: dict[str, str] = Field(description="SHA-256 of every file, by path.")


VersionWriter = Callable[[Path], Description]
"""Writes a version's files into the folder it is given, and describes them."""


def read_manifest(folder: Path) -> Manifest:
    """Manifest of a version.

    Raises:
        StoreError: The version is missing, its manifest is damaged, or the format is another.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError(
            "there is no such version",
            where=str(folder),
            todo="Open one that `reki publish` wrote; `reki versions` lists them.",
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    return parse_manifest(content, path)


def parse_manifest(content: bytes, where: Path | str) -> Manifest:
    """Manifest of a version from its JSON.

    Raises:
        StoreError: It is damaged, or the format is another.
    """
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise unusable(f"the manifest is damaged: {error.error_count()} errors", where) from error
    if manifest.format != MANIFEST_FORMAT:
        raise unusable(f"the version has format {manifest.format}, not {MANIFEST_FORMAT}", where)
    return manifest


def folder_of(root: Path, version: int) -> Path:
    """Folder of a version."""
    return root / f"v{version}"


def layers_of(root: Path, version: int) -> list[tuple[Path, Manifest]]:
    """Folders and manifests of a version and of all that it lies over, newest first.

    Raises:
        StoreError: One is missing, was changed, or does not fit the one above it.
    """
    layers = [_layer(root, version)]
    while (base := layers[-1][1].base) is not None:
        above, folder = layers[-1], folder_of(root, base.version)
        if not folder.is_dir():
            raise StoreError(
                f"version {base.version}, which version {above[1].version} lies over, is missing",
                where=str(folder),
                todo="Bring it back, or go to a full version: `reki promote N`.",
            )
        layers.append(_layer(root, base.version))
        _check_layer(above, layers[-1])
        if len(layers) > MAX_LAYERS:
            raise StoreError(
                f"the version has more than {MAX_LAYERS} layers",
                where=str(folder_of(root, version)),
                todo="Go to a full version: `reki promote N`.",
            )
    return layers


def retrieval_folders(layers: Sequence[tuple[Path, Manifest]]) -> list[Path]:
    """Retrieval files of a version and of its deltas, oldest first; empty for one without."""
    folders = [folder / RETRIEVAL_FOLDER for folder, _ in reversed(layers)]
    if not folders[0].is_dir():
        return []
    return [
        part
        for folder in folders
        if folder.is_dir()
        for part in (folder, *sorted(folder.glob(f"{LATER_FOLDER}/*")))
    ]


def _layer(root: Path, version: int) -> tuple[Path, Manifest]:
    folder = folder_of(root, version)
    manifest = read_manifest(folder)
    if manifest.version != version:
        raise StoreError(
            f"the manifest is that of version {manifest.version}",
            where=str(folder),
            todo="Give the folder its old name back, or publish again: `reki publish`.",
        )
    return folder, manifest


def _check_layer(above: tuple[Path, Manifest], below: tuple[Path, Manifest]) -> None:
    """Refuse a base that is not the one that a delta was made for."""
    delta, base = above[1], below[1]
    differing = [name for name in MUST_MATCH if getattr(delta, name) != getattr(base, name)]
    if delta.vector_lengths != base.vector_lengths:
        differing.append("fallback")
    assert delta.base is not None
    if differing or checksum(below[0] / MANIFEST) != delta.base.manifest:
        what = ", ".join(differing) or "its manifest"
        raise StoreError(
            f"version {base.version} is not the one that version {delta.version} was made for: "
            f"{what} differs",
            where=str(below[0]),
            todo="Bring the old one back, or go to a full version: `reki promote N`.",
        )


def write_manifest(folder: Path, description: Description, number: int) -> Manifest:
    """Write the manifest of a folder that holds all its other files; none is writable from then.

    All users may read them, whatever the umask: the service need not be who publishes.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    manifest = Manifest(
        **{name: getattr(description, name) for name in Description.model_fields},
        version=number,
        created_at=int(time.time()),
        files={path.relative_to(folder).as_posix(): checksum(path) for path in files},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for path in (*files, folder / MANIFEST):
        # Replicas map these files: one that is cut short kills every reader by SIGBUS.
        path.chmod(_READ_ONLY)
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(_OPEN_FOLDER)
    return manifest


def seal_of(layers: Sequence[tuple[Path, Manifest]]) -> str:
    """What shows that files were written to since: manifests, sizes, times of the last change.

    Who verifies a version and notes its seal spares those who find the same seal to read all
    files again. What a disk loses by itself leaves the seal unchanged; only checksums find that.

    Raises:
        StoreError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for folder, manifest in layers:
        digest.update(checksum(folder / MANIFEST).encode())
        for name in sorted(manifest.files):
            path = folder / name
            try:
                state = path.stat()
            except FileNotFoundError:
                written = "missing"
            except OSError as error:
                raise _unreadable(path, error) from error
            else:
                # ctime: a copy or an editor may set a file's mtime, but not this.
                written = str((state.st_size, state.st_ctime_ns))
            digest.update(f"{name} {written}\n".encode())
    return digest.hexdigest()


def verified_seals(root: Path) -> frozenset[str]:
    """Seals of versions below a root whose checksums a replica has compared."""
    try:
        return frozenset((root / VERIFIED).read_text(encoding="ascii").split())
    except (OSError, UnicodeDecodeError):  # costs time, but no version
        return frozenset()


def note_verified(root: Path, seal: str) -> None:
    """Spare later replicas the checksums of a version; a root that cannot be written to costs time.

    A promotion notes its seal in HISTORY. A copy of the root, as on another node, has other times
    of change and so another seal, which is not noted yet.
    """
    with contextlib.suppress(OSError), (root / VERIFIED).open("a", encoding="ascii") as file:
        file.write(f"{seal}\n")


def verify(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its checksum, which reads all of it.

    Raises:
        DamagedError: A file is missing or damaged.
    """
    for name, expected in manifest.files.items():
        path, flaw = folder / name, ""
        if not path.exists():
            flaw = "a file is missing"
        elif checksum(path) != expected:
            flaw = "the file is damaged: its checksum is not the manifest's"
        if flaw:
            raise DamagedError(flaw, where=str(path), todo=REPUBLISH)


def checksum(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        StoreError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"the file cannot be read: {error.strerror or error}",
        where=str(path),
        todo=f"Mend the disk or the rights. {REPUBLISH}",
    )
