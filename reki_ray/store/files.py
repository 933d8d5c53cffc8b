"""Where the files of versions are: in a folder of this machine, see also `store.remote`."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

from filelock import FileLock

from reki_ray.core import atomic
from reki_ray.errors import StoreError
from reki_ray.store import promotions
from reki_ray.store.manifest import Manifest, folder_of, layers_of, read_manifest, seal_of
from reki_ray.store.manifest import verify as verify_files
from reki_ray.store.promotions import LOCK_MODE, Pointer, VersionPointer, version_numbers

Layers = list[tuple[Path, Manifest]]
"""Folders and manifests of a version and of all that it lies over, newest first."""

_SCRATCH: Final = ".scratch-"


class StoreFiles(Protocol):
    """Files of versions, and the pointer to the one that is served."""

    root: Path
    """Local folder with the folders of versions: the store itself, or this node's copies."""
    location: str
    """Root for people and for other processes: the folder, or the URL."""
    pointer: VersionPointer

    def numbers(self) -> list[int]:
        """Numbers of the finished versions, ascending."""

    def manifest(self, version: int) -> Manifest:
        """Manifest of a version; raises StoreError."""

    def manifests(self, version: int) -> list[Manifest]:
        """Manifests of a version's layers, newest first; raises StoreError as `layers`."""

    def layers(self, version: int) -> Layers:
        """Layers of a version on the local disk.

        Raises:
            StoreError: One is missing, was changed, or does not fit the one above it.
        """

    def verify(self, version: int, *, published: bool = False) -> Layers:
        """Compare every file of every layer with its checksum.

        Args:
            published: Compare what is in the store too, where the local files are copies.

        Raises:
            DamagedError: A file is missing or damaged.
        """

    def seals(self, layers: Layers) -> Sequence[str]:
        """Seals that show, all together, that the layers' files were not written to since."""

    def is_sealed(self, seal: str) -> bool:
        """Whether the checksums of the files of this seal were compared."""

    def turn(self) -> AbstractContextManager[None]:
        """Writers of versions take turns, where they can."""

    @property
    def takes_turns(self) -> bool:
        """Whether one writer waits for another."""

    def scratch(self) -> Path:
        """New local folder to build a version in."""

    def next_number(self) -> int:
        """Number of the next version, which no other writer gets."""

    def place(self, scratch: Path, number: int) -> None:
        """Make a folder that holds a whole version the version of this number.

        Raises:
            OSError: The disk refuses.
            StoreError: The storage refuses.
        """


class LocalFiles:
    """Versions in a folder of this machine, or of a mounted share."""

    takes_turns = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)
        self.pointer: VersionPointer = Pointer(root)

    def numbers(self) -> list[int]:
        """Numbers of the folders."""
        return version_numbers(self.root)

    def manifest(self, version: int) -> Manifest:
        """That in the folder."""
        return read_manifest(folder_of(self.root, version))

    def manifests(self, version: int) -> list[Manifest]:
        """Those in the folders."""
        return [manifest for _, manifest in self.layers(version)]

    def layers(self, version: int) -> Layers:
        """The folders themselves."""
        return layers_of(self.root, version)

    def verify(self, version: int, *, published: bool = False) -> Layers:
        """Read all files; there are no copies."""
        layers = self.layers(version)
        for folder, manifest in layers:
            verify_files(folder, manifest)
        return layers

    def seals(self, layers: Layers) -> Sequence[str]:
        """One seal of all layers, as a promotion notes it."""
        return [seal_of(layers)]

    def is_sealed(self, seal: str) -> bool:
        """Whether a promotion has compared the checksums of the files of this seal."""
        try:
            return any(promotion.seal == seal for promotion in self.pointer.history())
        except StoreError:  # a damaged history costs time, but no version
            return False

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock of the folder, and remove what a killed writer left."""
        atomic.make_folder(self.root)
        with FileLock(self.root / ".lock", mode=LOCK_MODE):
            for abandoned in self.root.glob(f"{_SCRATCH}*"):
                shutil.rmtree(abandoned)
            yield

    def scratch(self) -> Path:
        """A folder on the same filesystem."""
        return Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=self.root))

    def next_number(self) -> int:
        """One more than the largest that was ever used."""
        numbers = self.numbers()
        with contextlib.suppress(StoreError):  # a damaged history keeps no version from coming
            # A deleted version's number stays used.
            numbers += [promotion.version for promotion in promotions.read(self.root)]
        return max(numbers, default=0) + 1

    def place(self, scratch: Path, number: int) -> None:
        """Rename the folder into place."""
        atomic.move(scratch, folder_of(self.root, number))
