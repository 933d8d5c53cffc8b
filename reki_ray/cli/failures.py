"""Messages and exit codes of exceptions that reach the command line.

`RekiError`s already say what to do. Other failures of the machine, the data or the cluster get a
message here; the rest are faults of reki-ray, whose traceback goes to a file.
"""

from __future__ import annotations

import errno
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from reki_ray import __version__
from reki_ray.core.ray_cluster import cause_of, causes
from reki_ray.errors import ConfigError, DataError, EngineError, RekiError

_OURS: Final = ("reki_ray", "actors", "deployments", "benchmarks")
_WRONG_PATH: Final = (
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP),
)
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_MOST_CHARS: Final = 400
"""Longest message of a foreign error: some quote whole tables."""


def explain(error: Exception) -> RekiError:
    """Explain an exception so that a user can act on it; exit code 1 if its kind is unknown."""
    known = cause_of(error)
    if known is not None:
        return known
    chain = list(causes(error)) or [error]  # empty only for circles of wrappers
    for cause in chain:
        for kinds, explanation in _KINDS:
            if any(isinstance(cause, kind) for kind in map(_loaded, kinds) if kind is not None):
                explained = explanation(cause)
                if explained is not None:
                    return explained
    inner = chain[0]
    return RekiError(
        f"unexpected {type(inner).__name__}: {_message(inner)}",
        where=_place(inner),
        todo="This is a fault of reki-ray, or a state that it does not expect: please report it, "
        f"with {_traceback_file(error)}. `reki --traceback COMMAND` prints the traceback here.",
    )


# --- kinds -------------------------------------------------------------------------------------


def _memory(error: BaseException) -> RekiError:
    return EngineError(
        f"out of memory: {_message(error)}",
        where=_place(error),
        todo="Use a machine with more memory, or smaller batches; finished work is kept.",
    )


def _package(error: BaseException) -> RekiError | None:
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if name in _OURS:
        return None  # our own module
    return ConfigError(
        f"a package is missing or broken: {_message(error)}",
        where=_place(error),
        todo="Install it into the environment of reki-ray; `reki doctor` checks the rest.",
    )


def _system(error: BaseException) -> RekiError:
    assert isinstance(error, OSError)
    path = error.filename if isinstance(error.filename, str) else None
    where = path or _place(error)
    message = _message(error.strerror or error)
    if isinstance(error, (ConnectionError, TimeoutError)):
        return EngineError(
            f"a connection failed: {message or type(error).__name__}",
            where=where,
            todo="Check that the other side is up and can be reached, and run again.",
        )
    if error.errno in _NO_SPACE:
        return EngineError(
            f"the disk is full: {message}",
            where=where,
            todo="Free some space and run again; finished work is kept.",
        )
    if error.errno in _NOT_WRITABLE:
        return EngineError(
            f"no access: {message}",
            where=where,
            todo="Allow reki-ray to read and write there, or name another place: the workspace by "
            "--workspace, other files in the configuration.",
        )
    if error.errno in _WRONG_PATH:
        return ConfigError(
            f"a path is wrong: {message}",
            where=where,
            todo="Correct the path: the workspace by --workspace, other files in the "
            "configuration.",
        )
    return EngineError(
        f"an operation of the system failed: {message}",
        where=where,
        todo="Check the storage and the machine, and run again; finished work is kept.",
    )


def _text(error: BaseException) -> RekiError:
    return DataError(
        f"a text cannot be decoded or encoded: {_message(error)}",
        where=_place(error),
        todo="Write the file in UTF-8.",
    )


def _truncated(error: BaseException) -> RekiError:
    return DataError(
        f"a file is damaged: {_message(error) or 'it ends too early'}",
        where=_place(error),
        todo="Restore the file from its source; a table of the workspace is written again by "
        "`--force STAGE`.",
    )


def _table(error: BaseException) -> RekiError:
    return DataError(
        f"the data cannot be processed: {_message(error)}",
        where=_place(error),
        todo="Correct the data; `reki --traceback COMMAND` shows where they were read.",
    )


def _network(error: BaseException) -> RekiError:
    return EngineError(
        f"a service did not answer: {_message(error) or type(error).__name__}",
        where=_place(error),
        todo="Check that it is up and can be reached, and run again.",
    )


def _encrypted(error: BaseException) -> RekiError:
    return EngineError(
        f"an encrypted connection failed: {_message(error)}",
        where=_place(error),
        todo="Check the address and the certificates: SSL_CERT_FILE names a file of authorities "
        "to trust.",
    )


def _database(error: BaseException) -> RekiError:
    return EngineError(
        f"a database of LMDB failed: {_message(error)}",
        where=_place(error),
        todo="Check the free space and the rights of its folder, and run again.",
    )


def _ray(error: BaseException) -> RekiError:
    return EngineError(
        f"the Ray cluster failed: {_message(error)}",
        where=_place(error),
        todo="Run again: finished work is kept. If it persists, read Ray's logs below "
        "/tmp/ray/session_latest/logs.",
    )


# Kinds before OSError may be OSErrors, whose numbers are not always those of the system.
# Types are named, not imported: an exception of a library that was never imported cannot occur.
_KINDS: Final[tuple[tuple[tuple[str, ...], Callable[[BaseException], RekiError | None]], ...]] = (
    (
        ("builtins:MemoryError", "torch:OutOfMemoryError", "ray.exceptions:OutOfMemoryError"),
        _memory,
    ),
    (("builtins:ImportError",), _package),
    (("ssl:SSLError",), _encrypted),
    (
        (
            *("httpx:HTTPError", "redis:RedisError", "aiohttp:ClientError"),
            *("botocore.exceptions:BotoCoreError", "botocore.exceptions:ClientError"),
            *("requests:RequestException", "urllib.error:URLError"),
            *("socket:gaierror", "socket:herror"),
        ),
        _network,
    ),
    (
        (
            *("builtins:EOFError", "json:JSONDecodeError", "pickle:UnpicklingError"),
            *("zipfile:BadZipFile", "zlib:error", "lzma:LZMAError", "gzip:BadGzipFile"),
            *("tarfile:TarError", "lmdb:CorruptedError", "lmdb:InvalidError"),
            *("lmdb:PageNotFoundError", "lmdb:VersionMismatchError"),
        ),
        _truncated,
    ),
    (("builtins:OSError",), _system),
    (("builtins:UnicodeError",), _text),
    (("pyarrow:ArrowException",), _table),
    (("lmdb:Error",), _database),
    (("ray.exceptions:RayError", "ray.serve.exceptions:RayServeException"), _ray),
)


def _loaded(path: str) -> type[BaseException] | None:
    module, _, name = path.partition(":")
    loaded: type[BaseException] | None = getattr(sys.modules.get(module), name, None)
    return loaded


def _message(error: object) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception as failure:  # noqa: BLE001  # the error's own __str__ may fail
        text = f"a message that cannot be shown ({type(failure).__name__})"
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}..."


def _place(error: BaseException) -> str:
    """Innermost line of our own code, as `reki_ray/stages/publish.py:120, publish_version`."""
    root = Path(__file__).resolve().parents[2]
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if any(Path(frame.filename).is_relative_to(root / name) for name in _OURS)
    ]
    if not frames:
        return f"in {type(error).__module__}"
    frame = frames[-1]
    return f"{Path(frame.filename).relative_to(root)}:{frame.lineno}, {frame.name}"


def _traceback_file(error: BaseException) -> str:
    """Write the traceback to a temporary file, and name it."""
    lines = [
        f"reki-ray {__version__}, Python {platform.python_version()}, {platform.platform()}\n",
        f"$ {shlex.join(sys.argv)}\n",
        *traceback.format_exception(error),
    ]
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            encoding="utf-8",
            errors="backslashreplace",
            prefix="reki-",
            suffix=".log",
            delete=False,
        ) as file:
            file.writelines(lines)
    except OSError:  # as on a full disk
        return "its traceback"
    return f"the traceback in {file.name}"
