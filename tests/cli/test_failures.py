"""No exception leaves a command: each ends in a message that says what to do, and an exit code."""

from __future__ import annotations

import errno
import gzip
import json
import lzma
import os
import re
import socket
import ssl
import sys
import types
import urllib.error
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import lmdb
import pyarrow as pa
import pytest
import ray.exceptions
import redis
import typer
import yaml
from typer.testing import CliRunner

from reki_ray.cli import failures, main
from reki_ray.errors import ConfigError, DataError, EngineError, StoreError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/part-0.parquet")
DENIED = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/ws")


def of_worker(cause: Exception) -> Exception:
    """As `ray.get` raises what a task raised."""
    wrapped = ray.exceptions.RayTaskError("task", "Traceback of the worker", cause)
    found: Exception = wrapped.as_instanceof_cause()
    return found


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def circle() -> Exception:
    error = KeyError("round")
    return caused(error, caused(ValueError("and"), error))


class MuteError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("mute")


def uncertified() -> Exception:
    return ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")


def undecodable() -> Exception:
    try:
        b"\xff".decode()
    except UnicodeDecodeError as error:
        return error
    raise AssertionError


FAILURES: Final[list[tuple[Exception, int, str]]] = [
    (ConfigError("no such key", where="a.yaml", todo="Correct it."), 2, "no such key"),
    (DataError("no rows", where="a.csv", todo="Add some."), 3, "no rows"),
    (EngineError("no engine", where="here", todo="Start one."), 4, "no engine"),
    (StoreError("no version", where="v1", todo="Publish."), 3, "no version"),
    (FULL, 4, "Free some space"),
    (DENIED, 4, "/data/ws"),
    (OSError(errno.EROFS, os.strerror(errno.EROFS), "/ro/ws"), 4, "/ro/ws"),
    (OSError(errno.EIO, os.strerror(errno.EIO)), 4, "Check the storage"),
    (OSError("no number"), 4, "no number"),
    (NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "/file/ws"), 2, "/file/ws"),
    (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/gone"), 2, "/gone"),
    (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 4, "Connection refused"),
    (TimeoutError(), 4, "TimeoutError"),
    (ImportError("Install s3fs to access S3"), 2, "Install s3fs"),
    (ModuleNotFoundError("No module named 'lmdb'", name="lmdb"), 2, "lmdb"),
    (MemoryError(), 4, "out of memory"),
    (undecodable(), 3, "UTF-8"),
    (EOFError(), 3, "damaged"),
    (zipfile.BadZipFile("not a zip"), 3, "not a zip"),
    (json.JSONDecodeError("broken", "{", 0), 3, "broken"),
    (pa.ArrowInvalid("bad column"), 3, "bad column"),
    (pa.ArrowNotImplementedError("no cast"), 3, "no cast"),
    (pa.lib.ArrowMemoryError("malloc"), 4, "malloc"),
    (httpx.ReadTimeout(""), 4, "ReadTimeout"),
    (redis.RedisError("READONLY"), 4, "READONLY"),
    (ray.exceptions.GetTimeoutError("too slow"), 4, "too slow"),
    (ray.exceptions.OutOfMemoryError("node"), 4, "out of memory"),
    (of_worker(DataError("bad row", where="r", todo="Mend.")), 3, "bad row"),
    (of_worker(FULL), 4, "Free some space"),
    (of_worker(ZeroDivisionError("in a task")), 1, "unexpected ZeroDivisionError: in a task"),
    (Exception("The current node timed out"), 1, "unexpected Exception: The current node"),
    (KeyError("rows"), 1, "unexpected KeyError: 'rows'"),
    (RecursionError("too deep"), 1, "unexpected RecursionError"),
    (ImportError("no name", name="reki_ray.store"), 1, "unexpected ImportError"),
    (ExceptionGroup("g", [KeyError("a"), ExceptionGroup("h", [FULL])]), 4, "Free some space"),
    (
        ExceptionGroup("g", [KeyError("a"), DataError("no rows", where="f", todo="Add.")]),
        3,
        "no rows",
    ),
    (ExceptionGroup("g", [KeyError("a")]), 1, "unexpected KeyError"),
    (of_worker(ExceptionGroup("g", [FULL])), 4, "Free some space"),
    (caused(RuntimeError("cannot write"), FULL), 4, "Free some space"),
    (caused(RuntimeError("a"), caused(RuntimeError("b"), MemoryError())), 4, "out of memory"),
    (circle(), 1, "unexpected KeyError: 'round'"),
    (MuteError(), 1, "unexpected MuteError: a message that cannot be shown (RuntimeError)"),
    (uncertified(), 4, "SSL_CERT_FILE"),
    (urllib.error.URLError(uncertified()), 4, "a service did not answer"),
    (socket.herror(1, "Unknown host"), 4, "a service did not answer"),
    (lzma.LZMAError("Corrupt input data"), 3, "Restore the file"),
    (gzip.BadGzipFile("Not a gzipped file"), 3, "Restore the file"),
    (lmdb.DiskError("x: No space left on device"), 4, "No space left"),
    (lmdb.CorruptedError("x"), 3, "Restore the file"),
]


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands of the command line, with Typer's record of each."""

    def below(app: typer.Typer, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for info in app.registered_commands:
            assert info.callback is not None
            name = info.name or info.callback.__name__.replace("_", "-")
            yield (*path, name), info
        for group in app.registered_groups:
            assert group.typer_instance is not None
            name = group.name if isinstance(group.name, str) else ""
            yield from below(group.typer_instance, (*path, name) if name else path)

    yield from below(main.app, ())


COMMANDS: Final = dict(commands())


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main.app, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes every command raise an error, whatever its options."""

    def inject(error: BaseException) -> None:
        def command() -> None:
            raise error

        for name, info in COMMANDS.items():
            monkeypatch.setattr(info, "callback", command)
            monkeypatch.setattr(info, "name", name[-1])

    return inject


def test_the_list_of_commands_is_that_of_the_help() -> None:
    _, shown, _ = run("--help")
    assert {name for name, *_ in COMMANDS} == set(re.findall(r"^│ ([a-z][a-z-]*)  ", shown, re.M))
    assert ("experiment", "stop") in COMMANDS


@pytest.mark.parametrize(
    ("error", "code", "said"), FAILURES, ids=[f"{type(e).__name__}-{s}" for e, _, s in FAILURES]
)
def test_every_failure_of_every_command_is_a_message_and_an_exit_code(
    fails: Callable[[BaseException], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fails(error)
    for name in COMMANDS:
        found, stdout, stderr = run(*name)
        assert found == code, (name, stderr)
        assert said in stderr
        assert "  where: " in stderr
        assert "  what to do: " in stderr
        assert "Traceback" not in stderr
        assert not stdout
    logs = [path.read_text(encoding="utf-8") for path in tmp_path.glob("reki-*.log")]
    assert len(logs) == (len(COMMANDS) if code == 1 else 0)
    assert all("Traceback" in log for log in logs)


def test_a_fault_names_its_file_and_the_flag_that_shows_the_traceback(
    fails: Callable[[BaseException], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fails(ZeroDivisionError("none left"))
    code, _, stderr = run("status")
    [log] = tmp_path.glob("reki-*.log")
    assert code == 1
    assert f"the traceback in {log}." in stderr
    assert log.stat().st_mode & 0o077 == 0
    assert "raise error" in log.read_text(encoding="utf-8")
    code, _, stderr = run("--traceback", "status")
    assert code == 1
    assert "Traceback (most recent call last)" in stderr
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    code, _, stderr = run("status")
    assert code == 1
    assert "please report it, with its traceback" in stderr


def test_an_interrupt_is_told_and_leaves_with_130(fails: Callable[[BaseException], None]) -> None:
    fails(KeyboardInterrupt())
    assert run("status")[::2] == (130, "reki: interrupted; the same command resumes the work\n")


def test_control_characters_of_data_do_not_reach_the_terminal(
    fails: Callable[[BaseException], None],
) -> None:
    fails(DataError("no column\x1b[2J\x00", where="a\x9b.csv", todo="Name\none."))
    _, _, stderr = run("status")
    assert stderr == (
        "reki: no column\\x1b[2J\\x00\n  where: a\\x9b.csv\n  what to do: Name\none.\n"
    )


def test_wrong_use_stays_typers(fails: Callable[[BaseException], None]) -> None:
    fails(AssertionError())
    code, _, stderr = run("status", "--nonsense")
    assert code == 2
    assert "No such option" in stderr


def test_a_library_that_is_not_installed_is_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("botocore.exceptions")
    module.BotoCoreError = type("BotoCoreError", (Exception,), {})  # type: ignore[attr-defined]
    error = module.BotoCoreError("Unable to locate credentials")
    assert failures.explain(error).exit_code == 1
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert failures.explain(error).exit_code == 4


def test_the_place_is_the_innermost_one_of_our_own_code() -> None:
    assert failures.explain(RuntimeError("elsewhere")).where == "in builtins"
    with pytest.raises(AttributeError) as raised:
        failures._loaded(None)  # type: ignore[arg-type]
    assert re.fullmatch(
        r"reki_ray/cli/failures\.py:\d+, _loaded", failures.explain(raised.value).where
    )


# --- real commands over broken surroundings -----------------------------------------------------

ARGUMENTS: Final[dict[tuple[str, ...], list[str]]] = {
    ("sweep",): ["--vary", "cluster.users.min_cluster_size=3,4"],
    ("import-knowledge",): ["knowledge.json"],
    ("promote",): ["1"],
    ("experiment", "start"): ["first", "base=1:0.5", "reki=2:0.5"],
    ("publish",): ["--arm", "fair_base", "--no-promote"],
}
"""What commands need beside a configuration."""

ON_A_RUN: Final = [name for name in COMMANDS if name[0] not in ("doctor", "bench", "launch")]


def below_a_file(root: Path) -> str:
    (root / "file").write_text("")
    return str(root / "file" / "ws")


def on_s3(root: Path) -> str:
    return "nosuchscheme://bucket/ws"


def read_only(root: Path) -> str:
    return "/proc/reki-ws"


def damaged(root: Path) -> str:
    (root / "ws").mkdir()
    (root / "ws" / "manifest.json").write_bytes(b"\x80\x81 not JSON")
    return str(root / "ws")


def of_another_kind(root: Path) -> str:
    (root / "ws").mkdir()
    (root / "ws" / "manifest.json").write_text("[]")
    return str(root / "ws")


def of_the_future(root: Path) -> str:
    (root / "ws").mkdir()
    stages = {"ingest": {"fingerprint": "f", "invented": 1}}
    (root / "ws" / "manifest.json").write_text(json.dumps({"format": 1, "stages": stages}))
    return str(root / "ws")


def a_file(root: Path) -> str:
    (root / "ws").write_text("")
    return str(root / "ws")


@pytest.mark.parametrize(
    "broken", [below_a_file, on_s3, read_only, damaged, of_another_kind, of_the_future, a_file]
)
@pytest.mark.parametrize("name", ON_A_RUN, ids="-".join)
def test_a_broken_workspace_is_told_by_every_command(
    name: tuple[str, ...],
    broken: Callable[[Path], str],
    tiny_config: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # no command gets so far as to need it
    tree = {**tiny_config().model_dump(mode="json"), "workspace": broken(tmp_path)}
    Path("run.yaml").write_text(yaml.safe_dump(tree))
    Path("knowledge.json").write_text('{"m1": "A film."}')
    code, stdout, stderr = run(*name, *ARGUMENTS.get(name, []), "-c", "run.yaml")
    if name == ("versions",) and code == 0:  # none are published, which is no failure
        return
    assert code in {2, 3, 4}, stdout + stderr
    assert "  what to do: " in stderr
    assert "Traceback" not in stdout + stderr
