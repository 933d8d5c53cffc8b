"""The Ray cluster of a run: which addresses are joined, and what is said where none can be."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest
import ray

from reki_ray.config import RayConfig
from reki_ray.core import ray_cluster
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import cluster_address, ray_session
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError
from reki_ray.stages import pipeline
from tests.conftest import TinyConfig


@pytest.mark.parametrize(
    ("named", "variable", "address"),
    [
        ("", None, "local"),
        ("", "10.0.0.7:6379", "10.0.0.7:6379"),
        ("local", "10.0.0.7:6379", "local"),
        ("auto", None, "auto"),
        ("[fd00::7]:6379", None, "[fd00::7]:6379"),
    ],
)
def test_the_configuration_goes_before_the_variable(
    named: str, variable: str | None, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert cluster_address(RayConfig(address=named)) == address


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "anyscale://x"])
def test_a_ray_client_is_refused_before_the_first_stage(
    address: str,
    tiny_config: TinyConfig,
    workspace: Workspace,
    reporter: Reporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(EngineError, match="is not a cluster that a run can join") as caught:
        pipeline.run_stages(tiny_config(), pipeline.select(until="cluster"), reporter)
    assert caught.value.where == f"RAY_ADDRESS = {address}"
    assert "auto" in caught.value.todo
    assert not workspace.exists()


@pytest.mark.parametrize(
    ("family", "host", "written"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1:{}"),
        (socket.AF_INET, "127.0.0.1", "localhost:{}"),
        (socket.AF_INET6, "::1", "[::1]:{}"),
    ],
)
def test_an_address_that_listens_is_found(
    family: socket.AddressFamily, host: str, written: str
) -> None:
    with socket.create_server((host, 0), family=family) as listener:
        address = written.format(listener.getsockname()[1])
        ray_cluster._probe(address)
    with pytest.raises(OSError, match="refused"):
        ray_cluster._probe(address)


@pytest.mark.parametrize("address", ["local", "auto", "::1", "fd00::7", "head"])
def test_what_names_no_port_is_left_to_ray(address: str) -> None:
    ray_cluster._probe(address)


@pytest.mark.parametrize(
    "error",
    [
        Exception("The current node timed out during startup."),
        RuntimeError("no session folder"),
        ConnectionError("no GCS"),
        AssertionError(),
    ],
)
def test_whatever_ray_raises_at_its_start_is_an_engine_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(EngineError, match="no Ray cluster: ") as caught,
        ray_session(RayConfig(address="local")),
    ):
        pass
    assert caught.value.where == "ray.address = local"
    assert "/tmp/ray/session_latest/logs" in caught.value.todo
    assert caught.value.what.removeprefix("no Ray cluster: ")


def test_a_cluster_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a crash: the file of the last `ray start` names it still."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    services = "ray._private.services.get_ray_address_from_environment"
    monkeypatch.setattr(services, lambda *_: "127.0.0.1:1")
    with (
        pytest.raises(EngineError, match="Connection refused") as caught,
        ray_session(RayConfig(address="auto")),
    ):
        pass
    assert re.fullmatch(r"ray.address = auto, [0-9.]+:1", caught.value.where)


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "[::1]:1")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(EngineError, match="Connection refused") as caught,
        ray_session(RayConfig()),
    ):
        pass
    assert caught.value.where == "RAY_ADDRESS = [::1]:1"
    assert "ray start --head" in caught.value.todo


def test_a_program_that_imported_ray_before_is_served_as_well() -> None:
    script = (
        "import os, ray\n"
        "from reki_ray.core.ray_cluster import set_environment\n"
        "set_environment()\n"
        "print(os.environ.get('RAY_AUTH_MODE'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "None"  # Ray decided at its import
