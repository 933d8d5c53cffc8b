"""SHA-256 of files, remembered by their state: a file is read again only after it has changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from reki_ray.core import atomic
from reki_ray.core.downloads import cache_folder

_LEAST_BYTES: Final = 16 * 2**20
"""Smaller files are read as fast as their digest would be looked up."""
_SETTLED_SECONDS: Final = 2.0
"""A file may change once more within the resolution of its times."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal.

    No program can set a file's ctime back, as it can its mtime: a digest that was kept under the
    same ctime is that of the same content, also where a copy kept all other times.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be read.
    """
    state = os.stat(path)
    if state.st_size < _LEAST_BYTES:
        return _computed(path)
    key = [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    kept = _place(path)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        entry = json.loads(kept.read_text(encoding="utf-8"))
        if entry["state"] == key:
            return str(entry["sha256"])
    settled = time.time() - state.st_ctime > _SETTLED_SECONDS
    digest = _computed(path)
    if settled:
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            atomic.replace_file(kept, json.dumps({"state": key, "sha256": digest}).encode())
    return digest


def folder_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of a folder's files; hidden ones and texts about the
    folder (`.md`) do not count.

    Args:
        folder: The folder.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(_files(folder)):
        digest.update(json.dumps([str(path.relative_to(folder)), file_digest(path)]).encode())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Files at any depth, also of linked folders; a link back to a folder above is not followed."""
    above = {str(folder): frozenset({os.path.realpath(folder)})}
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        real = {name: os.path.realpath(Path(place, name)) for name in folders}
        known = above.pop(place)
        folders[:] = [
            name for name in folders if not name.startswith(".") and real[name] not in known
        ]
        above |= {os.path.join(place, name): known | {real[name]} for name in folders}
        for path in (Path(place, name) for name in names):
            if path.is_file() and not path.name.startswith(".") and path.suffix != ".md":
                yield path


def _raise(error: OSError) -> None:
    raise error


def _computed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(path: Path) -> Path:
    name = hashlib.sha256(os.path.realpath(path).encode(errors="surrogateescape")).hexdigest()
    return cache_folder() / "digests" / f"{name}.json"
