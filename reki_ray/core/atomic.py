"""Atomic writes of files and folders, safe against a kill or a power cut.

All persistent files are written through this module: to a scratch file beside the target, synced,
renamed, and the folder synced. `tests/core/test_atomic.py` lists the exceptions.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

_SCRATCH: Final = ".tmp-"
_NO_FOLDER_SYNC: Final = {errno.EINVAL, errno.ENOTSUP}


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network filesystems cannot sync folders, and order renames by themselves.
        if not (path.is_dir() and error.errno in _NO_FOLDER_SYNC):
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, and sync their entries."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


@contextlib.contextmanager
def writing(path: Path, mode: int | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces the old one when the block ends without an error.

    Its folder is created; without `mode` its permissions follow the umask.

    Raises:
        OSError: The disk refuses; the old file stays.
    """
    make_folder(path.parent)
    scratch = path.with_name(f"{_SCRATCH}{uuid.uuid4().hex}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            yield file
        move(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a file of this content, see `writing`."""
    with writing(path, mode) as file:
        file.write(content)


def create_file(path: Path, content: bytes, mode: int | None = None) -> bool:
    """Write a file unless it exists, and return whether this call created it.

    Of several processes, exactly one creates it. See `writing`.
    """
    scratch = path.with_name(f"{_SCRATCH}{uuid.uuid4().hex}")
    replace_file(scratch, content, mode)
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    finally:
        scratch.unlink(missing_ok=True)
    sync(path.parent)
    return True


def move(scratch: Path, target: Path) -> None:
    """Sync a finished file or folder, and move it into place on the same filesystem.

    An existing file is replaced; an existing folder must be empty.

    Raises:
        OSError: The disk refuses, or the target is a folder with content.
    """
    for folder, _, names in os.walk(scratch):
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))
    if scratch.is_file():
        sync(scratch)
    make_folder(target.parent)
    scratch.replace(target)
    sync(target.parent)


def remove_scratch(folder: Path) -> None:
    """Remove the scratch files of killed writers; there must be no active writer."""
    for scratch in folder.glob(f"{_SCRATCH}*"):
        scratch.unlink(missing_ok=True)
