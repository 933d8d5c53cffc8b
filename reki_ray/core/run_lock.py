"""One run at a time on a workspace, also where its runs are on different hosts.

A local folder, or a mounted share, is locked by a file. An object store has no locks, but creates
an object for one of several writers: it holds who runs, and a heartbeat, whose age tells a run that
died from one at work.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from filelock import FileLock, Timeout

from reki_ray.core import atomic
from reki_ray.core.background import BackgroundThread
from reki_ray.core.formats import duration
from reki_ray.errors import ConfigError, EngineError

LOCK: Final = ".lock"

BEAT_SECONDS: Final = 10.0
STALE_SECONDS: Final = 60.0
"""Age of the heartbeat at which a run counts as dead; clocks may differ by a few seconds."""
_SETTLE_SECONDS: Final = 1.0
"""Of two runs that take over the same lock at once, the later one has won after this time."""


class Objects(Protocol):
    """What a lock needs of a remote storage, see `core.storage.Storage`."""

    @property
    def location(self) -> str:
        """Root, for messages."""

    def create(self, relative: str, content: bytes) -> bool:
        """Write a file unless it exists."""

    def read_bytes(self, relative: str) -> bytes:
        """Read a whole file."""

    def write(self, relative: str, content: bytes) -> None:
        """Write a whole file."""

    def remove(self, relative: str) -> None:
        """Remove a file."""


@contextlib.contextmanager
def lock_folder(folder: Path, location: str) -> Iterator[None]:
    """Hold the lock of a local folder for the block.

    Raises:
        ConfigError: Another process holds it.
        OSError: The folder cannot be written.
    """
    lock = FileLock(folder / LOCK)
    atomic.make_folder(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise _taken("another run is working on this workspace", location) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def lock_objects(storage: Objects) -> Iterator[Callable[[], None]]:
    """Hold the lock of a remote storage for the block.

    Yields:
        A check that raises EngineError once another run has taken the lock over.

    Raises:
        ConfigError: Another run holds it.
        EngineError: The storage refuses.
    """
    token = uuid.uuid4().hex
    if not storage.create(LOCK, _content(token)):
        _require_dead(_holder(storage), storage.location)
        storage.remove(LOCK)
        created = storage.create(LOCK, _content(token))
        time.sleep(_SETTLE_SECONDS)
        if not created or _holder(storage).get("token") != token:
            raise _taken("another run has just taken this workspace over", storage.location)

    def check() -> None:
        holder = _holder(storage)
        if holder.get("token") != token:
            raise EngineError(
                f"another run, on {holder.get('host', 'an unknown host')}, has taken this "
                f"workspace over: this one gave no heartbeat for {STALE_SECONDS:g} s",
                where=storage.location,
                todo="Let that run finish, then run again; nothing was overwritten.",
            )

    def beat() -> None:
        check()
        storage.write(LOCK, _content(token))

    beats = BackgroundThread("run-lock", beat, BEAT_SECONDS)
    beats.start()
    try:
        yield check
    finally:
        if beats.stop(STALE_SECONDS) and _holder(storage).get("token") == token:
            storage.remove(LOCK)


def _content(token: str) -> bytes:
    fields = {"host": socket.gethostname(), "pid": os.getpid(), "token": token, "beat": time.time()}
    return json.dumps(fields).encode()


def _holder(storage: Objects) -> dict[str, Any]:
    """Who holds the lock; empty if nobody does, or if it cannot be read."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        content = json.loads(storage.read_bytes(LOCK))
        return content if isinstance(content, dict) else {}
    return {}


def _require_dead(holder: dict[str, Any], location: str) -> None:
    silent = time.time() - holder.get("beat", 0.0)
    if silent > STALE_SECONDS:
        return
    host, pid = holder.get("host", "an unknown host"), holder.get("pid", 0)
    # A process id says something on its own host only.
    if host == socket.gethostname() and silent > 1.5 * BEAT_SECONDS and not process_exists(pid):
        return
    raise _taken(
        f"another run is working on this workspace: process {pid} of {host}, last heartbeat "
        f"{duration(max(silent, 0.0))} ago",
        location,
        f" If it is dead, its lock ends {STALE_SECONDS:g} s after its last heartbeat.",
    )


def process_exists(pid: int) -> bool:
    """Whether this host has a process of this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _taken(what: str, where: str, more: str = "") -> ConfigError:
    return ConfigError(
        what,
        where=where,
        todo=f"Wait for it (`reki status`), or give this run another --workspace.{more}",
    )
