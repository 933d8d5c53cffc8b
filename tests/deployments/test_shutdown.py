"""A graph that is shut down, or replaced, loses nothing that it has acknowledged or shown."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import httpx
import pytest

from reki_ray.events.log import EventReader
from reki_ray.events.paths import OnlineFolders
from reki_ray.experiments.experiment import start_experiment
from reki_ray.experiments.exposures import ExposureReader
from reki_ray.store.versions import VersionStore
from tests.support import store_factory
from tests.support.live_graph import make_config, running, wait_until
from tests.support.live_load import BODY

pytestmark = [pytest.mark.serve, pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(900)]

ANSWERS = 200


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store = VersionStore(tmp_path / "publish")
    for seed in range(2):
        store.publish(partial(store_factory.fill, seed=seed))
    start_experiment(store.root, "first", {"base": (1, 0.5), "reki": (2, 0.5)})
    return tmp_path


def use(client: httpx.Client) -> list[str]:
    """Score and send events at full speed; returns the ids of the answers."""
    answered = []
    for number in range(ANSWERS):
        answer = client.post("/v1/score", json={**BODY, "user_id": f"u{number}"})
        assert answer.status_code == 200, answer.text
        answered.append(answer.json()["request_id"])
        event = {"user_id": "u0", "item_id": "m1", "event": "click", "timestamp": number}
        assert client.post("/v1/events", json=[event]).status_code == 200
    return answered


@pytest.mark.parametrize("ingress", ["haproxy", "serve"])
def test_what_was_shown_last_is_logged(root: Path, ingress: str) -> None:
    folders = OnlineFolders.beside(root / "publish")
    config = make_config(root, ingress=ingress, graph="fused")
    with running(config) as graph, graph.client() as client:
        wait_until(lambda: client.get("/v1/versions").json()["variants"])
        answered = use(client)
        before = graph.replicas()
        graph.update(make_config(root, ingress=ingress, graph="fused", max_candidates=99))
        wait_until(lambda: not set(before) & set(graph.replicas()))
        wait_until(lambda: client.get("/v1/versions").json()["variants"])
        answered += use(client)
    logged = [one.request_id for one in ExposureReader(folders.exposures).read()]
    assert sorted(logged) == sorted(answered)
    assert len(list(EventReader(folders.events).read())) == 2 * ANSWERS
