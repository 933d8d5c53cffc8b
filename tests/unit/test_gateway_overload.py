"""The bound of the requests that a gateway has in work: one more is refused at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from deployments.api import GatewaySettings
from deployments.backend import LocalBackend
from deployments.gateway import Extensions, build_api
from deployments.lookup import Lookup
from deployments.messages import Scores, UserRecord
from deployments.metrics import GatewayMetrics
from deployments.schemas import EventItem
from deployments.versions import StoreAccess
from reki_ray.config.edge import EdgeSettings
from reki_ray.errors import StoreError
from reki_ray.store.versions import VersionStore
from tests import store_factory
from tests.edge_app import error

IN_WORK = 2
BODY = {"user_id": "u0", "candidates": ["m1"]}
EVENT = {"user_id": "u0", "item_id": "m1", "event": "click", "timestamp": 1}


class HeldScorer:
    """Answers when it is let go; fails for an item of that name."""

    def __init__(self) -> None:
        self.asked = 0
        self.go_on = asyncio.Event()

    async def prepare(self, version: int) -> None:
        """Nothing to load."""

    async def score(self, user: UserRecord, candidates: Sequence[str], version: int) -> Scores:
        self.asked += 1
        await self.go_on.wait()
        if "failing" in candidates:
            raise StoreError("misfit", where="v1", todo="Publish again.")
        return Scores([0.5], ["cluster"], "cluster", False, "reki_c", "abc", "v1")

    async def has(self, asked: int) -> None:
        async with asyncio.timeout(30):
            while self.asked < asked:
                await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("overload") / "publish"
    VersionStore(folder).publish(store_factory.fill)
    return str(folder)


@asynccontextmanager
async def gateway(root: str, scorer: HeldScorer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that works on two requests at once."""

    def append(_: Sequence[EventItem]) -> None:
        """Events are as good as durable."""

    access = StoreAccess(publish_root=root)
    lookup = Lookup(access)
    app = build_api(
        LocalBackend(lookup, scorer),
        access,
        GatewaySettings(
            max_ongoing_requests=IN_WORK,
            timeout_seconds=60,
            edge=EdgeSettings(allow_anonymous=True, request_logs=False),
        ),
        GatewayMetrics("replica"),
        Extensions(append),
    )
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        yield client
    lookup.close()


def test_what_is_beyond_the_bound_is_refused_while_the_rest_is_in_work(root: str) -> None:
    async def run() -> None:
        scorer = HeldScorer()
        async with gateway(root, scorer) as client, asyncio.TaskGroup() as tasks:
            taken = [tasks.create_task(client.post("/v1/score", json=BODY)) for _ in range(IN_WORK)]
            await scorer.has(IN_WORK)
            for path, body in (("/v1/score", BODY), ("/v1/events", [EVENT])):
                refused = await client.post(path, json=body)
                assert error(refused, 503)["code"] == "overloaded"
                assert refused.headers["Retry-After"] == "1"
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/v1/users/u0/knowledge")).status_code == 200
            assert not any(task.done() for task in taken)
            scorer.go_on.set()
            assert [(await task).status_code for task in taken] == [200] * IN_WORK
            assert (await client.post("/v1/events", json=[EVENT])).status_code == 200

    asyncio.run(run())


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
