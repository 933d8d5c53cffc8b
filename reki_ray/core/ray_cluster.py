"""The Ray cluster of a run: start or join it, and leave nothing behind."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from reki_ray.config import RayConfig, RekiConfig
from reki_ray.config.base import ReplicaPool
from reki_ray.config.files import read_mapping
from reki_ray.core import run_log
from reki_ray.core.formats import counted
from reki_ray.errors import ConfigError, EngineError, RekiError

LAUNCHER_FILE = "~/ray_bootstrap_config.yaml"
"""Where `ray up` writes the cluster's file on the head."""

_PROBE_SECONDS = 10.0
_QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Ray's progress bars would disturb ours.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # What still runs after a session must not start another cluster.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Set explicitly: clients and servers must agree on it.
    "RAY_AUTH_MODE": "token",
    # At Ray's default nice 15, a CPU engine would wait for every other process of the machine.
    "RAY_worker_niceness": "0",
    # Ray's HTTP servers trust X-Forwarded-For of local processes, thus of every caller behind
    # its HAProxy; serve.edge.trusted_proxies decides instead.
    "FORWARDED_ALLOW_IPS": "none",
    # Ray must not hide accelerators from CPU-only tasks: the driver decides what runs on them.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def set_environment() -> None:
    """Set the variables that all processes of a run inherit, unless the user set them."""
    for name, value in _QUIET.items():
        # Ray reads it on import: set later, the cluster would require a token that no client has.
        if name != "RAY_AUTH_MODE" or "ray" not in sys.modules:
            os.environ.setdefault(name, value)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Log only errors in the block: users cannot act on the warnings of libraries."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def cluster_address(config: RayConfig) -> str:
    """Address of the cluster to join, or `local` to start one.

    Raises:
        EngineError: The address is that of a Ray Client server or of the Jobs API.
    """
    # Never empty: a bare ray.init() would trust a stale cluster file of an earlier Ray.
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    if "://" in address:
        raise EngineError(
            f"{address.partition('://')[0]}:// is not a cluster that a run can join",
            where=_origin(config, address),
            todo="A run is a driver on a node of the cluster: start it there (`ray job submit`, "
            "`ray exec`) with ray.address: auto, or name the GCS as HOST:6379.",
        )
    return address


def _origin(config: RayConfig, address: str) -> str:
    named = config.address or "RAY_ADDRESS" not in os.environ
    return f"{'ray.address' if named else 'RAY_ADDRESS'} = {address}"


def check_address(config: RekiConfig) -> None:
    """Check `ray.address` before the first stage runs, see `cluster_address`."""
    cluster_address(config.ray)


def _probe(address: str) -> None:
    """Fail at once if nothing listens at `host:port`; Ray itself would retry forever."""
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:  # an IPv6 address without a port
        return
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_PROBE_SECONDS).close()


@contextlib.contextmanager
def ray_session(config: RayConfig) -> Iterator[None]:
    """Connect to Ray for the block; a cluster that this started is stopped at the end.

    Raises:
        EngineError: The cluster cannot be started or reached.
    """
    set_environment()
    import ray  # slow, and not needed by every command

    # Our own errors report what their tracebacks mean. A log record would also keep the frames,
    # and thus the actors, of a dead pipeline alive.
    for library in ("ray.data", "ray.serve", "ray.train"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    # vLLM's stage and our pools can only set retries in a deprecated way in this release of Ray.
    warnings.filterwarnings("ignore", category=ray.util.annotations.RayDeprecationWarning)
    if ray.is_initialized():
        yield
        return
    # Expected, as an operator's first input is often its only one.
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks for")
    address = resolved = cluster_address(config)
    local = address == "local"
    _startable.clear()
    if not local:
        _startable.update(startable(config))
    try:
        if address == "auto":  # as the last `ray start` recorded it; that cluster may be gone
            resolved = str(ray._private.services.canonicalize_bootstrap_address(address))
        _probe(resolved)
        ray.init(
            address=address,
            num_cpus=config.num_cpus if local else None,
            object_store_memory=config.object_store_mib * 2**20 if local else None,
            include_dashboard=False if local else None,
            log_to_driver=False,
            runtime_env=run_log.runtime_env(),
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises plain Exception, as when a node is too slow
        todo = (
            "This machine may be too busy or short of memory: free some and run again. "
            "Ray's logs are in /tmp/ray/session_latest/logs."
            if local
            else "Start one with `ray start --head` or `ray up cluster.yaml`, or set it to local."
        )
        raise EngineError(
            f"no Ray cluster: {str(error) or type(error).__name__}",
            where=_origin(config, address) + (f", {resolved}" if resolved != address else ""),
            todo=todo,
        ) from error
    run_log.configure()
    if local:
        _write_scrape_targets()
    try:
        yield
    finally:
        ray.shutdown()


def _write_scrape_targets() -> None:
    """Write prom_metrics_service_discovery.json, as the dashboard of a cluster does."""
    import ray  # as above
    from ray._private.metrics_agent import PrometheusServiceDiscoveryWriter  # not public

    session: Any = ray._private.worker._global_node
    with contextlib.suppress(Exception):  # scraping is optional, and the module private
        PrometheusServiceDiscoveryWriter(
            ray.get_runtime_context().gcs_address,
            session.get_temp_dir_path(),
            session.get_session_dir_path(),
        ).write()


def capacity() -> dict[str, float]:
    """Resources that the connected cluster has, or that its autoscaler can start."""
    import ray  # slow, and not needed by every command

    # Not public. Ray's own autoscaler reports nothing there; hosted ones may.
    from ray._private.state import state

    resources: dict[str, float] = dict(ray.cluster_resources())
    reported = state.get_max_resources_from_cluster_config() or {}
    for source in (reported, _startable):
        for name, amount in source.items():
            resources[name] = max(resources.get(name, 0.0), amount)
    return resources


_startable: dict[str, float] = {}
"""What the autoscaler of the connected cluster can start, see `startable`."""


def startable(config: RayConfig) -> dict[str, float]:
    """Resources that the autoscaler of a cluster can start, as far as its files or `config` say.

    `ray up` leaves its file in the head's home, where runs start; on Kubernetes there is none.

    Raises:
        ConfigError: The file cannot be read.
    """
    if config.max_resources:
        return dict(config.max_resources)
    path = Path(LAUNCHER_FILE).expanduser()
    todo = "Set ray.max_resources to what the autoscaler can start, such as {GPU: 4}."
    if not path.exists():
        return {}
    cluster = read_mapping(path, todo=todo)
    try:
        head, most = cluster.get("head_node_type"), cluster.get("max_workers", 2)
        totals: Counter[str] = Counter()
        for name, kind in cluster["available_node_types"].items():
            count = min(kind.get("max_workers", most), most)
            for resource, amount in kind.get("resources", {}).items() if name != head else ():
                totals[resource] += count * amount
        return {name: float(amount) for name, amount in totals.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the cluster launcher's file names no node types: {error}", where=str(path), todo=todo
        ) from error


def cpu_share(processes: int) -> float:
    """CPUs, at most 1, for each of some processes; one CPU stays free for Ray's own tasks."""
    free = max(1.0, capacity().get("CPU", 1.0) - 1)
    return min(1.0, free / processes)


SPARE_CPUS = 1
"""Ray Data's own tasks need a CPU: if actors take all of them, a dataset waits forever."""
UNITS_PER_REPLICA = 2
"""Work units that are worth one more replica."""


def pool_size(pool: ReplicaPool, demand: Mapping[str, float], units: int | None = None) -> int:
    """Replicas that a queue of work units is worth, as many as the cluster has or can start.

    Ray Data's own growth comes late or never: it counts only units that were handed to an actor,
    and stops as soon as none is left to hand out. The queue is known before, so the pool is too.

    Args:
        demand: Ray resources per replica.
        units: None assumes a long queue.
    """
    available = capacity()
    fits = [
        int((available.get(name, 0.0) - (SPARE_CPUS if name == "CPU" else 0)) / amount)
        for name, amount in demand.items()
        if amount > 0
    ]
    wanted = pool.max_replicas if units is None else math.ceil(units / UNITS_PER_REPLICA)
    return max(pool.min_replicas, min([pool.max_replicas, wanted, *fits]))


def require_gpus(count: int, where: str) -> None:
    """Refuse work that would wait forever for GPUs; `where` names the keys that require them.

    Raises:
        EngineError: The cluster has fewer, and cannot start more.
    """
    available = capacity().get("GPU", 0.0)
    if available < count:
        raise EngineError(
            f"{counted(count, 'GPU')} needed, the cluster has {available:g}",
            where=where,
            todo="Set the device to cpu, ask for fewer, or join a cluster that has them.",
        )


def bounded(calls: Iterable[tuple[Any, tuple[Any, ...]]], *, pending: int = 32) -> Iterator[Any]:
    """Run calls of Ray tasks and yield results in order of completion.

    At most `pending` are submitted and not yet done, which bounds the driver's memory.

    Raises:
        RekiError: A task raised it.
        EngineError: A task failed for good, as when its node was lost repeatedly.
    """
    import ray  # as above

    submitted = (function.remote(*arguments) for function, arguments in calls)
    waiting: list[Any] = []
    try:
        waiting += islice(submitted, pending)
        while waiting:
            done, waiting = ray.wait(waiting, fetch_local=False)
            yield from ray.get(done)
            waiting += islice(submitted, len(done))
    except ray.exceptions.RayError as error:
        raise cause_of(error) or EngineError(
            f"a task of the cluster failed: {last_line(error)}",
            where="Ray",
            todo="Run again: finished work is kept. If it persists, read Ray's logs.",
        ) from error
    finally:
        for task in waiting:
            ray.cancel(task)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, without the wrappers of Ray and of exception groups."""
    stack, seen = [error], set()
    while stack:
        current = stack.pop()
        if id(current) in seen:  # causes may form a circle
            continue
        seen.add(id(current))
        # Ray's wrapper has the type of what it wraps, with a traceback as its message.
        inner = getattr(current, "cause", None)
        if isinstance(inner, BaseException):
            stack.append(inner)
        elif isinstance(current, BaseExceptionGroup):
            stack += reversed(current.exceptions)
        else:
            yield current
            if current.__cause__ is not None:
                stack.append(current.__cause__)


def cause_of(error: BaseException) -> RekiError | None:
    """First `RekiError` among the causes of an error."""
    return next((cause for cause in causes(error) if isinstance(cause, RekiError)), None)


def last_line(error: BaseException) -> str:
    """Last line of a message, which in Ray's errors is the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
