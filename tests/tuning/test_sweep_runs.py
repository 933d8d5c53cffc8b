"""`reki sweep` on a real Ray: clusters of each setting, then arms too, sharing the ledgers."""

from __future__ import annotations

from pathlib import Path

import pytest

from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.extraction.answer_cache import LEDGER
from reki_ray.tuning.sweep import PLOT, RESULT, sweep
from tests.conftest import TinyConfig

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]


@pytest.mark.slow
def test_settings_are_compared_and_a_plot_is_kept(
    tiny_config: TinyConfig, workspace: Workspace
) -> None:
    vary = ["cluster.items.min_cluster_size=4,12"]
    config = tiny_config()
    fine, coarse = sweep(config, vary, "cluster", Reporter(quiet=True))
    assert fine.items.clusters > coarse.items.clusters
    assert fine.calls_saved < coarse.calls_saved < 1
    assert coarse.items.smallest >= 12
    assert not fine.arms
    kept = workspace.read_json(RESULT)["points"]
    assert [point["items"]["clusters"] for point in kept] == [
        fine.items.clusters,
        coarse.items.clusters,
    ]
    assert Path(workspace.path(PLOT)).read_text().startswith("<svg")


@pytest.mark.slow
def test_arms_are_measured_and_what_settings_share_is_asked_once(
    tiny_config: TinyConfig, workspace: Workspace
) -> None:
    vary = ["cluster.items.min_cluster_size=4,12"]
    config = tiny_config()
    for point in sweep(config, vary, "evaluate", Reporter(quiet=True)):
        assert [arm["arm"] for arm in point.arms] == ["fair_base", "reki_c"]
        assert all(0 <= arm["auc"] <= 1 for arm in point.arms)
    asked = len(workspace.read_table(LEDGER))
    assert asked > 0
    sweep(config, [*vary, "train.epochs=1"], "evaluate", Reporter(quiet=True))
    assert len(workspace.read_table(LEDGER)) == asked
