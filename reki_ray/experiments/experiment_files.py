"""The small files of experiments, beside CURRENT: in a folder, or below a URL."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

from filelock import FileLock

from reki_ray.core import atomic
from reki_ray.core.storage import Storage, is_url

_LOCK: Final = ".experiment.lock"


class ExperimentFiles(Protocol):
    """Files by name."""

    root: Path | str

    def read(self, name: str) -> bytes:
        """Content; raises FileNotFoundError, OSError or EngineError."""

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file."""

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""

    def lock(self) -> AbstractContextManager[object]:
        """Keep others from changing the files during a block."""


class _LocalFiles:
    def __init__(self, root: Path) -> None:
        self.root: Path | str = root
        self._folder = root

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        # The service may run as another user than the one who starts an experiment.
        atomic.replace_file(self._folder / name, content, mode=0o644)

    def remove(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)
        atomic.sync(self._folder)

    def lock(self) -> AbstractContextManager[object]:
        return FileLock(self._folder / _LOCK)


class _RemoteFiles:
    def __init__(self, url: str) -> None:
        self.root: Path | str = url
        self._storage = Storage(url)

    def read(self, name: str) -> bytes:
        return self._storage.read_bytes(name)

    def write(self, name: str, content: bytes) -> None:
        self._storage.write(name, content)

    def remove(self, name: str) -> None:
        self._storage.remove(name)

    def lock(self) -> AbstractContextManager[object]:
        return self._storage.lock()


def open_files(root: Path | str) -> ExperimentFiles:
    """Files in a folder of versions, or below its URL."""
    if isinstance(root, str) and is_url(root):
        return _RemoteFiles(root)
    return _LocalFiles(Path(root))
