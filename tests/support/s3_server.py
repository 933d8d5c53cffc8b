"""A real S3 server on this machine, and a proxy before it that fails as networks do."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import fsspec
import pytest

Fault = Literal["none", "slow", "403", "503", "torn", "cut"]
"""`torn`: the server gets half of the body; `cut`: it does the work, and its answer is lost."""

BUCKET = "bucket"
SLOW_SECONDS = 1.0


@contextmanager
def s3_server() -> Iterator[str]:
    """Run an S3 server with an empty bucket; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            assert server.poll() is None, "the S3 server does not start"
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


class FaultProxy(ThreadingHTTPServer):
    """Passes requests on; `fault` decides for each what happens to it.

    Args:
        upstream: Address of the server behind.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream.removeprefix("http://")
        self.fault: Callable[[str, str], Fault] = lambda method, path: "none"
        self.requests: list[tuple[str, str, Fault]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """Address of the proxy."""
        return f"http://127.0.0.1:{self.server_port}"

    def fail(self, times: int, fault: Fault, method: str = "PUT", path: str = "") -> None:
        """Let the next requests of this method and part of a path fail."""
        left = [times]

        def decide(given: str, target: str) -> Fault:
            if given == method and path in target and left[0] > 0:
                left[0] -= 1
                return fault
            return "none"

        self.fault = decide


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def _pass_on(self) -> None:
        fault = self.server.fault(self.command, self.path)
        self.server.requests.append((self.command, self.path, fault))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        if fault in ("403", "503"):
            code = "AccessDenied" if fault == "403" else "SlowDown"
            error = f"<Error><Code>{code}</Code></Error>".encode()
            self._answer(int(fault), [], b"" if self.command == "HEAD" else error)
            return
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders()
        if fault == "torn":
            upstream.send(body[: len(body) // 2])
            upstream.close()
            self._hang_up()
            return
        if body:
            upstream.send(body)
        response = upstream.getresponse()
        content = response.read()
        if fault == "cut":
            self._hang_up()
            return
        headers = [(k, v) for k, v in response.getheaders() if k.lower() not in _OWN]
        length = response.getheader("Content-Length") if self.command == "HEAD" else None
        self._answer(response.status, headers, content, length)
        upstream.close()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on  # noqa: N815

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, length: str | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


_OWN = {"content-length", "connection", "transfer-encoding", "date", "server"}


def use(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Make this process, and those that it starts, use the server; creates the bucket."""
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    filesystem = fsspec.filesystem("s3", use_listings_cache=False)
    if not filesystem.exists(BUCKET):
        filesystem.mkdir(BUCKET)
    assert os.environ["AWS_ENDPOINT_URL"] == address
