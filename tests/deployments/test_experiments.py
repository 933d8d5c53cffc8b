"""Exposures are under the right experiment, none is lost at the end, and scores need none of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

import httpx
import pytest

from deployments import extensions
from deployments.extensions import open_extensions
from deployments.flows.graph_client import GraphClient
from deployments.graph_args import StoreAccess
from deployments.parts.lookup import Lookup
from deployments.parts.scorer import Scorer
from reki_ray.events.paths import OnlineFolders
from reki_ray.experiments.experiment import EXPERIMENT, start_experiment, stop_experiment
from reki_ray.experiments.exposures import ExposureReader
from reki_ray.store.versions import VersionStore
from tests.deployments.test_overload import BODY, EVENT, HeldScorer, until
from tests.support import gateway_app, store_factory

SHARES = {"base": (1, 0.5), "reki": (2, 0.5)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store = VersionStore(tmp_path / "publish")
    for seed in range(2):
        store.publish(partial(store_factory.fill, seed=seed))
    return store.root


@asynccontextmanager
async def gateway(root: Path, scorer: HeldScorer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway with all that a graph has beyond versions."""
    access = StoreAccess(publish_root=str(root), poll_seconds=0.01)
    lookup = Lookup(access)
    extensions = open_extensions(access, "replica")
    app = gateway_app.make(GraphClient(lookup, cast(Scorer, scorer)), access, extensions)
    async with gateway_app.running(app) as client:
        yield client
    lookup.close()


async def variants(client: httpx.AsyncClient) -> list[str]:
    found = (await client.get("/v1/versions")).json()["variants"]
    return [part["name"] for part in found]


async def runs(client: httpx.AsyncClient, *names: str) -> None:
    async with asyncio.timeout(30):
        while await variants(client) != list(names):
            await asyncio.sleep(0.01)


def logged(root: Path) -> list[tuple[str, str, str]]:
    reader = ExposureReader(OnlineFolders.beside(root).exposures)
    return [(one.request_id, one.experiment, one.variant) for one in reader.read()]


def test_an_exposure_names_the_experiment_that_its_request_began_under(root: Path) -> None:
    async def run() -> None:
        scorer = HeldScorer()
        start_experiment(root, "first", SHARES)
        async with gateway(root, scorer) as client:
            asked = [
                asyncio.create_task(client.post("/v1/score", json={**BODY, "user_id": f"u{k}"}))
                for k in range(20)
            ]
            await scorer.has(20)
            stop_experiment(root)
            start_experiment(root, "second", {"other": (1, 0.5), "further": (2, 0.5)})
            await runs(client, "other", "further")
            scorer.go_on.set()
            assert {(await one).status_code for one in asked} == {200}
            assert (await client.post("/v1/score", json=BODY)).status_code == 200

    asyncio.run(run())
    found = logged(root)
    assert Counter(experiment for _, experiment, _ in found) == {"first": 20, "second": 1}
    assert {variant for _, experiment, variant in found if experiment == "first"} <= {
        "base",
        "reki",
    }


def test_no_exposure_is_lost_at_the_end_of_a_gateway(root: Path) -> None:
    async def run() -> list[str]:
        start_experiment(root, "first", SHARES)
        async with gateway(root, HeldScorer(held=False)) as client:
            await runs(client, "base", "reki")
            answers = [await client.post("/v1/score", json=BODY) for _ in range(300)]
        return [answer.json()["request_id"] for answer in answers]

    answered = asyncio.run(run())
    assert [request_id for request_id, _, _ in logged(root)] == answered


def test_a_log_with_a_defect_fails_no_answer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object, **__: object) -> None:
        raise KeyError("u0")

    monkeypatch.setattr("reki_ray.experiments.exposures.ExposureLog.append", defect)

    async def run() -> None:
        start_experiment(root, "first", SHARES)
        async with gateway(root, HeldScorer(held=False)) as client:
            await runs(client, "base", "reki")
            assert (await client.post("/v1/score", json=BODY)).status_code == 200
            metrics = (await client.get("/metrics")).text
            assert 'reki_exposures_total{outcome="dropped",replica="replica"} 1.0' in metrics

    asyncio.run(run())


def test_a_disk_that_hangs_keeps_no_gateway_from_ending(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.gateway.CLOSE_SECONDS", 0.1)
    monkeypatch.setattr("reki_ray.events.segments.SegmentWriter.append", lambda *_: time.sleep(3))

    async def run() -> None:
        start_experiment(root, "first", SHARES)
        async with gateway(root, HeldScorer(held=False)) as client:
            await runs(client, "base", "reki")
            await client.post("/v1/score", json=BODY)

    asyncio.run(run())


def test_scores_need_no_folder_for_events_and_exposures(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extensions, "OPEN_SECONDS", 0.01)
    folder = OnlineFolders.beside(root).root
    folder.write_text("not a folder")

    async def run() -> None:
        start_experiment(root, "first", SHARES)
        async with gateway(root, HeldScorer(held=False)) as client:
            await runs(client, "base", "reki")
            assert (await client.post("/v1/score", json=BODY)).status_code == 200
            refused = await client.post("/v1/events", json=[EVENT])
            assert refused.json()["error"]["code"] == "log_unavailable"
            metrics = (await client.get("/metrics")).text
            assert 'reki_exposures_total{outcome="dropped",replica="replica"} 1.0' in metrics
            folder.unlink()
            assert (await client.post("/v1/events", json=[EVENT])).status_code == 200
            await until(OnlineFolders.beside(root).exposures.is_dir)
            async with asyncio.timeout(30):
                while not logged(root):
                    await client.post("/v1/score", json=BODY)
                    await asyncio.sleep(0.05)

    asyncio.run(run())


@pytest.mark.parametrize("content", [b"", b"{", b'{"name": "x"}', b"\xff\xfe"])
def test_a_gateway_starts_beside_a_damaged_experiment(root: Path, content: bytes) -> None:
    (root / EXPERIMENT).write_bytes(content)

    async def run() -> None:
        async with gateway(root, HeldScorer(held=False)) as client:
            answer = await client.post("/v1/score", json=BODY)
            assert (answer.status_code, answer.json()["variant"]) == (200, "reki_c")
            (root / EXPERIMENT).unlink()
            start_experiment(root, "first", SHARES)
            await runs(client, "base", "reki")
            (root / EXPERIMENT).write_bytes(content)  # the last good one goes on
            VersionStore(root).promote(1)
            for _ in range(20):
                assert (await client.post("/v1/score", json=BODY)).json()["variant"] in SHARES
                await asyncio.sleep(0.01)
            async with asyncio.timeout(30):
                while (await client.get("/v1/versions")).json()["current"] != 1:
                    await asyncio.sleep(0.01)

    asyncio.run(run())
