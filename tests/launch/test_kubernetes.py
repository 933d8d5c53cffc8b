"""launch/kubernetes, validated strictly: built-in kinds always, KubeRay's where its CRDs are.

KUBERAY_CRDS names a folder with the published CRDs of RayCluster, RayJob and RayService
(https://github.com/ray-project/kuberay, helm-chart/kuberay-operator/crds).
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.scripts.scripts import cli as ray_cli
from ray.serve.schema import ServeDeploySchema
from typer.main import get_command

from deployments.graph_args import GraphArgs
from reki_ray.cli.main import app
from reki_ray.config import load_config

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "launch/kubernetes").glob("*.yaml"))
PAGE = (ROOT / "docs/how-to/launch-kubernetes.md").read_text(encoding="utf-8")
DOCUMENTS: list[dict[str, Any]] = [
    document for path in FILES for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]
BUILT_IN = [d for d in DOCUMENTS if not d["apiVersion"].startswith("ray.io/")]
RAY = [d for d in DOCUMENTS if d["apiVersion"].startswith("ray.io/")]
CLUSTER_KEYS = {
    "RayCluster": (),
    "RayJob": ("rayClusterSpec",),
    "RayService": ("rayClusterConfig",),
}
KUBERNETES = kubernetes_validate.latest_version()


def name_of(document: dict[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    """The RayCluster's spec in a document of KubeRay."""
    spec = document["spec"]
    for key in CLUSTER_KEYS[document["kind"]]:
        spec = spec[key]
    return dict(spec)


def groups_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(document)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def templates_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Pod templates in a document of KubeRay."""
    submitter = document["spec"].get("submitterPodTemplate")
    templates = [group["template"] for group in groups_of(document)]
    return [*templates, submitter] if submitter else templates


def check_pod(template: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def strict(schema: Any) -> Any:
    """A CRD's schema as JSON Schema that refuses unknown keys, as `kubectl --validate=strict`."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
    result = {
        key: value
        for key, value in schema.items()
        if not key.startswith("x-kubernetes") and key not in {"format", "nullable"}
    }
    if "properties" in result:
        result["properties"] = {key: strict(part) for key, part in result["properties"].items()}
        if not open_ended:
            result.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if key in result:
            result[key] = strict(result[key])
    if schema.get("nullable") and "type" in result:
        result["type"] = [result["type"], "null"]
    return result


@cache
def kuberay_schemas() -> dict[tuple[str, str], jsonschema.Draft202012Validator]:
    """Validators by API version and kind."""
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("KubeRay's kinds are not checked: set KUBERAY_CRDS to the folder of its CRDs")
    validators = {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for path in Path(folder).glob("*.yaml"):
        crd = yaml.load(path.read_text(encoding="utf-8"), loader)
        for version in crd["spec"]["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            key = (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"])
            validators[key] = jsonschema.Draft202012Validator(schema)
    return validators


def problems(document: dict[str, Any]) -> list[str]:
    validator = kuberay_schemas()[document["apiVersion"], document["kind"]]
    return [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for error in validator.iter_errors(document)
    ]


@pytest.mark.parametrize("document", BUILT_IN, ids=name_of)
def test_built_in_kind_is_valid(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("document", RAY, ids=name_of)
def test_pods_of_ray_are_valid(document: dict[str, Any]) -> None:
    for template in templates_of(document):
        check_pod(template)


@pytest.mark.parametrize("document", RAY, ids=name_of)
def test_kind_of_kuberay_is_valid(document: dict[str, Any]) -> None:
    assert problems(document) == []


def test_typos_and_wrong_types_are_found() -> None:
    [service] = [d for d in RAY if d["kind"] == "RayService"]
    pod = copy.deepcopy(templates_of(service)[0])
    pod["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        check_pod(pod)
    broken = copy.deepcopy(service)
    options = broken["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    options["redisAdress"] = options.pop("redisAddress")
    broken["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minReplicas"] = "2"
    assert len(problems(broken)) == 2


@pytest.mark.parametrize("document", RAY, ids=name_of)
def test_rays_autoscaler_reads_the_cluster(document: dict[str, Any]) -> None:
    cluster = {"metadata": document["metadata"], "spec": cluster_of(document)}
    config = AutoscalingConfig(
        _derive_autoscaling_config_from_ray_cr(cluster), skip_content_hash=True
    )
    types = config.get_node_type_configs()
    head, *workers = types.values()
    assert head.resources["CPU"] == 0  # tasks stay off the node that the cluster ends with
    assert all(worker.resources["CPU"] > 0 for worker in workers)
    if "gpu" in types:
        run = load_config(ROOT / "configs/movielens-1m.yaml")
        gpus = types["gpu"].max_worker_nodes * types["gpu"].resources["GPU"]
        assert gpus == run.extract.max_replicas == run.encode.max_replicas


@pytest.mark.parametrize("document", RAY, ids=name_of)
def test_ray_is_started_with_options_that_it_has(document: dict[str, Any]) -> None:
    known = {flag for option in ray_cli.commands["start"].params for flag in option.opts}
    for group in groups_of(document):
        assert {f"--{name}" for name in group["rayStartParams"]} <= known


@pytest.mark.parametrize("document", RAY, ids=name_of)
def test_versions_and_token_are_those_of_every_cluster(document: dict[str, Any]) -> None:
    cluster = cluster_of(document)
    assert cluster["rayVersion"] == metadata.version("ray")
    assert cluster["authOptions"] == {"mode": "token", "secretName": "reki-ray-token"}
    assert cluster["autoscalerOptions"]["version"] == "v2"
    images = {
        c["image"] for template in templates_of(document) for c in template["spec"]["containers"]
    }
    assert images == {f"registry.example.com/reki-ray:ray{metadata.version('ray')}"}


def test_jobs_have_the_cluster_of_raycluster() -> None:
    clusters = [cluster_of(d) for d in RAY if d["kind"] != "RayService"]
    assert len(clusters) == 3
    assert clusters[0] == clusters[1] == clusters[2]


def test_only_a_worker_has_replicas_and_the_head_is_replaced() -> None:
    [service] = [d for d in RAY if d["kind"] == "RayService"]
    [workers] = cluster_of(service)["workerGroupSpecs"]
    assert service["spec"]["excludeHeadPodFromServeSvc"]
    assert workers["minReplicas"] == 2
    redis = cluster_of(service)["gcsFaultToleranceOptions"]["redisAddress"]
    services = [d["metadata"]["name"] for d in BUILT_IN if d["kind"] == "Service"]
    assert redis == f"redis://{services[0]}:6379"
    [budget] = [d for d in BUILT_IN if d["kind"] == "PodDisruptionBudget"]
    labels = workers["template"]["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_serve_accepts_the_service() -> None:
    [service] = [d for d in RAY if d["kind"] == "RayService"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    [application] = config.applications
    assert application.import_path == "deployments.graph:build_fused_app"
    GraphArgs.model_validate(application.args)
    run = yaml.safe_load(data_of("reki-config")["run.yaml"])
    assert application.args["publish_root"] == f"{run['workspace']}/publish"


def data_of(name: str) -> dict[str, str]:
    [found] = [d for d in BUILT_IN if d["kind"] == "ConfigMap" and d["metadata"]["name"] == name]
    return dict(found["data"])


def test_configuration_is_that_of_configs(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(data_of("reki-config")["run.yaml"], encoding="utf-8")
    here, there = load_config(path), load_config(ROOT / "configs/movielens-1m.yaml")
    for section in ("prompts", "cluster", "extract", "encode", "train"):
        assert getattr(here, section) == getattr(there, section)
    assert here.root.startswith("/shared/")
    assert str(here.data.source.path).startswith("/shared/")  # type: ignore[union-attr]


@pytest.mark.parametrize("document", [d for d in RAY if d["kind"] == "RayJob"], ids=name_of)
def test_command_of_the_job_exists(document: dict[str, Any]) -> None:
    program, name, *arguments = document["spec"]["entrypoint"].split()
    options = get_command(app).commands[name].params  # type: ignore[attr-defined]
    known = {flag for option in options for flag in option.opts}
    assert program == "reki"
    assert {argument for argument in arguments if argument.startswith("--")} <= known
    assert "/etc/reki/run.yaml" in arguments
    assert document["spec"]["activeDeadlineSeconds"] > 0


def parts(content: Any) -> Iterator[dict[str, Any]]:
    """All mappings in a document."""
    if isinstance(content, dict):
        yield content
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from parts(part)


def test_everything_that_pods_refer_to_is_created() -> None:
    created = {(d["kind"], d["metadata"]["name"]) for d in BUILT_IN}
    secrets = set(re.findall(r"create secret generic (\S+)", PAGE))
    for part in parts(DOCUMENTS):
        if "secretKeyRef" in part:
            assert part["secretKeyRef"]["name"] in secrets
        if "secretName" in part:
            assert part["secretName"] in secrets
        if "claimName" in part:
            assert ("PersistentVolumeClaim", part["claimName"]) in created
        if "configMap" in part:
            assert ("ConfigMap", part["configMap"]["name"]) in created
        if "serviceAccountName" in part:
            assert ("ServiceAccount", part["serviceAccountName"]) in created


def test_page_names_the_files() -> None:
    assert {path.name for path in FILES} <= set(re.findall(r"launch/kubernetes/(\S+\.yaml)", PAGE))
