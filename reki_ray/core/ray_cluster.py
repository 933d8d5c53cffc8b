"""The Ray cluster of a run: start or join it, and leave nothing behind."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from reki_ray.config import RayConfig, RekiConfig
from reki_ray.core.formats import counted
from reki_ray.errors import EngineError, RekiError

_PROBE_SECONDS = 10.0
_QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Ray's own progress bars would fight with ours for the terminal.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Whatever still runs after the end of a session must not start a cluster of its own.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Clients and servers must agree on it, so it is set on purpose and not left to a default.
    "RAY_AUTH_MODE": "token",
    # At Ray's own nice 15, an engine on the CPU would wait behind every small task of the machine.
    "RAY_worker_niceness": "0",
    # Ray's HTTP servers would believe the X-Forwarded-For of any process on this machine, and
    # so that of every caller behind its HAProxy; serve.edge.trusted_proxies says whom to believe.
    "FORWARDED_ALLOW_IPS": "none",
    # The driver chooses what runs on an accelerator; Ray must not hide it from CPU-only tasks.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def set_environment() -> None:
    """Set the variables that every process of a run inherits; what the user set stays."""
    for name, value in _QUIET.items():
        # Ray reads it at its import: set later, a cluster would want a token that nobody sends.
        if name != "RAY_AUTH_MODE" or "ray" not in sys.modules:
            os.environ.setdefault(name, value)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Log errors only in the block: libraries tell of themselves what no user can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def cluster_address(config: RayConfig) -> str:
    """The cluster to join, or `local` to start one.

    Raises:
        EngineError: The address is that of a Ray Client server or of the Jobs API.
    """
    # A bare ray.init() would trust a stale cluster file of an earlier Ray, hence never empty.
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
    """Refuse a cluster that no stage could join.

    Raises:
        EngineError: See `cluster_address`.
    """
    cluster_address(config.ray)


def _probe(address: str) -> None:
    """Fail at once if nobody listens: Ray itself would try again for ever.

    Raises:
        OSError: No connection to `host:port` or `[host]:port`; other forms are not tried.
    """
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:  # an IPv6 address without a port
        return
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_PROBE_SECONDS).close()


@contextlib.contextmanager
def ray_session(config: RayConfig) -> Iterator[None]:
    """Ray for the work in the block.

    A cluster that this started is stopped at the end, also on an error; one that was there
    before is joined and left running.

    Raises:
        EngineError: The cluster cannot be started or reached.
    """
    set_environment()
    import ray  # starting the command line must not cost Ray's import

    # Their tracebacks are not the user's news: what they mean is told by our own errors. A log
    # record would also keep the frames of a dead pipeline, and with them its actors, alive.
    for library in ("ray.data", "ray.serve", "ray.train"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    # vLLM's stage and our pools state retries in the only way that this release of Ray offers.
    warnings.filterwarnings("ignore", category=ray.util.annotations.RayDeprecationWarning)
    if ray.is_initialized():
        yield
        return
    # Its first input is often the only one: no reason to tell the user of an operator.
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks for")
    address = found = cluster_address(config)
    local = address == "local"
    try:
        if address == "auto":  # what the last `ray start` noted, also if that cluster is gone
            found = str(ray._private.services.canonicalize_bootstrap_address(address))
        _probe(found)
        ray.init(
            address=address,
            num_cpus=config.num_cpus if local else None,
            object_store_memory=config.object_store_mib * 2**20 if local else None,
            include_dashboard=False if local else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises bare ones, as when a node is too slow
        todo = (
            "This machine may be too busy or short of memory: run again when it is less so. "
            "Ray's logs are in /tmp/ray/session_latest/logs."
            if local
            else "Start one with `ray start --head` or `ray up cluster.yaml`, or set it to local."
        )
        raise EngineError(
            f"no Ray cluster: {str(error) or type(error).__name__}",
            where=_origin(config, address) + (f", {found}" if found != address else ""),
            todo=todo,
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def capacity() -> dict[str, float]:
    """Resources that the cluster which is initialised has, or that its autoscaler may start."""
    import ray  # starting the command line must not cost Ray's import

    # Not public, and the only place that tells what an autoscaler could start.
    from ray._private.state import state

    there: dict[str, float] = dict(ray.cluster_resources())
    for name, amount in (state.get_max_resources_from_cluster_config() or {}).items():
        there[name] = max(there.get(name, 0.0), amount)
    return there


def cpu_share(processes: int) -> float:
    """CPUs, at most one, that each of some processes may claim on the cluster that is initialised.

    One CPU stays free, or Ray's own work could never be scheduled beside them.
    """
    free = max(1.0, capacity().get("CPU", 1.0) - 1)
    return min(1.0, free / processes)


def require_gpus(count: int, where: str) -> None:
    """Refuse what would wait for GPUs for ever.

    Args:
        count: GPUs that must be there at once.
        where: Keys of the configuration that ask for them.

    Raises:
        EngineError: The cluster has fewer, and cannot start more.
    """
    there = capacity().get("GPU", 0.0)
    if there < count:
        raise EngineError(
            f"{counted(count, 'GPU')} needed, the cluster has {there:g}",
            where=where,
            todo="Set the device to cpu, ask for fewer, or join a cluster that has them.",
        )


def bounded(calls: Iterable[tuple[Any, tuple[Any, ...]]], *, pending: int = 32) -> Iterator[Any]:
    """Run Ray tasks, only some of them waiting at a time, and yield results as they come.

    Args:
        calls: Remote functions, each with its arguments.
        pending: Most tasks submitted and not yet done: more would only fill the driver's memory.

    Raises:
        RekiError: A task raised it.
        EngineError: A task failed for good, for instance because its node was lost repeatedly.
    """
    import ray  # as above

    waiting: list[Any] = []
    try:
        for function, arguments in calls:
            waiting.append(function.remote(*arguments))
            if len(waiting) >= pending:
                done, waiting = ray.wait(waiting, fetch_local=False)
                yield from ray.get(done)
        while waiting:
            done, waiting = ray.wait(waiting, fetch_local=False)
            yield from ray.get(done)
    except ray.exceptions.RayError as error:
        raise cause_of(error) or EngineError(
            f"a task of the cluster failed: {last_line(error)}",
            where="Ray",
            todo="Run again: finished work is kept. If it persists, read Ray's logs.",
        ) from error
    finally:
        for left in waiting:
            ray.cancel(left)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, out of groups and of what Ray wraps around it."""
    left, seen = [error], set()
    while left:
        one = left.pop()
        if id(one) in seen:  # a cause may lead back to its effect
            continue
        seen.add(id(one))
        # What is wrapped stands for its wrapper, which in Ray has the same type and a traceback
        # as its message.
        inner = getattr(one, "cause", None)
        if isinstance(inner, BaseException):
            left.append(inner)
        elif isinstance(one, BaseExceptionGroup):
            left += reversed(one.exceptions)
        else:
            yield one
            if one.__cause__ is not None:
                left.append(one.__cause__)


def cause_of(error: BaseException) -> RekiError | None:
    """The `RekiError` that a worker raised, out of what Ray wraps around it."""
    return next((one for one in causes(error) if isinstance(one, RekiError)), None)


def last_line(error: BaseException) -> str:
    """The cause in one line, which Ray puts below the traceback of the worker."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
