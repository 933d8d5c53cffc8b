"""Stage serve measures the graph, checks its scores, and leaves nothing running."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from ray import serve

from deployments import load_check
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.store.versions import VersionStore
from tests.conftest import TinyConfig
from tests.support import store_factory

pytestmark = pytest.mark.serve


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
    result = load_check.run(tiny_config(), workspace, reporter)
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
