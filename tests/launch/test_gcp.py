"""launch/gcp.yaml: Ray's schema, the images, and what the autoscaler executes on a worker.

Not covered: Google Cloud itself. Its client is no requirement here and there is no stand-in for it,
so that instances, disks and accounts of the file are only read.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
from ray.core.generated.instance_manager_pb2 import Instance  # type: ignore[attr-defined]

from reki_ray.config import load_config
from tests.support.launched_hosts import LaunchedHosts

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "launch/gcp.yaml").read_text(encoding="utf-8")
AWS: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


class _OneNode(NodeProvider):
    """A provider of one running node, named by its address."""

    def __init__(self) -> None:
        super().__init__({"type": "gcp"}, "reki-ray")
        self.tags: dict[str, str] = {}

    def is_terminated(self, node_id: str) -> bool:
        return False

    def node_tags(self, node_id: str) -> dict[str, str]:
        return dict(self.tags)

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        self.tags |= tags

    def internal_ip(self, node_id: str) -> str:
        return node_id


@pytest.fixture
def cluster() -> dict[str, Any]:
    return dict(yaml.safe_load(TEXT))


def test_passes_rays_schema_check(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_is_the_cluster_of_aws_elsewhere(cluster: dict[str, Any]) -> None:
    for key in ("file_mounts", "rsync_exclude", "head_start_ray_commands", "max_workers"):
        assert cluster[key] == AWS[key]
    assert cluster["worker_start_ray_commands"] == AWS["worker_start_ray_commands"]
    assert cluster["docker"]["run_options"] == AWS["docker"]["run_options"]
    assert cluster["available_node_types"].keys() == AWS["available_node_types"].keys()
    assert cluster["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_gpus_are_those_of_the_configuration(cluster: dict[str, Any]) -> None:
    gpu = cluster["available_node_types"]["gpu_worker"]
    config = load_config(ROOT / "configs/movielens-1m.yaml")
    assert gpu["max_workers"] * gpu["resources"]["GPU"] == config.extract.max_replicas
    assert gpu["node_config"]["scheduling"]["onHostMaintenance"] == "TERMINATE"
    for node in cluster["available_node_types"].values():
        assert node["node_config"]["serviceAccounts"]


def test_names_to_replace_are_named() -> None:
    head = TEXT.partition("cluster_name:")[0]
    for name in ("my-project", "my-bucket", "reki-ray@my-project.iam.gserviceaccount.com"):
        assert f"`{name}`" in head


@pytest.mark.parametrize("kind", ["cpu_worker", "gpu_worker"])
def test_autoscaler_executes_its_commands(
    cluster: dict[str, Any], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("secret", encoding="utf-8")
    monkeypatch.chdir(ROOT)
    config = AutoscalingConfig(cluster)
    assert f":ray{metadata.version('ray')}" in config.get_docker_config(kind)["image"]
    hosts, provider = LaunchedHosts(tmp_path / "hosts"), _OneNode()
    RayInstaller(provider, config, hosts).install_ray(
        Instance(instance_type=kind, cloud_instance_id="10.0.0.2"), "10.0.0.1"
    )
    assert hosts.failures == []
    login, stop, start = hosts.calls("10.0.0.2")
    assert login.startswith("gcloud auth configure-docker")
    assert stop == "ray stop"
    assert start.startswith("ray start --address=10.0.0.1:6379")
    assert ("--gpus all" in hosts.docker("10.0.0.2", "run")[0]) == (kind == "gpu_worker")
