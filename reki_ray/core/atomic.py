"""Files and folders that are whole or not there, also after a kill or a power cut.

What outlives its process is written through this module: beside its place, synced, renamed, and
the folder synced. `tests/core/test_atomic.py` lists the code that may write in another way.
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
    """Bring a file's content, or a folder's entries, to the disk.

    Raises:
        OSError: The disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network filesystems sync files alone, and order renames by themselves.
        if not (path.is_dir() and error.errno in _NO_FOLDER_SYNC):
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, and bring their entries to the disk.

    Raises:
        OSError: The disk refuses, or a file is in the way.
    """
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


@contextlib.contextmanager
def writing(path: Path, mode: int | None = None) -> Iterator[BinaryIO]:
    """Write a file so that readers see the old or the new one, never half.

    The new file takes its place when the block ends; where the block raises, the old one stays.

    Args:
        path: The file; its folder is made.
        mode: Its permissions; None leaves them to the umask.

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
    """Write a file of this content, see `writing`.

    Raises:
        OSError: The disk refuses; the old file stays.
    """
    with writing(path, mode) as file:
        file.write(content)


def create_file(path: Path, content: bytes, mode: int | None = None) -> bool:
    """Write a file, unless it is there already.

    Args:
        path: The file; its folder is made.
        content: What a new one holds.
        mode: Permissions of a new one; None leaves them to the umask.

    Returns:
        Whether it was created; of several processes that try, only one creates it.

    Raises:
        OSError: The disk refuses.
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
    """Put a finished file or folder in its place, not before all of it is on the disk.

    Args:
        scratch: On the same filesystem as its place.
        target: Its place, whose folder is made; a file there is replaced, a folder must be empty.

    Raises:
        OSError: The disk refuses, or there is a folder with content.
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
    """Remove what killed writers left in a folder; nobody may be writing there.

    Raises:
        OSError: The disk refuses.
    """
    for scratch in folder.glob(f"{_SCRATCH}*"):
        scratch.unlink(missing_ok=True)
