"""SHA-256 of files, cached until the file changes."""

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
"""For smaller files, reading is as fast as a cache lookup."""
_SETTLED_SECONDS: Final = 2.0
"""A file may change again within the resolution of its times."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal.

    Unlike its mtime, no program can set a file's ctime back: the cached digest of the same ctime
    is that of the same content.

    Raises:
        OSError: It cannot be read.
    """
    state = os.stat(path)
    if state.st_size < _LEAST_BYTES:
        return _computed(path)
    key = [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    name = hashlib.sha256(os.path.realpath(path).encode(errors="surrogateescape")).hexdigest()
    cached = cache_folder() / "digests" / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        entry = json.loads(cached.read_text(encoding="utf-8"))
        if entry["state"] == key:
            return str(entry["sha256"])
    settled = time.time() - state.st_ctime > _SETTLED_SECONDS
    digest = _computed(path)
    if settled:
        with contextlib.suppress(OSError):  # an unwritable cache only costs time
            atomic.replace_file(cached, json.dumps({"state": key, "sha256": digest}).encode())
    return digest


def folder_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of a folder's files, without hidden and `.md` files."""
    digest = hashlib.sha256()
    for path in sorted(_files(folder)):
        digest.update(json.dumps([str(path.relative_to(folder)), file_digest(path)]).encode())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Files at any depth, also of linked folders, except for links to a parent folder."""
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
