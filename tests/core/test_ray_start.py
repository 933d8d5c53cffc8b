"""A Ray node that starts too slowly, as on a busy machine: told, and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

SESSION = """
from reki_ray.config import RayConfig
from reki_ray.errors import EngineError
from reki_ray.core.ray_cluster import ray_session

try:
    with ray_session(RayConfig(address="local", num_cpus=2)):
        raise SystemExit("the node started")
except EngineError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_raylet_that_hangs_at_its_start_is_an_engine_error() -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", SESSION], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    raylet = _raylet_of(psutil.Process(starter.pid))
    raylet.suspend()  # until Ray's own patience of 30 s ends
    stdout, stderr = starter.communicate(timeout=120)
    assert starter.returncode == 0, stderr
    assert "no Ray cluster: The current node timed out during startup" in stdout
    assert "too busy" in stdout
    psutil.wait_procs([raylet], timeout=30)
    assert not raylet.is_running()


def _raylet_of(process: psutil.Process) -> psutil.Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in process.children(recursive=True):
            if child.name() == "raylet":
                return child
        time.sleep(0.02)
    raise AssertionError("no raylet was started")
