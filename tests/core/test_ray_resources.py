"""What is asked of a cluster is what it can have, also by starting nodes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray._private.state import state

from reki_ray.config import EncodeConfig, ExtractConfig, RayConfig, ScriptedEngine, TrainConfig
from reki_ray.core import ray_cluster
from reki_ray.errors import ConfigError, EngineError
from reki_ray.extraction.engines.scripted import ScriptedBatchEngine
from reki_ray.stages import encode, train
from reki_ray.tuning import search
from tests.contracts import engine_contract as contract

ROOT = Path(__file__).parents[2]
NOW = {"CPU": 2.0}


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small cluster whose autoscaler may start a node with GPUs."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: NOW)
    most = {"CPU": 33, "GPU": 4}
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: most)


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small cluster without an autoscaler."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: NOW)
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: None)


def requests() -> dict[str, Any]:
    """Each way in which something large is asked for."""
    cuda = TrainConfig(device="cuda", workers=2)
    encoders = EncodeConfig(min_replicas=8, max_replicas=8)
    on_gpus = EncodeConfig(min_replicas=2, max_replicas=2, device="cuda")
    return {
        "train": lambda: train._scaling(cuda),
        "tune": lambda: search._resources(cuda, 2),
        "encode": lambda: encode._require_resources(encoders),
        "encode on GPUs": lambda: encode._require_resources(on_gpus),
    }


@pytest.mark.usefixtures("growing")
@pytest.mark.parametrize("name", requests())
def test_what_the_cluster_can_grow_to_may_be_asked_for(name: str) -> None:
    requests()[name]()
    assert ray_cluster.cpu_share(4) == 1.0


@pytest.mark.usefixtures("fixed")
@pytest.mark.parametrize("name", requests())
def test_what_it_can_never_have_is_refused_at_once(name: str) -> None:
    with pytest.raises(EngineError, match="the cluster has"):
        requests()[name]()
    assert ray_cluster.cpu_share(4) == 0.25


def test_the_launchers_file_says_what_can_be_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ray_cluster.startable(RayConfig()) == {}
    cluster = {
        "max_workers": 4,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 9},
            "cpu": {"resources": {"CPU": 2}, "max_workers": 1},
        },
    }
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(cluster))
    assert ray_cluster.startable(RayConfig()) == {"CPU": 34.0, "GPU": 4.0}
    assert ray_cluster.startable(RayConfig(max_resources={"GPU": 2})) == {"GPU": 2}
    monkeypatch.setattr(ray, "cluster_resources", lambda: NOW)
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: None)
    monkeypatch.setattr(ray_cluster, "_startable", ray_cluster.startable(RayConfig()))
    assert ray_cluster.capacity() == {"CPU": 34.0, "GPU": 4.0}
    (tmp_path / "ray_bootstrap_config.yaml").write_text("available_node_types: [")
    with pytest.raises(ConfigError, match=r"(?s)not valid YAML.*ray_bootstrap_config"):
        ray_cluster.startable(RayConfig())


def test_nothing_else_asks_what_the_cluster_has_now() -> None:
    asking = {
        str(path.relative_to(ROOT))
        for folder in ("reki_ray", "actors", "deployments")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"cluster_resources\(|available_resources\(", path.read_text("utf-8"))
    }
    # `reki doctor` tells what is there.
    assert asking == {"reki_ray/core/ray_cluster.py", "reki_ray/cli/doctor.py"}


@pytest.mark.parametrize(
    ("units", "gpus", "pool", "running", "given"),
    [
        (1, 8, 1, 1, 1),
        (3, 8, 2, 2, 2),  # a second engine long before 14 units, and work for it
        (6, 8, 3, 2, 2),
        (13, 8, 4, 4, 4),
        (100, 8, 4, 8, 9),
        (100, 2, 2, 8, 9),
        (100, 0, 1, 8, 9),
    ],
)
def test_a_pool_is_as_large_as_its_queue_is_worth(  # one row per case
    units: int, gpus: int, pool: int, running: int, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "capacity", lambda: {"CPU": 64.0, "GPU": float(gpus)})
    config = ExtractConfig(max_replicas=4, unit_rows=64, prompts_in_flight=512)
    engine = ScriptedBatchEngine(ScriptedEngine(), config, contract.template())
    engine.demand = {"CPU": 1.0, "GPU": 1.0}
    engine.expect(units)
    assert engine.pool == pool
    assert engine.unit_limits(engine.units_in_flight) == (running, given)
