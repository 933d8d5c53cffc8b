"""Updates of a served graph under load: nobody notices one, and a bad one leaves the old graph.

Slow: an update brings up a second generation of replicas, and one that fails does so three times.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reki_ray.store.versions import VersionStore
from tests.support import store_factory
from tests.support.live_graph import LiveGraph, make_config, running
from tests.support.live_load import BODY, Load, Truth

pytestmark = [pytest.mark.serve, pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(900)]

GRAPHS = [("composed", "haproxy"), ("composed", "serve"), ("fused", "haproxy")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("updates")
    VersionStore(folder / "publish").publish(store_factory.fill)
    return folder


@pytest.fixture(scope="module", params=GRAPHS, ids="-".join)
def made_of(request: pytest.FixtureRequest) -> dict[str, Any]:
    graph, ingress = request.param
    return {"graph": graph, "ingress": ingress}


@pytest.fixture(scope="module")
def graph(root: Path, made_of: dict[str, Any]) -> Iterator[LiveGraph]:
    # One replica each: the case in which an update can leave nobody to answer.
    with running(make_config(root, **made_of)) as graph:
        yield graph


def test_an_update_costs_no_request(graph: LiveGraph, root: Path, made_of: dict[str, Any]) -> None:
    before = graph.replicas()
    with Load(graph).running() as load:
        changed = {"max_candidates": 15, "max_batch_size": 8, "gateway_replicas": 2}
        graph.update(make_config(root, **made_of, **changed))
        load.wait_for_more()
        assert not set(before) & set(graph.replicas())
    Truth(root, 1).check(load.answers)
    assert not any(answer.repeated for answer in load.answers)
    with graph.client() as client:
        many = {**BODY, "candidates": ["m1"] * 16}
        assert client.post("/v1/score", json=many).status_code == 422


def test_an_update_that_does_not_come_up_leaves_the_old_graph(
    graph: LiveGraph, root: Path, made_of: dict[str, Any]
) -> None:
    # A gateway without the token that it is to ask for ends at its start.
    tokens = {"token_env": "REKI_NO_SUCH_TOKEN"}
    before = graph.replicas()
    with Load(graph).running() as load:
        with pytest.raises(RuntimeError, match="does not start"):
            graph.update(make_config(root, **made_of, edge=tokens))
        load.wait_for_more()
        assert set(before) & set(graph.replicas())
        graph.update(make_config(root, **made_of))
    Truth(root, 1).check(load.answers)
    assert not any(answer.repeated for answer in load.answers)
