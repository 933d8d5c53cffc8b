"""Starts the graph on this cluster, waits until it is ready, and stops it.

The graph is only known by its import path, so that another application with the same HTTP contract
can replace it (`serve.app`).
"""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx

from deployments.ingress import set_ingress
from deployments.middleware.auth import required_tokens
from reki_ray.config import RekiConfig, ServeConfig
from reki_ray.config.serve import GraphSettings
from reki_ray.core.formats import address
from reki_ray.core.imports import load
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import cluster_address, ray_session
from reki_ray.core.storage import is_url
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError, StoreError
from reki_ray.experiments.experiment import load_experiment, require_room
from reki_ray.store.versions import VersionStore, store_of

APP_NAME: Final = "reki"
BUILDERS: Final = {
    "composed": "deployments.graph:build_app",
    "fused": "deployments.graph:build_fused_app",
}
LOGGING: Final = {"log_level": "WARNING", "enable_access_log": False}
READY_SECONDS: Final = 120.0
_LOGS: Final = "See the replicas' logs in /tmp/ray/session_latest/logs/serve."


def serve_forever(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> None:
    """Serve the published version until SIGINT or SIGTERM, then stop cleanly.

    Raises:
        EngineError: The graph does not come up, or the port is taken.
        StoreError: Nothing is published, or the version is damaged.
    """
    stop = threading.Event()
    with start(config, workspace, say=reporter.say) as url:
        # After the start, as Ray installs its own handlers.
        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, lambda *_: stop.set()) for number in signals]
        try:
            version = config.serve.version or store_of(config, workspace).current()
            reporter.say(f"serve: v{version} at {url}")
            reporter.say(f"serve: page {url}/, API {url}/openapi.json; Ctrl-C stops")
            reporter.say(f"serve: metrics of all replicas at {', '.join(metrics_urls())}")
            while not stop.wait(timeout=1.0):
                pass
            reporter.say("serve: stopping")
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)


@contextlib.contextmanager
def start(
    config: RekiConfig, workspace: Workspace, *, say: Callable[[str], None] = lambda _: None
) -> Iterator[str]:
    """Serve the current version in the block; yields the base URL, such as http://127.0.0.1:8000.

    Raises:
        ConfigError: A token is missing or invalid, the vector server's timeout exceeds that of a
            lookup, or an experiment needs more versions than replicas keep.
        EngineError: The port is taken, Serve is running already, or the graph does not start.
        StoreError: Nothing is published, or the version is damaged.
    """
    # These raise here, rather than in a replica's log.
    required_tokens(config.serve.edge)
    config.store.vectors.require_in_time(config.serve)
    store = store_of(config, workspace)
    store.open_served(config.serve.version).close()
    try:
        experiment = load_experiment(store.location)
    except StoreError as error:  # scores need no experiment
        say(f"serve: without the experiment: {error}")
    else:
        if experiment is not None:
            versions = [variant.version for variant in experiment.variants]
            require_room(store.location, versions, config.serve.kept_versions)
    say(_choose_ingress(config))  # before Ray starts
    build = load(config.serve.app or BUILDERS[config.serve.graph])
    port = claim_port(config.serve.host, config.serve.port)
    stack = contextlib.ExitStack()
    try:
        stack.enter_context(ray_session(config.ray))
        url = stack.enter_context(_serve_instance(config.serve.host, port))
        _deploy(build(_graph_args(config, store)), config.serve)
        _wait_until_ready(url)
        if config.refresh.enabled:
            from actors import refresher  # imports Ray and torch
            from reki_ray.stages.update import update

            refresher.start(config, update)
        yield url
    finally:
        # Ray prints that Serve's controller has died, also on a normal shutdown.
        with contextlib.redirect_stdout(io.StringIO()):
            stack.close()


def _choose_ingress(config: RekiConfig) -> str:
    import ray  # slow to import

    if ray.is_initialized() or cluster_address(config.ray) != "local":
        return "HTTP proxy: that of the running cluster"
    return set_ingress(config.serve.ingress)


def _graph_args(run: RekiConfig, store: VersionStore) -> dict[str, Any]:
    config = run.serve
    return {
        "publish_root": (store.location if is_url(store.location) else str(store.root.resolve())),
        **config.model_dump(include=set(GraphSettings.model_fields)),
        "vectors": store.vectors.model_dump(),
        "compare": run.publish.compare,
        "edge": config.edge.at(config.host).model_dump(),
        "online": {"rules": dict(run.refresh.events), "data": run.data.model_dump(mode="json")},
    }


@contextlib.contextmanager
def _serve_instance(host: str, port: int) -> Iterator[str]:
    """Run Ray Serve with its HTTP proxy at an address; yields the base URL."""
    from ray import serve  # needs the environment that ray_session sets

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if serve.status().proxies:
        raise EngineError(
            "Ray Serve is already running on this cluster",
            where="ray.address",
            todo="Use `serve deploy deployments/serve.yaml` there, or set ray.address to local.",
        )
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port},
        logging_config=LOGGING,
    )
    try:
        reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        yield f"http://{address(reached, port)}"
    finally:
        serve.shutdown()


def claim_port(host: str, port: int) -> int:
    """Return `port`, or any free port for 0.

    Raises:
        EngineError: The port is taken, or the address is not this machine's.
    """
    # Serve's proxy shares ports (SO_REUSEPORT): unchecked, two services would alternate.
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise EngineError(
                f"port {port} of {host} cannot be used: {error.strerror}",
                where=f"serve.host = {host}, serve.port = {port}",
                todo="Stop the process that uses it, or change serve.port (0: any free port).",
            ) from error
        return int(probe.getsockname()[1])


def metrics_urls() -> list[str]:
    """Return the URLs of Ray's metrics, one per node, which have those of all replicas."""
    import ray  # slow to import

    return [
        f"http://{address(node['NodeManagerAddress'], node['MetricsExportPort'])}/metrics"
        for node in ray.nodes()
        if node["Alive"]
    ]


def _deploy(app: Any, config: ServeConfig) -> None:
    from ray import serve  # needs the environment that ray_session sets

    try:
        serve.run(app, name=APP_NAME, route_prefix="/", logging_config=LOGGING)
    except RuntimeError as error:
        raise EngineError(
            f"the graph does not start: {error}",
            where=config.app or BUILDERS[config.graph],
            todo=_LOGS,
        ) from error


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    last = "no answer"
    while time.monotonic() < deadline:
        try:
            response = httpx.get(f"{url}/readyz", timeout=10.0, trust_env=False)
            if response.is_success:
                return
            last = response.text
        except httpx.HTTPError as error:
            last = str(error)
        time.sleep(0.1)
    raise EngineError(
        f"the graph is not ready after {READY_SECONDS:.0f} s: {last}",
        where=f"{url}/readyz",
        todo=_LOGS,
    )
