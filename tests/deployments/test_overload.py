"""Bounds of what a gateway has in work: each kind of request has its own, and hangs by itself."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from deployments.extensions import Extensions
from deployments.flows.graph_client import GraphClient
from deployments.graph_args import StoreAccess
from deployments.parts.lookup import Lookup
from deployments.parts.records import Scores, UserRecord
from deployments.parts.scorer import Scorer
from deployments.schemas import EventItem, KnowledgeResponse
from reki_ray.errors import StoreError
from reki_ray.experiments.experiment import load_experiment, start_experiment
from reki_ray.schema import Side
from reki_ray.store.promotions import CURRENT
from reki_ray.store.versions import VersionStore
from tests.support import gateway_app, store_factory
from tests.support.edge_app import error

IN_WORK = 2
BODY = {"user_id": "u0", "candidates": ["m1"]}
EVENT = {"user_id": "u0", "item_id": "m1", "event": "click", "timestamp": 1}
WAIT_SECONDS = 30.0


class HeldScorer:
    """Answers when it is let go; fails for an item of that name."""

    def __init__(self, *, held: bool = True) -> None:
        self.asked = 0
        self.go_on = asyncio.Event()
        if not held:
            self.go_on.set()

    async def prepare(self, version: int) -> None:
        """Nothing to load."""

    async def score(self, user: UserRecord, candidates: Sequence[str], version: int) -> Scores:
        self.asked += 1
        await self.go_on.wait()
        if "failing" in candidates:
            raise StoreError("misfit", where="v1", todo="Publish again.")
        return Scores([0.5], ["cluster"], "cluster", False, "reki_c", "abc", f"v{version}")

    async def has(self, asked: int) -> None:
        await until(lambda: self.asked >= asked)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("overload") / "publish"
    store = VersionStore(folder)
    store.publish(store_factory.fill)
    store.publish(store_factory.fill, promote=False)
    start_experiment(folder, "first", {"base": (1, 1.0)})
    return str(folder)


@asynccontextmanager
async def gateway(
    root: str,
    scorer: HeldScorer,
    append: Callable[[Sequence[EventItem]], None] = lambda _: None,
    seconds: float = 60.0,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that works on two requests of each kind at once."""
    access = StoreAccess(publish_root=root, poll_seconds=0.01)
    lookup = Lookup(access)
    app = gateway_app.make(
        GraphClient(lookup, cast(Scorer, scorer)),
        access,
        Extensions(append, lambda: load_experiment(root)),
        max_ongoing_requests=IN_WORK,
        timeout_seconds=seconds,
    )
    async with gateway_app.running(app) as client:
        yield client
    lookup.close()


def test_what_is_beyond_the_bound_is_refused_while_the_rest_is_in_work(root: str) -> None:
    async def run() -> None:
        scorer = HeldScorer()
        async with gateway(root, scorer) as client, asyncio.TaskGroup() as tasks:
            taken = [tasks.create_task(client.post("/v1/score", json=BODY)) for _ in range(IN_WORK)]
            await scorer.has(IN_WORK)
            refused = await client.post("/v1/score", json=BODY)
            assert error(refused, 503)["code"] == "overloaded"
            assert refused.headers["Retry-After"] == "1"
            assert not any(task.done() for task in taken)
            scorer.go_on.set()
            assert [(await task).status_code for task in taken] == [200] * IN_WORK

    asyncio.run(run())


def test_events_that_a_disk_keeps_waiting_are_told_of_in_time_and_then_refused_at_once(
    root: str,
) -> None:
    hanging = threading.Event()

    def append(_: Sequence[EventItem]) -> None:
        hanging.wait()

    async def run() -> None:
        async with gateway(root, HeldScorer(held=False), append, seconds=0.2) as client:
            stuck = [client.post("/v1/events", json=[EVENT]) for _ in range(IN_WORK)]
            for answer in await asyncio.gather(*stuck):
                assert error(answer, 503)["code"] == "log_unavailable"
            for _ in range(3):  # the threads are still held
                beyond = await client.post("/v1/events", json=[EVENT])
                assert error(beyond, 503)["code"] == "overloaded"
            hanging.set()
            async with asyncio.timeout(WAIT_SECONDS):
                while (await client.post("/v1/events", json=[EVENT])).status_code != 200:
                    await asyncio.sleep(0.01)

    try:
        asyncio.run(run())
    finally:
        hanging.set()


Ask = Callable[[httpx.AsyncClient], Coroutine[Any, Any, httpx.Response]]
OPERATOR = {"Authorization": f"Bearer {os.environ['REKI_ADMIN_TOKEN']}"}
KINDS: dict[str, Ask] = {
    "score": lambda client: client.post("/v1/score", json=BODY),
    "events": lambda client: client.post("/v1/events", json=[EVENT]),
    "knowledge": lambda client: client.get("/v1/users/u0/knowledge"),
    "versions": lambda client: client.get("/v1/versions"),
    "listing": lambda client: client.get("/v1/admin/versions", headers=OPERATOR),
    "promotion": lambda client: client.post(
        "/v1/admin/promote", json={"version": 1}, headers=OPERATOR
    ),
}


class Hang:
    """Holds one kind of request where it waits for something."""

    def __init__(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held = 0
        self.go_on = threading.Event()
        self.scorer = HeldScorer(held=kind == "score")
        places: dict[str, tuple[type, str, str]] = {
            "versions": (StoreAccess, "arm", "read-versions"),
            "listing": (VersionStore, "manifest", "list-versions"),
            "promotion": (VersionStore, "promote", "promote"),
        }
        if kind in places:
            owner, name, threads = places[kind]
            monkeypatch.setattr(owner, name, self._held(getattr(owner, name), threads))
        if kind == "knowledge":
            monkeypatch.setattr(Lookup, "explain", self._behind)
        self._kind = kind

    def append(self, _: Sequence[EventItem]) -> None:
        if self._kind == "events":
            self._wait()

    def holds(self) -> bool:
        # Promotions go one at a time.
        return self.scorer.asked + self.held >= (1 if self._kind == "promotion" else IN_WORK)

    def end(self) -> None:
        self.go_on.set()
        self.scorer.go_on.set()

    def _wait(self) -> None:
        self.held += 1
        self.go_on.wait()

    def _held(self, original: Callable[..., Any], threads: str) -> Callable[..., Any]:
        def waiting(*args: Any, **named: Any) -> Any:
            if threading.current_thread().name.startswith(threads):
                self._wait()
            return original(*args, **named)

        return waiting

    async def _behind(self, side: Side, subject_id: str, version: int) -> KnowledgeResponse | None:
        self.held += 1
        while not self.go_on.is_set():
            await asyncio.sleep(0.01)
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_of_request_that_hangs_keeps_no_other_waiting(
    root: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        hang = Hang(kind, monkeypatch)
        async with gateway(root, hang.scorer, hang.append) as client:
            stuck = [asyncio.create_task(KINDS[kind](client)) for _ in range(4 * IN_WORK)]
            try:
                await until(hang.holds)
                async with asyncio.timeout(WAIT_SECONDS):
                    for other in KINDS.keys() - {kind}:
                        answer = await KINDS[other](client)
                        assert answer.status_code == 200, (other, answer.text)
                    assert (await client.get("/healthz")).status_code == 200
                    if kind != "score":
                        assert (await client.get("/readyz")).status_code == 200
                    await is_followed(client, root)
            finally:
                hang.end()
                await asyncio.gather(*stuck)

    asyncio.run(run())


async def is_followed(client: httpx.AsyncClient, root: str) -> None:
    """Turn CURRENT by hand, and wait until the gateway has followed, there and back."""
    pointer = Path(root) / CURRENT
    for number in (2, 1):
        pointer.with_suffix(".new").write_text(f"{number}\n")
        pointer.with_suffix(".new").replace(pointer)
        told = f'reki_served_version{{replica="replica",version="v{number}"}} 1.0'
        while told not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.01)


def test_every_end_of_a_request_makes_room_for_the_next_one(root: str) -> None:
    async def run() -> None:
        scorer = HeldScorer()
        async with gateway(root, scorer) as client:
            gone = [
                asyncio.create_task(client.post("/v1/score", json=BODY)) for _ in range(IN_WORK)
            ]
            await scorer.has(IN_WORK)
            for task in gone:
                task.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
            scorer.go_on.set()
            failing = {**BODY, "candidates": ["failing"]}
            for _ in range(IN_WORK + 1):
                found = error(await client.post("/v1/score", json=failing), 503)
                assert found["code"] == "scorer_unavailable"
            assert (await client.post("/v1/score", json=BODY)).status_code == 200

    asyncio.run(run())
