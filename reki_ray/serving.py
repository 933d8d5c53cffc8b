"""Stage serve: bring the composed graph up, measure it, and check its scores.

The graph is known by its import path alone (`serve.app`), so that another application with
the same HTTP contract can take its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import httpx
import numpy as np

from reki_ray.config import RekiConfig, ServeConfig
from reki_ray.errors import EngineError, StoreError
from reki_ray.models.scoring import HistoryEvent, UserInput
from reki_ray.pipeline import StageResult, load
from reki_ray.progress import Reporter, Task
from reki_ray.runtime import ray_session
from reki_ray.store.versions import StoreVersion, VersionStore
from reki_ray.workspace import Workspace

APP_NAME: Final = "reki"
LOGGING: Final = {"log_level": "WARNING", "enable_access_log": False}
READY_SECONDS: Final = 120.0
CLIENTS: Final = 8
"""Concurrent clients of the throughput measurement."""
WARM_UP_REQUESTS: Final = 10
MAX_SCORE_DIFFERENCE: Final = 1e-5
CHECKED_REQUESTS: Final = 20

Json = dict[str, Any]


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Stage `serve`: start the graph, ask an example, measure a bounded load, check the scores.

    Raises:
        EngineError: The graph does not come up, or does not answer.
        StoreError: The version is damaged, or HTTP scores differ from those computed here.
    """
    version = _store(workspace).open()
    requests = sample_requests(version, config.serve, seed=config.split.seed)
    with start(config, workspace) as url:
        latencies, responses = _one_client(url, requests, config.serve, reporter)
        rate = asyncio.run(_many_clients(url, requests, config.serve, reporter))
    difference = score_difference(version, requests, responses)
    if not difference <= MAX_SCORE_DIFFERENCE:
        raise StoreError(
            f"scores over HTTP differ by {difference:.2g} from those of the model",
            where=version.name,
            todo="Publish again; if it stays, the application in serve.app scores otherwise.",
        )
    return StageResult(
        rows_in=2 * len(requests),
        rows_out=2 * len(requests),
        details={
            "candidates": len(requests[0]["candidates"]),
            "requests": 2 * len(requests),
            "p50_ms": round(float(np.percentile(latencies, 50)), 3),
            "p99_ms": round(float(np.percentile(latencies, 99)), 3),
            "requests_per_second": round(rate, 1),
            "clients": CLIENTS,
            "latencies_ms": [round(latency, 3) for latency in latencies],
            "max_score_difference": difference,
            "example": {"request": requests[0], "response": responses[0]},
        },
    )


def serve_forever(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> None:
    """Serve the published version until SIGINT or SIGTERM, then stop cleanly.

    Raises:
        EngineError: The graph does not come up, or the port is taken.
        StoreError: Nothing is published, or the version is damaged.
    """
    stop = threading.Event()
    with start(config, workspace) as url:
        # After the start: Ray puts handlers of its own in place.
        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, lambda *_: stop.set()) for number in signals]
        try:
            reporter.say(f"serve: {_store(workspace).open(verify=False).name} at {url}")
            reporter.say(f"serve: page {url}/, interface {url}/openapi.json; Ctrl-C stops")
            while not stop.wait(timeout=1.0):
                pass
            reporter.say("serve: stopping")
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)


# --- bringing it up ----------------------------------------------------------------------------


@contextlib.contextmanager
def start(config: RekiConfig, workspace: Workspace) -> Iterator[str]:
    """The graph over the current version, stopped at the end of the block.

    Args:
        config: The run.
        workspace: Its folder, on the local disk.

    Yields:
        Base URL, as http://127.0.0.1:8000.

    Raises:
        EngineError: The port is taken, Serve runs already, or the graph does not come up.
        StoreError: Nothing is published, or the version is damaged.
    """
    store = _store(workspace)
    version = store.open()  # a damaged version is told of here, not in a replica's log
    build = load(config.serve.app)
    port = claim_port(config.serve.host, config.serve.port)
    stack = contextlib.ExitStack()
    try:
        stack.enter_context(ray_session(config.ray))
        url = stack.enter_context(_serve_instance(config.serve.host, port))
        _deploy(build(_graph_args(config.serve, store, version)), config.serve)
        _wait_until_ready(url)
        yield url
    finally:
        # Ray tells standard output that Serve's controller has died, which is what an end is.
        with contextlib.redirect_stdout(io.StringIO()):
            stack.close()


def _graph_args(config: ServeConfig, store: VersionStore, version: StoreVersion) -> Json:
    return {
        "publish_root": str(store.root.resolve()),
        "version": version.manifest.version,
        "gateway_replicas": config.gateway_replicas,
        "lookup_replicas": config.lookup_replicas,
        "scorer_replicas": config.scorer_replicas,
        "max_candidates": config.max_candidates,
        "max_history": config.max_history,
        "timeout_seconds": config.timeout_seconds,
    }


@contextlib.contextmanager
def _serve_instance(host: str, port: int) -> Iterator[str]:
    """Ray Serve with its HTTP proxy at an address; yields the base URL."""
    from ray import serve  # noqa: PLC0415  # after ray_session has set the environment

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if serve.status().proxies:
        raise EngineError(
            "Ray Serve runs on this cluster already",
            where="ray.address",
            todo="Use `serve deploy deployments/serve.yaml` there, or set ray.address to local.",
        )
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port},
        logging_config=LOGGING,
    )
    try:
        reached = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
        yield f"http://{reached}:{port}"
    finally:
        serve.shutdown()


def claim_port(host: str, port: int) -> int:
    """A port that nobody listens on.

    Args:
        host: Address to listen on.
        port: Wanted port; 0 takes any free one.

    Raises:
        EngineError: The port is taken, or the address is not this machine's.
    """
    # Serve's proxy shares ports (SO_REUSEPORT): without this check two services would
    # answer in turn.
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise EngineError(
                f"port {port} of {host} cannot be used: {error.strerror}",
                where=f"serve.host = {host}, serve.port = {port}",
                todo="Stop what listens there, or set serve.port to another one (0: any free).",
            ) from error
        return int(probe.getsockname()[1])


def _deploy(app: Any, config: ServeConfig) -> None:
    from ray import serve  # noqa: PLC0415  # see _serve_instance

    try:
        serve.run(app, name=APP_NAME, route_prefix="/", logging_config=LOGGING)
    except RuntimeError as error:
        raise EngineError(
            f"the graph does not come up: {error}",
            where=config.app,
            todo="Look into the replicas' logs below /tmp/ray/session_latest/logs/serve.",
        ) from error


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    last = "no answer"
    while time.monotonic() < deadline:
        try:
            response = httpx.get(f"{url}/readyz", timeout=10.0, trust_env=False)
        except httpx.HTTPError as error:
            last = str(error)
        else:
            if response.is_success:
                return
            last = response.text
        time.sleep(0.1)
    raise EngineError(
        f"the graph is not ready after {READY_SECONDS:.0f} s: {last}",
        where=f"{url}/readyz",
        todo="Look into the replicas' logs below /tmp/ray/session_latest/logs/serve.",
    )


# --- measuring it ------------------------------------------------------------------------------


def sample_requests(version: StoreVersion, config: ServeConfig, *, seed: int) -> list[Json]:
    """Bodies of score requests: users of the store, candidates of its catalogue.

    Args:
        version: The served version.
        config: Number of requests and of candidates.
        seed: Of the draw.
    """
    generator = np.random.default_rng(seed)
    users, items = version.profiles.ids(), version.catalogue.ids
    count = min(config.measure_candidates, config.max_candidates, len(items))
    return [
        {
            "user_id": users[generator.integers(len(users))],
            "candidates": [items[k] for k in generator.choice(len(items), count, replace=False)],
        }
        for _ in range(config.measure_requests)
    ]


def score_difference(
    version: StoreVersion, requests: Sequence[Json], responses: Sequence[Json]
) -> float:
    """Largest difference between scores over HTTP and those of the model itself.

    Args:
        version: The served version.
        requests: Bodies of score requests.
        responses: Their answers; the first ones are compared.
    """
    scorer = version.load_scorer()
    largest = 0.0
    for request, response in list(zip(requests, responses, strict=True))[:CHECKED_REQUESTS]:
        expected = scorer.score(user_input(version, request["user_id"]), request["candidates"])
        served = np.array([entry["score"] for entry in response["scores"]])
        largest = max(largest, float(np.abs(served - expected).max()))
    return largest


def user_input(version: StoreVersion, user_id: str) -> UserInput:
    """What a version knows of a user, for the scorer."""
    vector = None if version.users is None else version.users.lookup([user_id])[0][0]
    profile = version.profile(user_id)
    if profile is None:
        return UserInput(None, [], vector)
    events = zip(profile.item_ids, profile.ratings, profile.timestamps, strict=True)
    return UserInput(profile.attributes, [HistoryEvent(*event) for event in events], vector)


def _one_client(
    url: str, requests: Sequence[Json], config: ServeConfig, reporter: Reporter
) -> tuple[list[float], list[Json]]:
    """Latencies in milliseconds and answers, one request after the other."""
    latencies: list[float] = []
    responses: list[Json] = []
    with (
        httpx.Client(base_url=url, timeout=config.timeout_seconds + 5, trust_env=False) as client,
        reporter.task("serve: latency", total=len(requests), unit="requests") as task,
    ):
        for body in requests[:WARM_UP_REQUESTS]:
            _checked(client.post("/v1/score", json=body))
        for body in requests:
            started = time.perf_counter()
            response = client.post("/v1/score", json=body)
            latencies.append(1000 * (time.perf_counter() - started))
            responses.append(_checked(response))
            task.advance()
    return latencies, responses


async def _many_clients(
    url: str, requests: Sequence[Json], config: ServeConfig, reporter: Reporter
) -> float:
    """Requests a second of several clients at once."""
    waiting = iter(requests)

    async def client_loop(client: httpx.AsyncClient, task: Task) -> None:
        for body in waiting:  # shared: each request is taken once
            _checked(await client.post("/v1/score", json=body))
            task.advance()

    timeout = config.timeout_seconds + 5
    async with httpx.AsyncClient(base_url=url, timeout=timeout, trust_env=False) as client:
        with reporter.task("serve: throughput", total=len(requests), unit="requests") as task:
            started = time.perf_counter()
            await asyncio.gather(*(client_loop(client, task) for _ in range(CLIENTS)))
            return len(requests) / (time.perf_counter() - started)


def _checked(response: httpx.Response) -> Json:
    content: Json = response.json() if response.is_success else {}
    if content.get("degraded", True):
        raise EngineError(
            f"the service failed or was degraded: {response.status_code} {response.text[:200]}",
            where=str(response.url),
            todo="Look into the replicas' logs below /tmp/ray/session_latest/logs/serve.",
        )
    return content


def _store(workspace: Workspace) -> VersionStore:
    return VersionStore(workspace.local_path("publish"))
