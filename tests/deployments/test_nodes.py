"""Graphs on two nodes over one S3 server, which share no folder."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from deployments.extensions import open_extensions
from deployments.flows.graph_client import GraphClient
from deployments.gateway import build_api
from deployments.graph_args import GraphArgs, OnlineArgs
from deployments.middleware.metrics import GatewayMetrics
from deployments.parts.item_lists import Retriever
from deployments.parts.lookup import Lookup
from deployments.parts.scorer import Scorer
from reki_ray.config.edge import EdgeSettings
from reki_ray.events.paths import OnlineFolders
from reki_ray.experiments.analysis import ab
from reki_ray.experiments.experiment import load_experiment, start_experiment, stop_experiment
from reki_ray.experiments.exposures import ExposureReader
from reki_ray.store.versions import VersionStore
from tests.support import s3_server, store_factory
from tests.support.s3_server import BUCKET
from tests.support.store_factory import ITEM_IDS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Published by a node that is not one of the two; versions 1 and 2, 2 is promoted."""
    with s3_server.s3_server() as address:
        s3_server.use(monkeypatch, address)
        monkeypatch.setenv("REKI_CACHE", str(tmp_path / "publisher"))
        root = f"s3://{BUCKET}/{uuid.uuid4().hex}/publish"
        for seed in range(2):
            VersionStore(root).publish(partial(store_factory.fill, seed=seed, retrieval=True))
        yield root


Node = Callable[[str], Any]


@pytest.fixture
def node(root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Node:
    """Runs a graph as on a node of this name."""

    @contextmanager
    def run(name: str) -> Iterator[TestClient]:
        monkeypatch.setenv("REKI_CACHE", str(tmp_path / name / "cache"))
        monkeypatch.setenv("REKI_STATE", str(tmp_path / name / "state"))
        args = GraphArgs(
            publish_root=root,
            timeout_seconds=60,
            edge=EdgeSettings(allow_anonymous=True, request_logs=False, rate_per_second=None),
            poll_seconds=0.1,
        ).resolved()
        with ExitStack() as stack:
            parts = Lookup(args, OnlineArgs()), Scorer(args, 4), Retriever(args)
            for part in parts:
                stack.callback(part.close)
            extensions = open_extensions(args, f"replica#{name}")
            app = build_api(GraphClient(*parts), args, GatewayMetrics("replica"), extensions)
            yield stack.enter_context(
                TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 4000))
            )

    return run


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def recommended(client: TestClient) -> set[str]:
    answer = client.post("/v1/recommend", json={"user_id": "nobody", "k": 12})
    assert answer.status_code == 200, answer.text
    return {item["item_id"] for item in answer.json()["items"]}


def test_an_event_at_one_node_is_in_the_next_answer_of_another(node: Node) -> None:
    with node("a") as a, node("b") as b:
        assert recommended(b) == set(ITEM_IDS)
        event = {"user_id": "nobody", "item_id": "m3", "event": "click", "timestamp": 5}
        assert a.post("/v1/events", json=[event]).status_code == 200
        wait_for(lambda: recommended(b) == set(ITEM_IDS) - {"m3"})
    # Also on a node that comes later, and has no folder yet.
    with node("c") as c:
        assert recommended(c) == set(ITEM_IDS) - {"m3"}


def test_a_promotion_at_one_node_is_followed_by_another(root: str, node: Node) -> None:
    with node("a") as a, node("b") as b:
        assert b.get("/v1/versions").json()["current"] == 2
        VersionStore(root).promote(1)
        for client in (a, b):
            wait_for(
                partial(lambda client: client.get("/v1/versions").json()["current"] == 1, client)
            )


def test_an_experiment_counts_what_all_nodes_showed(root: str, node: Node) -> None:
    started = start_experiment(root, "both", {"one": (1, 0.5), "two": (2, 0.5)})
    assert load_experiment(root) == started
    shown = 0
    with node("a") as a, node("b") as b:
        for client in (a, b):
            wait_for(
                partial(
                    lambda client: len(client.get("/v1/versions").json()["variants"]) == 2, client
                )
            )
            for user in ("u0", "u1", "u3"):
                body = {"user_id": user, "candidates": ["m1", "m2"]}
                assert client.post("/v1/score", json=body).status_code == 200
                shown += 1
    folders = OnlineFolders.beside(root)  # of b, which has brought those of a
    assert len(list(ExposureReader(folders.exposures).read())) <= shown
    result = ab(root, "both", since=0)
    assert sum(variant.users for variant in result.variants) == 3
    assert sum(variant.exposures for variant in result.variants) == 2 * shown
    assert stop_experiment(root).ended_at is not None
    assert load_experiment(root) is None
    assert load_experiment(root, "both") is not None
