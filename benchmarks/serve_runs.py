"""Single runs of the serve benchmark; each prints one line of JSON and ends."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks import harness, serve_data, serve_floor
from deployments.ingress import set_ingress
from deployments.launcher import claim_port

CANDIDATES: Final = 100
WARM_UP: Final = 50
CONNECTIONS: Final = 16
LOOKUPS: Final = 2_000
_ANSWERED: Final = "200"
_DEGRADED: Final = "200 degraded"
_PATH: Final = "/v1/score"
_HEADERS: Final = {"Content-Type": "application/json"}


def bodies(count: int, seed: int = 0) -> list[bytes]:
    """Score requests of random users and candidates."""
    chosen = np.random.default_rng(seed)
    return [
        json.dumps(
            {
                "user_id": f"u{chosen.integers(serve_data.USERS):08d}",
                "candidates": [
                    f"i{item:08d}"
                    for item in chosen.choice(serve_data.ITEMS, CANDIDATES, replace=False)
                ],
            }
        ).encode()
        for _ in range(count)
    ]


def latency(folder: str, rounds: str, requests: str) -> dict[str, Any]:
    """Median milliseconds of every graph in every round, one request at a time."""
    asked = bodies(int(requests))
    with _served(folder, ("composed", "fused", "base", "floor")) as graphs, _monolith(folder) as it:
        places = {**graphs, "monolith": it}
        model = _model_calls(folder)
        for port, path in places.values():
            _sequential(port, path, asked[:WARM_UP])
        found = []
        for number in range(int(rounds)):
            order = sorted(places)
            random.Random(number).shuffle(order)
            one = {name: _median(_sequential(*places[name], asked)) for name in order}
            found.append({**one, "model": _median(model(asked))})
    return {"rounds": found}


def load(folder: str, rounds: str, seconds: str) -> dict[str, Any]:
    """Saturation rate, then latencies at 70 % of it, in every round."""
    with _served(folder, ("composed",)) as graphs:
        port, path = graphs["composed"]
        asyncio.run(_closed(port, path, 5.0))
        found = []
        for _ in range(int(rounds)):
            rate, closed = asyncio.run(_closed(port, path, float(seconds)))
            times, opened = asyncio.run(_open(port, path, 0.7 * rate, float(seconds)))
            found.append(
                {
                    "saturation": round(rate, 1),
                    "p50_ms": round(float(np.percentile(times, 50)), 3),
                    "p99_ms": round(float(np.percentile(times, 99)), 3),
                    "requests": len(times),
                    "failures": _failures(closed + opened),
                    "answers": closed + opened,
                }
            )
    return {"rounds": found}


def soak(folder: str, minutes: str) -> dict[str, Any]:
    """Half the saturation rate for long: answers by code, memory of all replicas at every tenth."""
    with _served(folder, ("composed",)) as graphs:
        port, path = graphs["composed"]
        rate, _ = asyncio.run(_closed(port, path, 20.0))
        memory: list[float] = []
        answers: Counter[str] = Counter()
        for _ in range(10):
            answers += asyncio.run(_open(port, path, 0.5 * rate, 6.0 * float(minutes)))[1]
            memory.append(_replica_memory_mib())
    return {
        "minutes": float(minutes),
        "rate": round(0.5 * rate, 1),
        "failures": _failures(answers),
        "answers": answers,
        "memory_mib": memory,
        "memory_growth": round(memory[-1] / memory[0], 4),
    }


def lookup(folder: str) -> dict[str, Any]:
    """Time of looking 101 ids up, and what that adds to the memory of this process."""
    from reki_ray.store.vectors import VectorTable  # before the first reading

    before = _anonymous_bytes()
    path = Path(folder) / serve_data.VECTORS_FILE
    table = VectorTable([path], np.zeros(serve_data.VECTOR_LENGTH, dtype=np.float32))
    chosen = np.random.default_rng(0)
    asked = [
        [f"u{number:09d}" for number in chosen.integers(len(table), size=CANDIDATES + 1)]
        for _ in range(LOOKUPS)
    ]
    times = []
    for ids in asked:
        started = time.perf_counter()
        table.lookup(ids)
        times.append(1000 * (time.perf_counter() - started))
    names = sum(sys.getsizeof(key) for ids in asked for key in ids)
    grown = _anonymous_bytes() - before - names
    return {
        "vectors": len(table),
        "p50_ms": round(float(np.percentile(times, 50)), 4),
        "p99_ms": round(float(np.percentile(times, 99)), 4),
        "growth_mib": round(grown / 2**20, 2),
    }


@contextlib.contextmanager
def _served(folder: str, names: tuple[str, ...]) -> Iterator[dict[str, tuple[int, str]]]:
    """Some graphs on one Ray Serve; yields port and path of each."""
    set_ingress("auto")
    import ray  # after the environment is set
    from ray import serve

    from deployments.graph import build_app, build_fused_app

    # One client asks more than a limit for many would allow.
    edge = {"allow_anonymous": True, "rate_per_second": None}
    knowledge = {"publish_root": str(serve_data.knowledge_root(folder)), "edge": edge}
    base = {"publish_root": str(serve_data.base_root(folder)), "edge": edge}
    make: dict[str, Callable[[], Any]] = {
        "composed": lambda: build_app(knowledge),  # type: ignore[arg-type]
        "fused": lambda: build_fused_app(knowledge),  # type: ignore[arg-type]
        "base": lambda: build_app(base),  # type: ignore[arg-type]
        "floor": serve_floor.build_floor,
    }
    port = claim_port("127.0.0.1", 0)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    # More claims than cores: what idles while another is measured takes none.
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    try:
        address = {"host": "127.0.0.1", "port": port}
        serve.start(proxy_location="HeadOnly", http_options=address, logging_config=quiet)
        for name in names:
            serve.run(make[name](), name=name, route_prefix=f"/{name}", logging_config=quiet)
        yield {name: (port, f"/{name}{_PATH}") for name in names}
    finally:
        serve.shutdown()
        ray.shutdown()


@contextlib.contextmanager
def _monolith(folder: str) -> Iterator[tuple[int, str]]:
    """The plain process; yields its port and path."""
    port = claim_port("127.0.0.1", 0)
    root = str(serve_data.knowledge_root(folder))
    command = [sys.executable, "-m", "benchmarks.serve_floor", root, str(port)]
    process = subprocess.Popen(command, cwd=harness.ROOT)
    try:
        _wait(port)
        yield port, _PATH
    finally:
        process.terminate()
        process.wait(10)


def _wait(port: int) -> None:
    for _ in range(300):
        try:
            _sequential(port, _PATH, bodies(1))
        except (OSError, http.client.HTTPException):
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"nothing answers on port {port}")


def _sequential(port: int, path: str, asked: list[bytes]) -> list[float]:
    """Milliseconds of each request on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    times = []
    try:
        for body in asked:
            started = time.perf_counter()
            connection.request("POST", path, body, _HEADERS)
            answer = connection.getresponse()
            content = answer.read()
            times.append(1000 * (time.perf_counter() - started))
            if answer.status != 200:
                raise http.client.HTTPException(f"{path}: {answer.status} {content[:200]!r}")
    finally:
        connection.close()
    return times


def _model_calls(folder: str) -> Callable[[list[bytes]], list[float]]:
    """Measures the model alone, in this process: milliseconds of each request."""
    import torch

    from deployments.load_check import user_input
    from reki_ray.store.versions import VersionStore

    torch.set_num_threads(1)
    version = VersionStore(serve_data.knowledge_root(folder)).open()
    scorer = version.load_scorer()

    def measure(asked: list[bytes]) -> list[float]:
        times = []
        for body in asked:
            request = json.loads(body)
            user = user_input(version, request["user_id"])
            started = time.perf_counter()
            scorer.score(user, request["candidates"])
            times.append(1000 * (time.perf_counter() - started))
        return times

    return measure


async def _closed(port: int, path: str, seconds: float) -> tuple[float, Counter[str]]:
    """Requests a second of as many clients as connections, each waiting for its answer."""
    import aiohttp

    asked = bodies(500, seed=1)
    answers: Counter[str] = Counter()
    end = time.monotonic() + seconds

    async def client(session: aiohttp.ClientSession, first: int) -> None:
        at = first
        while time.monotonic() < end:
            answers[await _ask(session, port, path, asked[at % len(asked)])] += 1
            at += CONNECTIONS

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session, k) for k in range(CONNECTIONS)))
    return answers[_ANSWERED] / seconds, answers


async def _open(
    port: int, path: str, rate: float, seconds: float
) -> tuple[list[float], Counter[str]]:
    """Milliseconds from when each request was due, of requests that arrive at random; answers."""
    import aiohttp

    asked = bodies(500, seed=2)
    arrivals = np.random.default_rng(0).exponential(1 / rate, int(rate * seconds)).cumsum()
    times: list[float] = []
    answers: Counter[str] = Counter()

    async def one(session: aiohttp.ClientSession, due: float, body: bytes) -> None:
        code = await _ask(session, port, path, body)
        answers[code] += 1
        if code == _ANSWERED:
            times.append(1000 * (time.perf_counter() - due))

    connector = aiohttp.TCPConnector(limit=10 * CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector) as session:
        started = time.perf_counter()
        pending = []
        for number, after in enumerate(arrivals):
            due = started + float(after)
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            body = asked[number % len(asked)]
            pending.append(asyncio.ensure_future(one(session, due, body)))
        await asyncio.gather(*pending)
    return times, answers


async def _ask(session: Any, port: int, path: str, body: bytes) -> str:
    """Status of an answer, with the code of an error; the exception where there is no answer."""
    import aiohttp

    url = f"http://127.0.0.1:{port}{path}"
    try:
        async with session.post(url, data=body, headers=_HEADERS) as answer:
            content = await answer.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error).__name__
    if answer.status == 200:
        return _DEGRADED if b'"degraded":true' in content else _ANSWERED
    try:
        return f"{answer.status} {json.loads(content)['error']['code']}"
    except (ValueError, KeyError, TypeError):  # not of the graph: a proxy before it
        return f"{answer.status}"


def _failures(answers: Counter[str]) -> int:
    return answers.total() - answers[_ANSWERED] - answers[_DEGRADED]


def _anonymous_bytes() -> int:
    """Memory of this process that is no page of a file: those of the store are shared."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith("RssAnon:"))
    return int(found) * 1024


def _replica_memory_mib() -> float:
    """Private memory of this process's replicas, MiB."""
    replicas = [
        process
        for process in psutil.Process().children(recursive=True)
        if "ServeReplica" in " ".join(process.cmdline())
    ]
    return round(sum(one.memory_full_info().uss for one in replicas) / 2**20, 1)


def _median(values: list[float]) -> float:
    return round(float(np.median(values)), 3)


_RUNS: dict[str, Callable[..., dict[str, Any]]] = {
    "fill": serve_data.fill,
    "fill_vectors": serve_data.fill_vectors,
    "latency": latency,
    "load": load,
    "lookup": lookup,
    "soak": soak,
}


if __name__ == "__main__":
    harness.answer(_RUNS)
