"""Checks of an installation."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel

from reki_ray.cli.failures import explain
from reki_ray.config import RayConfig
from reki_ray.core import nodes
from reki_ray.core.formats import counted
from reki_ray.core.nodes import NodeReport
from reki_ray.core.ray_cluster import ray_session
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError, EngineError

_OUR_PACKAGES = ("reki_ray", "actors", "deployments")
_LIBRARIES = (
    "ray",
    "torch",
    "vllm",
    "pyarrow",
    "fast_hdbscan",
    "sentence_transformers",
    "transformers",
)
_BROKEN_BESIDE_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec")
_MIN_PYTHON = (3, 11)
_MIN_MEMORY_GIB = 6
_MIN_DISK_GIB = 3
_GIB = 2**30


class Finding(BaseModel):
    """Outcome of one check."""

    check: str
    ok: bool
    detail: str
    todo: str = ""
    exit_code: int = 0


def examine(*, cluster: bool, workspace: str | None = None) -> list[Finding]:
    """Run all checks.

    Args:
        cluster: Also join the running Ray cluster, and examine its nodes.
        workspace: Folder or URL that its nodes must see.
    """
    checks: dict[str, Callable[[], str]] = {
        "python": _python,
        "machine": _machine,
        "disk": _disk,
        **{name: partial(_own_package, name) for name in _OUR_PACKAGES},
        **{name: partial(_library, name) for name in _LIBRARIES},
        "torch extras": _torch_extras,
    }
    findings = [_guard(check, run) for check, run in checks.items()]
    if cluster:
        reports: list[NodeReport] = []
        findings.append(_guard("cluster", partial(_cluster, workspace, reports)))
        findings += node_findings(reports)
    return findings


def node_findings(reports: list[NodeReport]) -> list[Finding]:
    """One finding of each node of a cluster."""
    expected, findings = nodes.versions_here(), []
    for report in reports:
        wrong = nodes.problems(report, expected)
        free = f"{report.free_gib:.0f} GiB free"
        findings.append(
            Finding(
                check=f"node {report.node}",
                ok=not wrong,
                detail="; ".join(what for what, _ in wrong) or free,
                todo=" ".join(todo for _, todo in wrong),
                exit_code=EngineError.exit_code if wrong else 0,
            )
        )
    return findings


def exit_code(findings: list[Finding]) -> int:
    """Exit code of the first failed check; 0 if all passed."""
    return next((f.exit_code for f in findings if not f.ok), 0)


def _guard(check: str, run: Callable[[], str]) -> Finding:
    try:
        return Finding(check=check, ok=True, detail=run())
    except Exception as error:  # noqa: BLE001  # any error is a finding
        failure = explain(error)
        return Finding(
            check=check,
            ok=False,
            detail=failure.what,
            todo=failure.todo,
            exit_code=failure.exit_code,
        )


def _python() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _MIN_PYTHON:
        raise ConfigError(
            f"Python {version}", where=sys.executable, todo="Use Python 3.11 or newer."
        )
    return f"{version} at {sys.executable}"


def _machine() -> str:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    if cores < 2 or memory < _MIN_MEMORY_GIB:
        raise EngineError(
            f"{cores} cores, {memory:.0f} GiB",
            where="this machine",
            todo=f"The demo needs 2 cores and {_MIN_MEMORY_GIB} GiB.",
        )
    return f"{cores} cores, {memory:.0f} GiB"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / _GIB
    if free < _MIN_DISK_GIB:
        raise EngineError(
            f"{free:.1f} GiB free in {Path.cwd()}",
            where=str(Path.cwd()),
            todo=f"Free at least {_MIN_DISK_GIB} GiB.",
        )
    return f"{free:.0f} GiB free in {Path.cwd()}"


def _own_package(name: str) -> str:
    """Check that no other package of a common name, as `actors`, shadows ours."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ConfigError(
            "not importable", where=name, todo="Install reki-ray: pip install -e '.[cpu]'"
        )
    ours = Path(__file__).resolve().parents[2]
    parent = Path(spec.origin).resolve().parents[1]
    if parent != ours:
        raise ConfigError(
            f"another package shadows it: {parent / name}",
            where=name,
            todo=f"Remove that package, or put {ours} before it on sys.path.",
        )
    return str(parent / name)


def _library(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as error:  # broken libraries raise errors of any type
        raise EngineError(
            f"does not import: {error}", where=name, todo="Run `make setup` again."
        ) from error
    distribution = name.replace("_", "-")
    return _version(distribution) or _version(f"{distribution}-cpu") or "imports"


def _torch_extras() -> str:
    """Beside a CPU build of torch, these packages fail to import and break transformers."""
    if not _version("torch").endswith("+cpu"):
        return "torch is not a CPU build"
    present = [name for name in _BROKEN_BESIDE_CPU_TORCH if _version(name)]
    if present:
        raise EngineError(
            f"{', '.join(present)} with a CPU build of torch",
            where="environment",
            todo=f"pip uninstall -y {' '.join(present)}",
        )
    return "absent, as a CPU build of torch requires"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _cluster(workspace: str | None, reports: list[NodeReport]) -> str:
    """Size of the cluster; adds the reports of its nodes."""
    with ray_session(RayConfig(address=os.environ.get("RAY_ADDRESS", "auto"))):
        import ray  # slow to import

        resources = ray.cluster_resources()
        live = nodes.live_nodes()
        reports += nodes.ask_nodes(live, Workspace(workspace) if workspace else None)
    gpus = f", {resources['GPU']:.0f} GPUs" if "GPU" in resources else ""
    return f"{counted(len(live), 'node')}, {resources.get('CPU', 0):.0f} CPUs{gpus}"
