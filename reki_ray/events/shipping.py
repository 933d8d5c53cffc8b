"""Ships logs between nodes whose gateways share no folder.

    <workspace>/online/<log>/<segment>/<offset>.jsonl     a chunk: bytes of a segment from an offset
    <workspace>/online/nodes/<node>.json                  how far a node has shipped its segments
    <workspace>/online/key                                key of the hashes of user ids

A gateway appends to segments in a folder of its node, and its answer waits for that disk alone. One
process of each node ships what was appended, as chunks that are written once and never change, and
brings the chunks of other nodes, as segments of the same names and content. So every reader finds
in its folder what a reader of a shared folder would.

The bytes of a segment are shipped once: a chunk is created by a conditional put, and who finds one
at an offset goes on behind it. A segment's name says which node it is of; what a process left when
it died, the next one of its node ships.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from reki_ray.core import atomic
from reki_ray.core.background import BackgroundThread
from reki_ray.core.storage import Storage
from reki_ray.errors import StoreError
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.segments import MAX_LINE_BYTES, SEGMENT_SECONDS, SUFFIX, prune

LOGS: Final = ("events", "exposures")
SHIP_SECONDS: Final = 0.5
"""Time between two steps: what a lost disk costs, as long as the storage answers."""
CHUNK_BYTES: Final = 2 * MAX_LINE_BYTES
"""Most bytes of a chunk, which holds whole lines."""

_NODES: Final = "nodes"
_KEY: Final = "key"
_NODE: Final = "node"
_LOCK: Final = ".shipping.lock"
_KEY_BYTES: Final = 32
_CLOSE_SECONDS: Final = 1.0
_TURN_SECONDS: Final = 0.2
_TIDY_SECONDS: Final = 3_600.0
_TRANSFERS: Final = 8
_SEPARATOR: Final = "~"

Lengths = dict[str, dict[str, int]]
"""Shipped bytes of each segment, by log."""


class Shipping:
    """Keeps a node's folder and the storage alike; of a node's processes one does, others wait.

    Does nothing where all nodes share the folder.

    Args:
        seconds: Time between two steps.
    """

    def __init__(self, folders: OnlineFolders, seconds: float = SHIP_SECONDS) -> None:
        self._folders = folders
        self._storage = folders.storage
        self._lock = FileLock(folders.root / _LOCK, thread_local=False)
        self._turn = threading.Lock()
        self._holds = False
        self._ended = False
        self._node = ""
        self._shipped: Lengths = {log: {} for log in LOGS}
        self._noted: Lengths | None = None
        self._brought: Lengths = {log: {} for log in LOGS}
        self._seen: dict[str, str] = {}
        self._theirs: dict[str, Lengths] = {}
        self._tidied_at = time.monotonic()
        self._thread = BackgroundThread("ship-events", self.step, seconds)

    def start(self) -> None:
        """Ship and bring in the background."""
        if self._storage is not None:
            self._thread.start()

    def stop(self, seconds: float = 0.0) -> None:
        """Stop, and let another process of this node go on."""
        self._ended = True  # a step that takes longer releases the lock at its end
        self._thread.stop(seconds)
        if self._turn.acquire(timeout=_TURN_SECONDS):
            try:
                self._release()
            finally:
                self._turn.release()

    def close(self) -> None:
        """Ship what is left, and stop; what cannot be shipped now, the next process ships."""
        try:
            if self._thread.stop(_CLOSE_SECONDS):
                self.step()
        finally:
            self.stop()

    def step(self) -> bool:
        """Ship what is new here, and bring what is new elsewhere.

        Returns:
            Whether it did: false where another process of this node does.

        Raises:
            EngineError: The storage refuses.
            OSError: The disk refuses.
        """
        if self._storage is None:
            return False
        with self._turn:
            try:
                if not self._holds and not self._acquire():
                    return False
                for log in LOGS:
                    self._ship(self._storage, log)
                self._note(self._storage)
                self._bring(self._storage)
                if time.monotonic() - self._tidied_at > _TIDY_SECONDS:
                    self._tidy(self._storage)
                return True
            finally:
                if self._ended:
                    self._release()

    # --- one process of a node ---------------------------------------------------------------

    def _acquire(self) -> bool:
        atomic.make_folder(self._folders.root)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        self._holds = True
        self._node = node_name(self._folders)
        # What another process did meanwhile is found anew.
        self._shipped = {log: {} for log in LOGS}
        self._brought = {log: {} for log in LOGS}
        self._noted = None
        self._seen, self._theirs = {}, {}
        return True

    def _release(self) -> None:
        if self._holds:
            self._holds = False
            self._lock.release()

    # --- to the storage ----------------------------------------------------------------------

    def _ship(self, storage: Storage, log: str) -> None:
        shipped = self._shipped[log]
        if self._noted is None and not shipped:
            shipped.update(_lengths(storage, f"{_NODES}/{self._node}.json")[log])
        for path in self._segments(log):
            if not _is_of(path.stem, self._node):
                continue
            while chunk := _whole_lines(path, shipped.get(path.stem, 0)):
                offset = shipped.get(path.stem, 0)
                name = _chunk_path(log, path.stem, offset)
                if storage.create(name, chunk):
                    shipped[path.stem] = offset + len(chunk)
                else:  # an earlier process shipped it, and died before it was noted
                    shipped[path.stem] = offset + len(storage.read_bytes(name))

    def _note(self, storage: Storage) -> None:
        if self._shipped != self._noted:
            content = json.dumps(self._shipped).encode()
            storage.write(f"{_NODES}/{self._node}.json", content)
            self._noted = {log: dict(lengths) for log, lengths in self._shipped.items()}

    # --- from the storage --------------------------------------------------------------------

    def _bring(self, storage: Storage) -> None:
        for name, state in _listed_nodes(storage):
            if name == f"{self._node}.json" or (state and self._seen.get(name) == state):
                continue
            self._theirs[name] = _lengths(storage, f"{_NODES}/{name}")
            missing = [
                (log, segment, length)
                for log, lengths in self._theirs[name].items()
                for segment, length in lengths.items()
                if length > self._brought[log].get(segment, 0)
            ]
            with ThreadPoolExecutor(_TRANSFERS) as pool:
                list(pool.map(lambda each: self._bring_segment(storage, *each), missing))
            self._seen[name] = state  # last: what failed is tried again

    def _bring_segment(self, storage: Storage, log: str, segment: str, length: int) -> None:
        brought = self._brought[log]
        path = self._folders.root / log / f"{segment}{SUFFIX}"
        if segment not in brought:
            has = path.stat().st_size if path.exists() else 0
            brought[segment] = _boundary(storage, log, segment, has) if has else 0
        offset = brought[segment]
        if offset >= length:
            return
        with contextlib.ExitStack() as stack:
            descriptor: int | None = None
            while offset < length:
                try:
                    chunk = storage.read_bytes(_chunk_path(log, segment, offset))
                except FileNotFoundError:  # pruned
                    break
                if descriptor is None:
                    atomic.make_folder(path.parent)
                    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
                    stack.callback(os.close, descriptor)
                _write_at(descriptor, chunk, offset)
                offset += len(chunk)
            if descriptor is not None:
                os.fsync(descriptor)
        brought[segment] = offset

    # --- what is no longer needed ------------------------------------------------------------

    def _tidy(self, storage: Storage) -> None:
        """Remove old segments of which the storage has no chunk any more: they were pruned."""
        for log in LOGS:
            kept = set(_names(storage, log))
            for path in self._segments(log):
                own = _is_of(path.stem, self._node)
                done = (self._shipped if own else self._brought)[log].get(path.stem, 0)
                state = path.stat()
                old = time.time() - state.st_mtime > 2 * SEGMENT_SECONDS
                if path.stem not in kept and old and done >= state.st_size > 0:
                    path.unlink(missing_ok=True)
            for segment in [s for s in self._shipped[log] if s not in kept]:
                if not (self._folders.root / log / f"{segment}{SUFFIX}").exists():
                    del self._shipped[log][segment]
        self._tidied_at = time.monotonic()

    def _segments(self, log: str) -> list[Path]:
        return sorted((self._folders.root / log).glob(f"*{SUFFIX}"))


def writer_name(folders: OnlineFolders, process: str) -> str:
    """Name of a process as a writer of segments, with its node's where nodes share no folder."""
    if folders.storage is None:
        return process
    return f"{process}{_SEPARATOR}{node_name(folders)}"


def node_name(folders: OnlineFolders) -> str:
    """Name of this node, which its folder keeps; without the folder it is another node.

    Raises:
        OSError: The disk refuses.
    """
    path = folders.root / _NODE
    if not path.exists():
        atomic.make_folder(folders.root)
        atomic.create_file(path, uuid.uuid4().hex[:12].encode())
    return path.read_text(encoding="ascii").strip()


def share_key(folders: OnlineFolders) -> None:
    """Have the key of the user hashes that all nodes share, in the file of this node.

    Raises:
        StoreError: The storage or the disk refuses.
    """
    storage = folders.storage
    if storage is None or folders.key.exists():
        return
    try:
        storage.create(_KEY, secrets.token_hex(_KEY_BYTES).encode("ascii"))
        atomic.make_folder(folders.root)
        atomic.create_file(folders.key, storage.read_bytes(_KEY), mode=0o600)
    except OSError as error:
        raise StoreError(
            f"the key of the user hashes cannot be kept: {error.strerror or error}",
            where=str(folders.key),
            todo="Check the permissions and the free disk space, or set REKI_STATE.",
        ) from error


def bring_once(folders: OnlineFolders) -> None:
    """Ship and bring once, for a command that reads the logs.

    Where another process of this node does it all the time, nothing is left to do.

    Raises:
        EngineError: The storage refuses.
    """
    shipping = Shipping(folders)
    try:
        shipping.step()
    finally:
        shipping.stop()


def not_brought(folders: OnlineFolders, log: str, names: Collection[str]) -> list[str]:
    """Those of some segments that the storage has, but this node does not have yet."""
    if folders.storage is None:
        return []
    missing = [name for name in names if not (folders.root / log / name).exists()]
    there = {f"{segment}{SUFFIX}" for segment in _names(folders.storage, log)} if missing else set()
    return [name for name in missing if name in there]


def prune_log(
    folders: OnlineFolders, log: str, place: Mapping[str, int] | None, older_than: float
) -> int:
    """Remove old segments, and what was shipped of them, see `segments.prune`.

    Raises:
        EngineError: The storage refuses.
    """
    folder = folders.root / log
    before = {path.stem for path in folder.glob(f"*{SUFFIX}")}
    removed = prune(folder, place, older_than)
    if folders.storage is not None:
        for segment in before - {path.stem for path in folder.glob(f"*{SUFFIX}")}:
            folders.storage.remove(f"{log}/{segment}")
    return removed


def _is_of(segment: str, node: str) -> bool:
    writer = segment.rpartition("-")[0]
    return writer.rpartition(_SEPARATOR)[2] == node


def _whole_lines(path: Path, offset: int) -> bytes:
    """The next chunk of a segment; empty if there is no whole line more."""
    with path.open("rb") as file:
        file.seek(offset)
        chunk = file.read(CHUNK_BYTES)
    return chunk[: chunk.rfind(b"\n") + 1]


def _write_at(descriptor: int, chunk: bytes, offset: int) -> None:
    view = memoryview(chunk)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _boundary(storage: Storage, log: str, segment: str, size: int) -> int:
    """Offset of the chunk that the death of a process may have cut off in a local file."""
    names = _names(storage, f"{log}/{segment}")
    offsets = [int(name.removesuffix(SUFFIX)) for name in names if name.endswith(SUFFIX)]
    return max((offset for offset in offsets if offset < size), default=0)


def _chunk_path(log: str, segment: str, offset: int) -> str:
    return f"{log}/{segment}/{offset:015d}{SUFFIX}"


def _lengths(storage: Storage, path: str) -> Lengths:
    content: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        content = json.loads(storage.read_bytes(path))
    return {log: dict(content.get(log, {})) for log in LOGS}


def _listed_nodes(storage: Storage) -> Iterator[tuple[str, str]]:
    """Name of each node's note, and what shows that it changed; empty if that is unknown."""
    for info in _entries(storage, _NODES):
        keys = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created")
        state = next((str(info[key]) for key in keys if info.get(key)), "")
        yield str(info["name"]).rpartition("/")[2], state


def _names(storage: Storage, folder: str) -> list[str]:
    return [str(info["name"]).rstrip("/").rpartition("/")[2] for info in _entries(storage, folder)]


def _entries(storage: Storage, folder: str) -> list[dict[str, Any]]:
    with storage.guarded("read"):
        try:
            found: list[dict[str, Any]] = storage.filesystem.ls(storage.path(folder), detail=True)
        except FileNotFoundError:
            return []
    return found
