"""Stage serve: start the graph, measure it under a bounded load, and check its scores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

import httpx
import numpy as np

from deployments.launcher import start
from deployments.middleware.auth import bearer
from reki_ray.config import RekiConfig, ServeConfig
from reki_ray.core.progress import Reporter, Task
from reki_ray.core.stage import StageResult
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError, StoreError
from reki_ray.models.candidate_scorer import HistoryEvent, UserInput
from reki_ray.store.version import StoreVersion
from reki_ray.store.versions import store_of

CLIENTS: Final = 8
"""Concurrent clients of the throughput measurement."""
WARM_UP_REQUESTS: Final = 10
MAX_SCORE_DIFFERENCE: Final = 1e-5
CHECKED_REQUESTS: Final = 20

Json = dict[str, Any]


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Run stage `serve`.

    Raises:
        EngineError: The graph does not start or answer.
        StoreError: The version is damaged, or scores over HTTP differ from the model's.
    """
    version = store_of(config, workspace).open(config.serve.version)
    requests = sample_requests(version, config.serve, seed=config.split.seed)
    with start(config, workspace) as url:
        latencies, responses = _one_client(url, requests, config.serve, reporter)
        rate = asyncio.run(_many_clients(url, requests, config.serve, reporter))
    difference = score_difference(version, requests, responses)
    if not difference <= MAX_SCORE_DIFFERENCE:
        raise StoreError(
            f"scores over HTTP differ by {difference:.2g} from those of the model",
            where=version.name,
            todo="Publish again; if it persists, the application in serve.app scores differently.",
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


def sample_requests(version: StoreVersion, config: ServeConfig, *, seed: int) -> list[Json]:
    """Return bodies of score requests with random users and candidates of a version."""
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
    """Return the largest difference between scores over HTTP and those of the model."""
    scorer = version.load_scorer()
    largest = 0.0
    for request, response in list(zip(requests, responses, strict=True))[:CHECKED_REQUESTS]:
        expected = scorer.score(user_input(version, request["user_id"]), request["candidates"])
        served = np.array([entry["score"] for entry in response["scores"]])
        largest = max(largest, float(np.abs(served - expected).max()))
    return largest


def user_input(version: StoreVersion, user_id: str) -> UserInput:
    """Return the scorer's input for a user of a version."""
    vector = None if version.users is None else version.users.lookup([user_id])[0][0]
    profile = version.profile(user_id)
    if profile is None:
        return UserInput(None, [], vector)
    events = profile.latest(len(profile.item_ids))
    return UserInput(profile.attributes, [HistoryEvent(*event) for event in events], vector)


def _options(url: str, config: ServeConfig) -> dict[str, Any]:
    timeout = config.timeout_seconds + 5
    headers = bearer(config.edge)
    return {"base_url": url, "headers": headers, "timeout": timeout, "trust_env": False}


def _one_client(
    url: str, requests: Sequence[Json], config: ServeConfig, reporter: Reporter
) -> tuple[list[float], list[Json]]:
    """Send requests sequentially; return latencies in milliseconds and answers."""
    latencies: list[float] = []
    responses: list[Json] = []
    with (
        httpx.Client(**_options(url, config)) as client,
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
    """Return the requests per second of several concurrent clients."""
    waiting = iter(requests)

    async def client_loop(client: httpx.AsyncClient, task: Task) -> None:
        for body in waiting:  # shared by all clients
            _checked(await client.post("/v1/score", json=body))
            task.advance()

    async with httpx.AsyncClient(**_options(url, config)) as client:
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
            todo="See the replicas' logs in /tmp/ray/session_latest/logs/serve.",
        )
    return content
