"""A real Prometheus and its promtool, installed or unpacked from Debian's package."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from reki_ray.core.downloads import cache_folder

PACKAGE_SECONDS = 120


def program(name: str) -> str:
    """Path of `prometheus` or `promtool`; skips the test where there is none."""
    found = shutil.which(name)
    if found is not None:
        return found
    folder = cache_folder() / "prometheus"
    binary = folder / "usr/bin" / name
    if not binary.exists():
        _unpack(folder)
    return str(binary)


def _unpack(folder: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip("needs Prometheus on the PATH, or Debian's apt-get and dpkg to unpack it")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            ["apt-get", "download", "prometheus"],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=PACKAGE_SECONDS,
        )
        (package, *_) = folder.glob("prometheus_*.deb")
        subprocess.run(["dpkg", "-x", package, folder], check=True, capture_output=True)
    except (subprocess.SubprocessError, ValueError) as error:
        pytest.skip(f"needs Prometheus on the PATH; apt-get cannot download it either: {error}")


class Prometheus:
    """Client of a running Prometheus."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=f"{url}/api/v1", timeout=30, trust_env=False)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Samples of an expression; AssertionError with Prometheus' message if it is refused."""
        answer = self._client.get("/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        return list(answer["data"]["result"])

    def get(self, path: str) -> Any:
        return self._client.get(path).json()["data"]


@contextlib.contextmanager
def prometheus(config: Path, folder: Path) -> Iterator[Prometheus]:
    """A server with a configuration, which keeps its data in a folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            program("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=(folder.parent / "prometheus.log").open("w"),
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/-/ready", trust_env=False).is_success:
                    break
            assert process.poll() is None, (folder.parent / "prometheus.log").read_text()
            time.sleep(0.1)
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait()
