"""Files of a workspace, local or on any fsspec filesystem, with errors that say what to do."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow.fs as pafs

from reki_ray.core import atomic, ray_metrics
from reki_ray.core.run_lock import lock_folder, lock_objects
from reki_ray.core.strict_json import strict_json
from reki_ray.errors import ConfigError, DataError, EngineError, RekiError


def is_url(root: str) -> bool:
    """Whether a root is the URL of a storage that is not this machine's own filesystem."""
    return "://" in root and not root.startswith(("file://", "local://"))


class Storage:
    """A folder, local or on any fsspec filesystem, see `Workspace`."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root).rstrip("/")
        try:
            # A cached listing would hide what other nodes have written since.
            self.filesystem, base = fsspec.core.url_to_fs(self.root, use_listings_cache=False)
        except (ImportError, ValueError, TypeError, OSError, RuntimeError) as error:
            raise ConfigError(
                f"the workspace cannot be opened: {error}",
                where=self.root,
                todo="Install the extra of its kind (`pip install 'reki-ray[s3]'`, also gs and "
                "abfs), or set `workspace` to a folder or a URL that fsspec knows.",
            ) from error
        self._base = base.rstrip("/")
        self._check_lock: Callable[[], None] = _not_locked

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's own filesystem."""
        protocol = self.filesystem.protocol
        return "file" in (protocol if isinstance(protocol, tuple) else (protocol,))

    @property
    def location(self) -> str:
        """Root for other processes: an absolute path, or the URL."""
        return os.path.abspath(self._base) if self.is_local else self.root

    @property
    def arrow_filesystem(self) -> pafs.FileSystem:
        """The filesystem for pyarrow and Ray Data."""
        if self.is_local:
            return pafs.LocalFileSystem()
        return pafs.PyFileSystem(pafs.FSSpecHandler(self.filesystem))

    def path(self, *parts: str) -> str:
        """Path below the root, as the filesystem expects it."""
        return "/".join([self._base, *parts])

    def local_path(self, *parts: str) -> Path:
        """Path below a local root.

        Raises:
            ConfigError: The root is remote.
        """
        if not self.is_local:
            raise ConfigError(
                "this needs a workspace on the local disk",
                where=self.root,
                todo="Copy the workspace to this machine, or set `workspace` to a local folder.",
            )
        return Path(self.path(*parts))

    def exists(self, *parts: str) -> bool:
        """Whether there is a file or folder of this path."""
        with self.guarded("read"):
            return bool(self.filesystem.exists(self.path(*parts)))

    @contextlib.contextmanager
    def writing(self, *parts: str) -> Iterator[BinaryIO]:
        """Open a file for writing that replaces the old one when the block ends, see `atomic`.

        Raises:
            OSError: The disk refuses; the old file stays.
        """
        target = self.path(*parts)
        if self.is_local:
            with atomic.writing(Path(target)) as file:
                yield file
            return
        # An object store's put is atomic, but closing a half-written stream would put that half.
        with tempfile.TemporaryDirectory() as folder:
            with Path(folder, "file").open("wb") as file:
                yield file
            self.filesystem.put_file(f"{folder}/file", target)

    def write_json(self, relative: str, content: Any) -> None:
        """Write a JSON document atomically."""
        self.write_text(relative, strict_json(content, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, relative: str, content: str) -> None:
        """Write a text document atomically."""
        self.write(relative, content.encode())

    def write(self, relative: str, content: bytes) -> None:
        """Write a file atomically."""
        with self.guarded("written"), self.writing(relative) as sink:
            sink.write(content)

    def read_bytes(self, relative: str) -> bytes:
        """Read a whole file.

        Raises:
            FileNotFoundError: There is none.
        """
        with self.guarded("read"):
            content: bytes = self.filesystem.cat_file(self.path(relative))
        return content

    def read_json(self, relative: str) -> Any:
        """Read a JSON document.

        Raises:
            DataError: It is missing or damaged.
        """
        try:
            return json.loads(self.read_bytes(relative))
        except FileNotFoundError as error:
            raise DataError(
                "the document does not exist",
                where=self.path(relative),
                todo=f"Run `reki {relative.partition('/')[0].removesuffix('.json')}` first.",
            ) from error
        except ValueError as error:
            raise DataError(
                f"the document is damaged: {error}",
                where=self.path(relative),
                todo="Delete it and run the stage that writes it again.",
            ) from error

    def create(self, relative: str, content: bytes) -> bool:
        """Write a file unless it exists, and return whether this call created it.

        Of several processes on any nodes exactly one creates it, if the contents differ.
        """
        target = self.path(relative)
        with self.guarded("written"):
            if self.is_local:
                atomic.make_folder(Path(target).parent)
                return atomic.create_file(Path(target), content)
            try:
                self.filesystem.pipe_file(target, content, mode="create")
            except FileExistsError:
                # A put whose answer was lost is sent again, and then finds its own object.
                return bool(self.filesystem.cat_file(target) == content)
            return True

    def move(self, source: str, target: str) -> None:
        """Move a file or folder of this filesystem, as `path` writes them.

        An object store copies object by object: until this returns, a reader finds a part of them.
        """
        with self.guarded("written"):
            if self.is_local:
                atomic.move(Path(source), Path(target))
                return
            objects = self.filesystem.find(source)
            if not objects:  # an empty folder is no object
                return
            targets = [target + name.removeprefix(source) for name in objects]
            self.filesystem.copy(objects, targets)
            self.filesystem.rm(source, recursive=True)

    def remove(self, relative: str) -> None:
        """Remove a file or folder if it exists; an empty path removes the root."""
        target = self.path(relative) if relative else self._base
        with self.guarded("written"):
            if self.filesystem.exists(target):
                self.filesystem.rm(target, recursive=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second run out of this workspace, on whatever host it is.

        Raises:
            ConfigError: Another run is at work here.
            EngineError: The workspace cannot be written.
        """
        if self.is_local:
            with contextlib.ExitStack() as stack:
                with self.guarded("written"):
                    stack.enter_context(lock_folder(Path(self._base), self.location))
                yield
            return
        with lock_objects(self) as check:
            self._check_lock = check
            try:
                yield
            finally:
                self._check_lock = _not_locked

    @contextlib.contextmanager
    def guarded(self, action: str) -> Iterator[None]:
        """Turn errors of the storage into an `EngineError`.

        While it is `read` (not `written`), `FileNotFoundError` passes unchanged.
        """
        try:
            yield
        except Exception as error:
            known = (RekiError, FileNotFoundError) if action == "read" else RekiError
            # Remote filesystems raise errors of their own libraries.
            if isinstance(error, known) or (self.is_local and not isinstance(error, OSError)):
                raise
            ray_metrics.count("reki_storage_errors", action=action)
            raise EngineError(
                f"the workspace cannot be {action}: {str(error) or type(error).__name__}",
                where=self.location,
                todo="Free some space, check the rights of this folder or the access to its "
                "storage, or give another --workspace.",
            ) from error


def _not_locked() -> None:
    """What a storage without a lock checks."""
