"""Stage serve measures the graph, checks its scores, and leaves nothing running."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from ray import serve

from reki_ray.progress import Reporter
from reki_ray.serving import stage
from reki_ray.store.versions import VersionStore
from reki_ray.workspace import Workspace
from tests import store_factory
from tests.conftest import TinyConfig


@pytest.mark.slow  # the test of the whole chain has the stage too
@pytest.mark.parametrize("knowledge", [True, False])
def test_the_stage_measures_and_stops(
    workspace: Workspace,
    reporter: Reporter,
    tiny_config: TinyConfig,
    ray_local: None,
    knowledge: bool,
) -> None:
    store = VersionStore(Path(workspace.root) / "publish")
    store.publish(partial(store_factory.fill, knowledge=knowledge))
    result = stage.run(tiny_config(), workspace, reporter)
    assert result.rows_in == result.rows_out == 20
    details = result.details
    assert details["candidates"] == 10
    assert details["max_score_difference"] <= 1e-5
    assert details["p50_ms"] <= details["p99_ms"]
    assert details["requests_per_second"] > 0
    assert len(details["latencies_ms"]) == 10
    example = details["example"]
    assert [entry["item_id"] for entry in example["response"]["scores"]] == example["request"][
        "candidates"
    ]
    assert example["response"]["variant"] == ("reki_c" if knowledge else "fair_base")
    assert not serve.status().proxies
