"""A real redis-server on a free port, for tests."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis


@dataclass(frozen=True)
class RedisServer:
    """A running server.

    Attributes:
        url: Its address.
        process: The process, to be killed by tests of failures.
    """

    url: str
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def redis_server(folder: Path, password: str = "") -> Iterator[RedisServer]:
    """A server with a temporary folder; it is stopped at the end of the block.

    Args:
        folder: Its working folder.
        password: What it asks of its clients; empty asks for none. The URL does not hold it.
    """
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        pytest.fail(
            "these tests need a real server: install the package redis-server or valkey-server",
            pytrace=False,
        )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--requirepass", password] if password else []
    process = subprocess.Popen(
        [*command, "--save", "", "--appendonly", "no"], stdout=subprocess.DEVNULL
    )
    try:
        _wait(port, process, password)
        yield RedisServer(f"redis://127.0.0.1:{port}/0", process)
    finally:
        process.kill()
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], password: str) -> None:
    with redis.Redis(port=port, password=password or None) as client:
        for _ in range(600):
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                return
            assert process.poll() is None, "redis-server has stopped"
            time.sleep(0.05)
    pytest.fail("redis-server does not answer")
