"""`reki sweep`: which settings it runs, and what it refuses before the first run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from reki_ray.cli.views.trials import sweep_table
from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.errors import ConfigError
from reki_ray.evaluation import plots
from reki_ray.tuning.sweep import Point, SideFigures, sweep, variants
from tests.conftest import TinyConfig


def test_every_combination_is_a_run_of_its_own(tiny_config: TinyConfig) -> None:
    vary = ["cluster.users.min_cluster_size=4,8", "cluster.method=kmeans,streakhc"]
    found = list(variants(tiny_config(), vary))
    assert [list(changes.values()) for changes, _ in found] == [
        [4, "kmeans"],
        [4, "streakhc"],
        [8, "kmeans"],
        [8, "streakhc"],
    ]
    assert [(c.cluster.users.min_cluster_size, c.cluster.method) for _, c in found] == [
        (4, "kmeans"),
        (4, "streakhc"),
        (8, "kmeans"),
        (8, "streakhc"),
    ]
    assert len({config.root for _, config in found}) == 4
    assert all(config.root.startswith(f"{tiny_config().root}/sweep/") for _, config in found)


@pytest.mark.parametrize(
    ("vary", "told"),
    [
        ("cluster.users.min_cluster_size", "names no values"),
        ("cluster.users.size=4", "there is no setting"),
        ("cluster.users.min_clusters=4", "the nearest is 'cluster.users.min_cluster_size'"),
        ("cluster.method=[kmeans", "are not YAML"),
        ("cluster.users.min_cluster_size.deep=4", "there is no setting"),
        ("cluster.users.min_cluster_size=1", "min_cluster_size"),
        ("cluster.method=forest", "method"),
    ],
)
def test_a_wrong_setting_is_told(tiny_config: TinyConfig, vary: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        list(variants(tiny_config(), [vary]))
    assert told in caught.value.what


def test_a_sweep_ends_at_a_stage_that_has_figures(tiny_config: TinyConfig) -> None:
    config: RekiConfig = tiny_config()
    with pytest.raises(ConfigError, match="a sweep ends at"):
        sweep(config, [], "publish", Reporter(quiet=True))


def test_arms_without_an_auc_are_shown_without_one() -> None:
    side = SideFigures(
        ids=4, clusters=2, calls_saved=0.5, mean_similarity=0.9, smallest=1, median=2, largest=3
    )
    entry = {"arm": "reki_c", "auc": None, "auc_ci": None, "delta_auc": None, "delta_ci": None}
    measured = {**entry, "arm": "base", "auc": 0.7, "auc_ci": [0.6, 0.8]}
    points = [Point(changes={}, workspace="w", arms=[entry, measured], users=side, items=side)]
    stream = io.StringIO()
    Console(file=stream, width=200).print(sweep_table(points))
    assert "reki_c: AUC - " in stream.getvalue()
    assert plots.sweep([("as configured", points[0])]).startswith("<svg")
