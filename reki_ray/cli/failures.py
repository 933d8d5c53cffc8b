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
from pathlib import Path
from typing import Final

from reki_ray import __version__
from reki_ray.core.ray_cluster import cause_of, causes
from reki_ray.errors import ConfigError, DataError, EngineError, RekiError

_OURS: Final = ("reki_ray", "actors", "deployments", "benchmarks")
_MOST_CHARS: Final = 400
"""Longest message of a foreign error: some quote whole tables."""

_SYSTEM: Final = ("builtins:OSError",)
# Kinds before OSError may be OSErrors, whose numbers are not always those of the system.
# Types are named, not imported: an exception of a library that was never imported cannot occur.
_KINDS: Final[tuple[tuple[tuple[str, ...], type[RekiError], str, str], ...]] = (
    (
        ("builtins:MemoryError", "torch:OutOfMemoryError", "ray.exceptions:OutOfMemoryError"),
        EngineError,
        "out of memory",
        "Use a machine with more memory, or smaller batches; finished work is kept.",
    ),
    (
        ("builtins:ImportError",),
        ConfigError,
        "a package is missing or broken",
        "Install it into the environment of reki-ray; `reki doctor` checks the rest.",
    ),
    (
        ("ssl:SSLError",),
        EngineError,
        "an encrypted connection failed",
        "Check the address and the certificates: SSL_CERT_FILE names a file of authorities "
        "to trust.",
    ),
    (
        (
            *("httpx:HTTPError", "redis:RedisError", "aiohttp:ClientError"),
            *("botocore.exceptions:BotoCoreError", "botocore.exceptions:ClientError"),
            *("requests:RequestException", "urllib.error:URLError"),
            *("socket:gaierror", "socket:herror"),
        ),
        EngineError,
        "a service did not answer",
        "Check that it is up and can be reached, and run again.",
    ),
    (
        (
            *("builtins:EOFError", "json:JSONDecodeError", "pickle:UnpicklingError"),
            *("zipfile:BadZipFile", "zlib:error", "lzma:LZMAError", "gzip:BadGzipFile"),
            *("tarfile:TarError", "lmdb:CorruptedError", "lmdb:InvalidError"),
            *("lmdb:PageNotFoundError", "lmdb:VersionMismatchError"),
        ),
        DataError,
        "a file is damaged",
        "Restore the file from its source; `--force STAGE` writes a table of the workspace again.",
    ),
    (_SYSTEM, EngineError, "an operation of the system failed", ""),
    (
        ("builtins:UnicodeError",),
        DataError,
        "a text cannot be decoded or encoded",
        "Write the file in UTF-8.",
    ),
    (
        ("pyarrow:ArrowException",),
        DataError,
        "the data cannot be processed",
        "Correct the data; `reki --traceback COMMAND` shows where they were read.",
    ),
    (
        ("lmdb:Error",),
        EngineError,
        "a database of LMDB failed",
        "Check the free space and the rights of its folder, and run again.",
    ),
    (
        ("ray.exceptions:RayError", "ray.serve.exceptions:RayServeException"),
        EngineError,
        "the Ray cluster failed",
        "Run again: finished work is kept. If it persists, read Ray's logs below "
        "/tmp/ray/session_latest/logs.",
    ),
)

_SYSTEM_KINDS: Final[tuple[tuple[tuple[int, ...], type[RekiError], str, str], ...]] = (
    (
        (errno.ENOSPC, errno.EDQUOT),
        EngineError,
        "the disk is full",
        "Free some space and run again; finished work is kept.",
    ),
    (
        (errno.EACCES, errno.EPERM, errno.EROFS),
        EngineError,
        "no access",
        "Allow reki-ray to read and write there, or name another place: the workspace by "
        "--workspace, other files in the configuration.",
    ),
    (
        (
            *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
            *(errno.ENAMETOOLONG, errno.ELOOP),
        ),
        ConfigError,
        "a path is wrong",
        "Correct the path: the workspace by --workspace, other files in the configuration.",
    ),
)


def explain(error: Exception) -> RekiError:
    """Explain an exception so that a user can act on it; exit code 1 if its kind is unknown."""
    known = cause_of(error)
    if known is not None:
        return known
    chain = list(causes(error)) or [error]  # empty only for circles of wrappers
    for cause in chain:
        for names, kind, what, todo in _KINDS:
            types = tuple(filter(None, map(_loaded, names)))
            if not isinstance(cause, types) or _is_own_module(cause):
                continue
            if isinstance(cause, OSError) and names == _SYSTEM:
                return _explain_system(cause)
            message = _message(cause) or type(cause).__name__
            return kind(f"{what}: {message}", where=_place(cause), todo=todo)
    inner = chain[0]
    return RekiError(
        f"unexpected {type(inner).__name__}: {_message(inner)}",
        where=_place(inner),
        todo="This is a fault of reki-ray, or a state that it does not expect: please report it, "
        f"with {_traceback_file(error)}. `reki --traceback COMMAND` prints the traceback here.",
    )


def _is_own_module(error: BaseException) -> bool:
    """Whether an import of our own failed, which no package to install can fix."""
    name = (getattr(error, "name", None) or "").partition(".")[0]
    return isinstance(error, ImportError) and name in _OURS


def _explain_system(error: OSError) -> RekiError:
    path = error.filename if isinstance(error.filename, str) else None
    where = path or _place(error)
    message = _message(error.strerror or error)
    if isinstance(error, (ConnectionError, TimeoutError)):
        return EngineError(
            f"a connection failed: {message or type(error).__name__}",
            where=where,
            todo="Check that the other side is up and can be reached, and run again.",
        )
    for numbers, kind, what, todo in _SYSTEM_KINDS:
        if error.errno in numbers:
            return kind(f"{what}: {message}", where=where, todo=todo)
    return EngineError(
        f"an operation of the system failed: {message}",
        where=where,
        todo="Check the storage and the machine, and run again; finished work is kept.",
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
