"""`reki tune` on a real Ray: validation alone, nothing twice, settings that a run then takes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from reki_ray.config import RekiConfig
from reki_ray.config.files import read_tuned
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.errors import DataError
from reki_ray.stages import pipeline
from reki_ray.stages import train as train_stage
from reki_ray.training import runs
from reki_ray.training.dataset import read_dataset
from reki_ray.tuning import space
from reki_ray.tuning.search import search
from reki_ray.tuning.searcher import open_study
from tests.conftest import TinyConfig

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

SPACE: dict[str, Any] = {
    "learning_rate": {"loguniform": [1e-3, 5e-2]},
    "network.mlp": {"choice": [[8], [16, 8]]},
    "gate.items": {"choice": [None, 5.0]},
}


def config_of(tiny_config: TinyConfig, trials: int, **train: Any) -> RekiConfig:
    small = {"network": {"embedding": 8, "attention": [8]}, "hein": {"output": 8}, "epochs": 2}
    return tiny_config(
        train={**small, "arms": ["fair_base"], **train},
        tune={"trials": trials, "space": SPACE, "only": list(SPACE)},
    )


def ingested(config: RekiConfig) -> Workspace:
    workspace = Workspace(config.root)
    pipeline.run_stages(config, pipeline.select(only="ingest"), Reporter(quiet=True))
    return workspace


@pytest.mark.slow
def test_search_resumes_and_never_reads_the_test_split(
    tiny_config: TinyConfig, reporter: Reporter, tmp_path: Path
) -> None:
    out = tmp_path / "tuned"
    two = config_of(tiny_config, 2)
    workspace = ingested(two)
    shutil.rmtree(workspace.local_path("ingest/samples/test"))
    with pytest.raises(DataError):
        read_dataset(workspace)

    [first] = search(two, "fair_base", reporter, out=out)
    assert [trial.status for trial in first.trials] == ["done", "done"]
    assert first.configured is not None
    assert first.configured.settings == space.values(two.train, first.space)
    assert set(first.space) == {"learning_rate", "network.mlp"}  # a base arm has no gate
    assert not list(workspace.local_path(".tune").iterdir())

    [again] = search(two, "fair_base", reporter, out=out)
    assert again.trials == first.trials
    [more] = search(config_of(tiny_config, 3), "fair_base", reporter, out=out)
    assert more.trials[:2] == first.trials
    assert len({str(trial.settings) for trial in more.trials}) == 3
    kept = more.model_copy(update={"trials": []})
    with open_study(kept, workspace):
        assert kept == more

    tuned = yaml.safe_load((out / "din.yaml").read_text())
    assert tuned["din"]["learning_rate"] == more.best.settings["learning_rate"]
    run = runs.Run("din", "fair_base", more.seed)
    plain, with_tuned = two.train, config_of(tiny_config, 2, tuned=read_tuned(out)).train
    assert with_tuned.of("din") == space.with_settings(plain, "din", more.best.settings)
    same = more.best.configured
    assert (runs.fingerprint(plain, run, []) == runs.fingerprint(with_tuned, run, [])) == same


@pytest.mark.slow
def test_a_trial_that_diverges_counts_as_tried_and_never_as_best(
    tiny_config: TinyConfig, reporter: Reporter
) -> None:
    space = {"gradient_clip": {"choice": [5.0, 1e30]}, "learning_rate": {"choice": [1e-2, 1e30]}}
    small = {"network": {"embedding": 8, "attention": [8]}, "hein": {"output": 8}, "epochs": 2}
    config = tiny_config(
        train={**small, "arms": ["fair_base"], "learning_rate": 1e30, "gradient_clip": 1e30},
        tune={"trials": 4, "space": space, "only": list(space), "stopper": "asha"},
    )
    ingested(config)
    [found] = search(config, "fair_base", reporter)
    assert len(found.trials) == len(found.tried) == 4
    worst = found.trials[0]
    assert (worst.status, worst.quality) == ("diverged", None)
    assert worst.error.startswith("diverged in epoch 1: ")
    assert found.best.settings["learning_rate"] == 1e-2
    [again] = search(config, "fair_base", reporter)
    assert again.trials == found.trials


@pytest.mark.slow
def test_tuned_settings_are_those_of_their_backbone_alone(
    tiny_config: TinyConfig, reporter: Reporter
) -> None:
    own = {"dcnv2": {"history": 5, "epochs": 1, "network": {"embedding": 4}, "hein": {"output": 4}}}
    train = {"backbones": ["din", "dcnv2"], "seeds": [0]}
    plain = config_of(tiny_config, 1, **train)
    workspace = ingested(plain)
    train_stage.run(plain, workspace, reporter)
    before = workspace.read_json("train/din-fair_base-0/metrics.json")
    train_stage.run(config_of(tiny_config, 1, **train, tuned=own), workspace, reporter)
    assert workspace.read_json("train/din-fair_base-0/metrics.json") == before
    bundle = runs.read_bundle(workspace, runs.Run("dcnv2", "fair_base", 0))
    assert (bundle.history, bundle.architecture.network.embedding) == (5, 4)
    assert len(workspace.read_json("train/dcnv2-fair_base-0/metrics.json")["epochs"]) == 1
