"""cluster.yaml, as Ray's launcher and autoscaler read and execute it, against moto's AWS."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import boto3
import click
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private import commands
from ray.autoscaler._private.aws import node_provider
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
from ray.core.generated.instance_manager_pb2 import Instance  # type: ignore[attr-defined]
from ray.scripts.scripts import cli as ray_cli
from typer.main import get_command

from reki_ray.cli.main import app
from reki_ray.config import load_config
from tests.support.launched_hosts import LaunchedHosts

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
AWS_REGION = "us-west-2"


class _Template(yaml.SafeLoader):
    """Reads CloudFormation's short forms: `!Ref X` as {"Ref": "X"}."""


def _short_form(tag: str, loader: yaml.SafeLoader, node: yaml.ScalarNode) -> dict[str, str]:
    return {tag: node.value}


for _tag in ("Ref", "Sub", "GetAtt"):
    _Template.add_constructor(f"!{_tag}", partial(_short_form, _tag))
RESOURCES: dict[str, Any] = yaml.load(
    (ROOT / "launch/aws/resources.yaml").read_text(encoding="utf-8"), _Template
)["Resources"]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return dict(yaml.safe_load(TEXT))


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An AWS account with the resources of launch/aws; yields the home of who starts clusters."""
    home = tmp_path / "operator"
    for name in (".ray", ".ssh"):
        (home / name).mkdir(parents=True)
    (home / ".ray/auth_token").write_text("secret", encoding="utf-8")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(node_provider, "TAG_BATCH_DELAY", 0)  # else a second for every tag
    monkeypatch.chdir(ROOT)
    with mock_aws():
        iam = boto3.client("iam")
        for resource in RESOURCES.values():
            properties = resource["Properties"]
            if resource["Type"] == "AWS::IAM::Role":
                iam.create_role(
                    RoleName=properties["RoleName"],
                    AssumeRolePolicyDocument=json.dumps(properties["AssumeRolePolicyDocument"]),
                )
        for resource in RESOURCES.values():
            properties = resource["Properties"]
            if resource["Type"] == "AWS::IAM::InstanceProfile":
                name = properties["InstanceProfileName"]
                iam.create_instance_profile(InstanceProfileName=name)
                [role] = [RESOURCES[each["Ref"]] for each in properties["Roles"]]
                iam.add_role_to_instance_profile(
                    InstanceProfileName=name, RoleName=role["Properties"]["RoleName"]
                )
        yield home


def launched(hosts: LaunchedHosts, cluster: dict[str, Any]) -> dict[str, Any]:
    """Do what `ray up` does; returns the configuration that it resolved."""
    config = commands._bootstrap_config(cluster, no_config_cache=True)
    with contextlib.suppress(click.ClickException):  # the failures say more
        commands.get_or_create_head_node(
            config,
            "cluster.yaml",
            False,
            False,
            True,
            None,
            _runner=hosts,  # type: ignore[arg-type]  # of the module `subprocess` it calls these alone
        )
    assert hosts.failures == []
    return config


def address_of(kind: str) -> str:
    """Address that Ray reaches the only instance of a node type at."""
    found = boto3.client("ec2", region_name=AWS_REGION).describe_instances(
        Filters=[{"Name": f"tag:{TAG_RAY_USER_NODE_TYPE}", "Values": [kind]}]
    )
    [instance] = [i for r in found["Reservations"] for i in r["Instances"]]
    # The launcher comes from outside, the autoscaler from the head.
    return str(instance["PublicIpAddress" if kind == "head" else "PrivateIpAddress"])


def mounted(container: Path) -> set[str]:
    """Files under a container's ~/reki-ray, relative."""
    root = container / "reki-ray"
    # Folders of file_mounts are links here, which rglob does not follow.
    return {
        str(child.relative_to(mount.resolve()).parent / child.name)
        if mount.is_file()
        else f"{mount.name}/{child.relative_to(mount.resolve())}"
        for mount in root.iterdir()
        for child in ([mount.resolve()] if mount.is_file() else mount.resolve().rglob("*"))
    }


def ray_start_options(call: str) -> set[str]:
    """Options of a recorded `ray start`, all of which exist."""
    program, name, *arguments = shlex.split(call)
    assert program == "ray"
    known = {flag for option in ray_cli.commands[name].params for flag in option.opts}
    used = {argument.partition("=")[0] for argument in arguments}
    assert used <= known
    return used


def test_passes_rays_schema_check(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


@pytest.mark.parametrize("kind", ["head", "cpu_worker", "gpu_worker"])
def test_autoscaler_v2_finds_an_image_for_every_node_type(
    cluster: dict[str, Any], kind: str, aws: Path
) -> None:
    config = AutoscalingConfig(cluster, skip_content_hash=True)
    image = config.get_docker_config(kind)["image"]
    assert f":ray{metadata.version('ray')}" in image


def test_image_is_of_the_ray_and_python_that_are_tested() -> None:
    base = re.search(r"rayproject/ray:(\S+) here", TEXT)
    dockerfile = (ROOT / "launch/docker/Dockerfile").read_text(encoding="utf-8")
    assert base is not None
    assert base[1] == f"{metadata.version('ray')}-py311-cpu"
    assert f"FROM rayproject/ray:{base[1]}\n" in dockerfile


def test_head_offers_no_cpu_and_workers_start_from_zero(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert not any(types[kind]["min_workers"] for kind in ("cpu_worker", "gpu_worker"))
    most = sum(types[kind]["max_workers"] for kind in ("cpu_worker", "gpu_worker"))
    assert cluster["max_workers"] == most


def test_instances_start_with_their_profiles_and_disks(cluster: dict[str, Any], aws: Path) -> None:
    config = commands._bootstrap_config(cluster, no_config_cache=True)
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    for kind, node in config["available_node_types"].items():
        provider.create_node(node["node_config"], {TAG_RAY_USER_NODE_TYPE: kind}, 1)
    assert config["available_node_types"]["gpu_worker"]["resources"]["GPU"] == 1
    found = boto3.client("ec2", region_name=AWS_REGION).describe_instances()["Reservations"]
    instances = {i["InstanceType"]: i for r in found for i in r["Instances"]}
    profiles = {
        kind: instance["IamInstanceProfile"]["Arn"].rpartition("/")[2]
        for kind, instance in instances.items()
    }
    assert profiles == {
        "m7i.xlarge": "reki-ray-head",
        "m7i.2xlarge": "reki-ray-worker",
        "g6.2xlarge": "reki-ray-worker",
    }
    assert [k for k, i in instances.items() if i.get("InstanceLifecycle") == "spot"] == [
        "g6.2xlarge"
    ]
    assert all("/base-oss-nvidia-driver-gpu-" in i["ImageId"] for i in instances.values())


def test_policies_let_nodes_reach_the_bucket_and_the_head_start_workers(aws: Path) -> None:
    iam = boto3.client("iam")
    policy = RESOURCES["WorkspaceAccess"]["Properties"]["PolicyDocument"]
    bucket = json.dumps(policy).replace('{"Sub": ', "").replace('"}', '"').replace("${Bucket}", "b")
    iam.create_policy(PolicyName="workspace", PolicyDocument=bucket)
    actions = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"} <= actions
    for role in ("WorkerRole", "HeadRole"):
        assert {"Ref": "WorkspaceAccess"} in RESOURCES[role]["Properties"]["ManagedPolicyArns"]
    [extra] = RESOURCES["HeadRole"]["Properties"]["Policies"]
    granted = {
        action: statement["Resource"]
        for statement in extra["PolicyDocument"]["Statement"]
        for action in statement["Action"]
    }
    assert granted["iam:PassRole"] == {"GetAtt": "WorkerRole.Arn"}
    assert "ssm:GetParameters" in granted


@pytest.mark.parametrize("baked", [True, False])
def test_ray_up_and_the_autoscaler_execute_their_commands(
    cluster: dict[str, Any],
    aws: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    baked: bool,
) -> None:
    hosts = LaunchedHosts(tmp_path / "hosts", baked=baked)
    launched(hosts, cluster)
    assert hosts.failures == []
    head = address_of("head")
    container = hosts.root / head / "container"
    *installed, stop, start = hosts.calls(head)
    assert stop == "ray stop"
    assert {"--head", "--autoscaling-config"} <= ray_start_options(start)
    assert any("ecr get-login-password" in call for call in installed)
    assert any(call.startswith("pip install") and "boto3" in call for call in installed) != baked
    assert "--gpus" not in hosts.docker(head, "run")[0]
    sent = {path.partition("/")[0] for path in mounted(container)}
    assert sent == {
        *("reki_ray", "actors", "deployments", "configs", "launch"),
        *("pyproject.toml", "constraints.txt"),
    }
    assert not any("__pycache__" in path for path in mounted(container))
    assert "--env RAY_AUTH_MODE=token" in hosts.docker(head, "run")[0]
    # The sources of the mounts go before those of the image.
    assert loaded_from(hosts.root / head).startswith(str(container / "reki-ray"))
    assert (container / ".ray/auth_token").read_text(encoding="utf-8") == "secret"

    # From here on as on the head: its home, and what it got from `ray up`.
    monkeypatch.setenv("HOME", str(container))
    config = yaml.safe_load((container / "ray_bootstrap_config.yaml").read_text(encoding="utf-8"))
    autoscaling = AutoscalingConfig(config)
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    for kind in ("cpu_worker", "gpu_worker"):
        node = autoscaling.get_cloud_node_config(kind)
        [instance] = provider.create_node(node, {TAG_RAY_USER_NODE_TYPE: kind}, 1)
        provider.non_terminated_nodes({})  # remembers the instance
        RayInstaller(provider, autoscaling, hosts).install_ray(
            Instance(instance_type=kind, cloud_instance_id=instance), "10.0.0.1"
        )
        assert hosts.failures == []
        worker = address_of(kind)
        stop, start = hosts.calls(worker)[-2:]
        assert stop == "ray stop"
        assert "--address=10.0.0.1:6379" in start
        ray_start_options(start)
        assert ("--gpus all" in hosts.docker(worker, "run")[0]) == (kind == "gpu_worker")
        assert mounted(hosts.root / worker / "container") == mounted(container)


def loaded_from(host: Path) -> str:
    """File that `import reki_ray` loads in a host's container."""
    environment = (host / "environment").read_text(encoding="utf-8")
    environment = environment.replace("/home/ray", str(host / "container"))
    command = f"{environment}\n{sys.executable} -c 'import reki_ray; print(reki_ray.__file__)'"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, cwd=host
    )
    return done.stdout


def test_commands_in_the_comments_exist() -> None:
    lines = re.findall(r"reki (run|status|doctor)([^'\n]*)'", TEXT)
    assert [name for name, _ in lines] == ["doctor", "run", "status"]
    known_commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, rest in lines:
        known = {flag for option in known_commands[name].params for flag in option.opts}
        assert {word for word in rest.split() if word.startswith("--")} <= known
    [config] = {path for _, rest in lines for path in re.findall(r"configs/\S+", rest)}
    assert load_config(ROOT / config).name


def test_configuration_uses_every_gpu_of_the_cluster(cluster: dict[str, Any]) -> None:
    workers = cluster["available_node_types"]["gpu_worker"]["max_workers"]
    config = load_config(ROOT / "configs/movielens-1m.yaml")
    assert config.extract.max_replicas == config.encode.max_replicas == workers
