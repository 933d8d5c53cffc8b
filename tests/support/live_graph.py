"""A served graph in processes of its own, whose replicas a test may stop and kill."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from reki_ray.config import RekiConfig

WAIT_SECONDS = 120.0
"""For what is to happen on a machine that is busy with other work."""

PATIENCE = {
    # Of Serve with its proxy, while it starts: seconds are too few on a busy machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
REPLICA = re.compile(r"ray::ServeReplica:reki:(\w+)")


def make_config(root: Path, **serve: Any) -> RekiConfig:
    """Configuration of a graph over the versions below `root`, without tokens and rate limit."""
    edge = {"allow_anonymous": True, "request_logs": False, "rate_per_second": None}
    return RekiConfig.model_validate(
        {
            "name": "live",
            "workspace": str(root),
            "data": {"source": {"kind": "movielens_100k"}},
            "serve": {"port": 0, "edge": edge, "timeout_seconds": 10, **serve},
            # Claims, not cores: replicas of two generations at once have to fit in.
            "ray": {"address": "local", "num_cpus": 8, "object_store_mib": 128},
        }
    )


class LiveGraph:
    """A graph that a process of its own serves.

    Args:
        process: Runs `tests.support.live_driver`.
        config: What it is to serve.
    """

    def __init__(self, process: subprocess.Popen[str], config: RekiConfig) -> None:
        self._process = process
        self._root = psutil.Process(process.pid)
        self.metrics_url = ""
        self.url = self.update(config)

    def update(self, config: RekiConfig) -> str:
        """Serve a configuration from now on; returns the base URL.

        Raises:
            RuntimeError: The graph does not come up with it.
        """
        answer = self._tell(config.model_dump_json())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        self.metrics_url = answer.get("metrics", self.metrics_url)
        return str(answer["url"])

    def is_healthy(self) -> bool:
        """Whether every deployment has all its replicas."""
        return bool(self._tell("")["healthy"])

    def _tell(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        for answer in self._process.stdout:
            if answer.startswith("{"):  # Ray talks on standard output too
                return dict(json.loads(answer))
        raise RuntimeError("the driver has ended; its standard error tells why")

    def client(self, **options: Any) -> httpx.Client:
        """A client of the graph."""
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, **options)

    def replicas(self, part: str | None = None) -> list[psutil.Process]:
        """Processes of the replicas of a deployment; of all, where none is named."""
        found = []
        for process in self._root.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                title = REPLICA.match((process.cmdline() or [""])[0])
                if title and part in (None, title[1]):
                    found.append(process)
        return found

    @contextlib.contextmanager
    def stopped(self, part: str) -> Iterator[None]:
        """Hold all replicas of a deployment for the work in the block, as a disk that hangs."""
        held = self.replicas(part)
        assert held
        try:
            for process in held:
                process.send_signal(signal.SIGSTOP)
            yield
        finally:
            for process in held:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)

    def kill(self, part: str, count: int = 1) -> Callable[[], None]:
        """SIGKILL for replicas of a deployment.

        Returns:
            Waits until others serve in their place.
        """
        before = self.replicas(part)
        assert len(before) >= count
        for process in before[:count]:
            process.kill()

        def wait_for_others() -> None:
            wait_until(lambda: len(set(self.replicas(part)) - set(before)) >= count)
            wait_until(self.is_healthy)

        return wait_for_others

    def processes(self) -> list[psutil.Process]:
        """All that was started for the graph."""
        return [self._root, *self._root.children(recursive=True)]


@contextlib.contextmanager
def running(config: RekiConfig) -> Iterator[LiveGraph]:
    """A graph for the work in the block; nothing of it is left afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.live_driver"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **PATIENCE},
    )
    started = [psutil.Process(process.pid)]
    try:
        graph = LiveGraph(process, config)
        yield graph
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            started += started[0].children(recursive=True)
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(WAIT_SECONDS)
        for one in psutil.wait_procs(started, timeout=10)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def wait_until(condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Look again and again until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)
