"""Files that are whole or not there, also after a power cut."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk.

    Raises:
        OSError: The disk refuses.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file so that a reader sees the old or the new one, never half.

    Args:
        path: The file; its folder is made.
        content: What it holds from now on.
        mode: Rights, less those that the umask takes; by default only its owner reads it.

    Raises:
        OSError: The disk refuses; the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _written(path, content, mode)
    try:
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    sync_folder(path.parent)


def create_file(path: Path, content: bytes) -> bool:
    """Write a file that only its owner may read, unless it is there already.

    Args:
        path: The file; its folder is made.
        content: What a new one holds.

    Returns:
        Whether it was created; of several processes that try, only one creates it.

    Raises:
        OSError: The disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _written(path, content, 0o600)
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    finally:
        scratch.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def _written(path: Path, content: bytes, mode: int) -> Path:
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    return scratch
