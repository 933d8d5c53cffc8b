"""A served graph, and a constant, bounded load on it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import ray
from ray.util.state import list_actors

from reki_ray.config import RekiConfig

CLIENTS = 3
PAUSE_SECONDS = 0.02
"""Between two requests of a client: the load is constant, not as much as there can be."""
BODY = {"user_id": "u0", "candidates": ["m1", "m2", "m3", "unknown"]}


def make_config(root: Path, **serve: Any) -> RekiConfig:
    return RekiConfig.model_validate(
        {
            "name": "tiny",
            "workspace": str(root),
            "data": {"source": {"kind": "movielens_100k"}},
            "serve": {"port": 0, "measure_requests": 10, **serve},
            "ray": {"num_cpus": 2, "object_store_mib": 256},
        }
    )


class Load:
    """Answers to a constant load, each after at most one retry by the client.

    Args:
        url: Base address.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self.answers: list[tuple[int, dict[str, Any]]] = []
        self.retries = 0

    @contextmanager
    def running(self) -> Iterator[Load]:
        """The load for the work in the block."""
        threads = [threading.Thread(target=self._ask_on) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _ask_on(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30, trust_env=False) as client:
            while not self._stop.wait(PAUSE_SECONDS):
                answer = self._ask(client)
                if answer is None or answer.status_code >= 500:
                    self.retries += 1
                    time.sleep(0.2)  # as Retry-After would have it, but shorter
                    answer = self._ask(client)
                if answer is None:
                    self.answers.append((0, {}))
                else:
                    self.answers.append((answer.status_code, answer.json()))

    def _ask(self, client: httpx.Client) -> httpx.Response | None:
        try:
            return client.post("/v1/score", json=BODY)
        except httpx.TransportError:
            return None


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def replica_pids(deployment: str) -> list[int]:
    """Processes of a deployment's living replicas."""
    return [
        actor.pid
        for actor in list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
        if f"#{deployment}#" in (actor.name or "") and actor.pid
    ]


def kill_replica(deployment: str) -> int:
    """SIGKILL for one replica; returns its process."""
    assert ray.is_initialized()
    pid = replica_pids(deployment)[0]
    os.kill(pid, signal.SIGKILL)
    return pid
