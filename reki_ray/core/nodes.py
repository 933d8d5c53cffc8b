"""What the nodes of a cluster see: the workspace, versions, clocks and disks."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any, Final

from reki_ray.config import RayConfig
from reki_ray.core.downloads import cache_folder
from reki_ray.core.formats import counted
from reki_ray.core.ray_cluster import cluster_address, last_line, ray_session
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError, RekiError

ANSWER_SECONDS: Final = 60.0
"""A node whose answer takes longer is reported; starting a worker process takes seconds."""
_MARKER: Final = ".seen-"
CLOCK_SECONDS: Final = 2.0
"""Largest difference of clocks: object stores and run locks compare times of hosts."""
FREE_GIB: Final = 3.0
_SHOWN: Final = 5
_GIB: Final = 2**30


@dataclass(frozen=True)
class Node:
    """A live node of the cluster."""

    id: str
    host: str
    address: str

    def __str__(self) -> str:
        return f"{self.host} ({self.address})"


@dataclass(frozen=True)
class NodeReport:
    """What a node says about itself.

    Attributes:
        versions: Version of each package and of Python, by name.
        clock: Seconds that its clock is ahead of this process's.
        free_gib: Free GiB of its temporary files and of its cache, the smaller.
        failure: Why there is nothing of the above; empty if there is.
        storage: Why it cannot read the workspace; empty if it can.
    """

    node: Node
    versions: dict[str, str] = field(default_factory=dict)
    clock: float = 0.0
    free_gib: float = 0.0
    failure: str = ""
    storage: str = ""


def live_nodes() -> list[Node]:
    """Nodes of the connected cluster, by host."""
    import ray  # slow, and not needed by every command

    nodes = [
        Node(node["NodeID"], node["NodeManagerHostname"], node["NodeManagerAddress"])
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(nodes, key=lambda node: (node.host, node.address, node.id))


def versions_here() -> dict[str, str]:
    """Versions that all nodes must have in common."""
    versions = {"python": platform.python_version()}
    for name in ("ray", "reki-ray"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def ask_nodes(nodes: Iterable[Node], workspace: Workspace | None) -> list[NodeReport]:
    """Ask nodes about themselves, all at a time; with a workspace also whether they see it.

    Raises:
        EngineError: This process cannot write the workspace.
    """
    # A name of its own: a run and `reki doctor` may look at the same time.
    marker, content = f"{_MARKER}{uuid.uuid4().hex}", uuid.uuid4().bytes
    if workspace is not None:
        workspace.write(marker, content)
    try:
        place = None if workspace is None else (workspace.location, marker, content)
        reports = [
            NodeReport(node, failure=answer, storage=answer)
            if isinstance(answer, str)
            else NodeReport(node, **answer)
            for node, answer, _ in _ask(nodes, _look, place)
        ]
    finally:
        if workspace is not None:
            workspace.remove(marker)
    well = {report.node: report for report in reports if not report.failure}
    # Asked now that the nodes have a process for it: the shorter the way, the better the clock.
    for node, answer, (asked, answered) in _ask(well, _clock):
        if isinstance(answer, float):
            ahead = min(0.0, answer - asked) + max(0.0, answer - answered)
            well[node] = replace(well[node], clock=ahead)
    return [well.get(report.node, report) for report in reports]


def _ask(
    nodes: Iterable[Node], question: Callable[..., Any], *arguments: Any
) -> Iterator[tuple[Node, Any, tuple[float, float]]]:
    """Run a function on nodes; yields each with the answer, or what is wrong as text, and times."""
    import ray  # as above
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(num_cpus=0, max_retries=0)(question)
    pending: dict[Any, tuple[Node, float]] = {}
    for node in nodes:
        there = task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        )
        pending[there.remote(*arguments)] = node, time.time()
    deadline = time.monotonic() + ANSWER_SECONDS
    while pending:
        left = max(0.0, deadline - time.monotonic())
        done, _ = ray.wait(list(pending), timeout=left)
        now = time.time()
        for reference in done:
            node, asked = pending.pop(reference)
            try:
                yield node, ray.get(reference), (asked, now)
            except Exception as error:  # noqa: BLE001  # a node that lacks our code raises any
                yield node, last_line(error), (asked, now)
        if not done:
            break
    for reference, (node, asked) in pending.items():
        ray.cancel(reference, force=True)
        yield node, f"it gave no answer within {ANSWER_SECONDS:g} s", (asked, time.time())


def _clock() -> float:
    return time.time()


def _look(place: tuple[str, str, bytes] | None) -> dict[str, Any]:
    """What this node sees, in a task; `place` is a workspace, its marker and that one's content."""
    storage = ""
    if place is not None:
        location, marker, content = place
        try:
            same = Workspace(location).read_bytes(marker) == content
            storage = "" if same else "it sees another folder of this name"
        except FileNotFoundError:
            storage = "it sees no file that this process has just written"
        except RekiError as error:
            storage = error.what
    folders = (cache_folder(), "/tmp")  # where Ray keeps what it spills
    return {
        "versions": versions_here(),
        "free_gib": min(shutil.disk_usage(_existing(str(f))).free for f in folders) / _GIB,
        "storage": storage,
    }


def _existing(folder: str) -> str:
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return folder


class SharedWorkspace:
    """Makes sure, at the start of each distributed stage, that all nodes see the workspace.

    A node is asked once: at its first stage, or at the first one after it has joined.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._seen: set[str] = set()

    @contextlib.contextmanager
    def session(self, config: RayConfig) -> Iterator[None]:
        """Connect to the cluster for the block, unless the run starts one on this machine.

        Raises:
            EngineError: There is no cluster, or a node cannot read the workspace.
        """
        ray = sys.modules.get("ray")
        if cluster_address(config) == "local" and not (ray and ray.is_initialized()):
            yield
            return
        with ray_session(config):
            self.require()
            yield

    def require(self) -> None:
        """Ask the nodes that have not been asked yet.

        Raises:
            EngineError: One cannot read the workspace.
        """
        import ray  # slow, and not needed by every command

        own = ray.get_runtime_context().get_node_id()
        new = [node for node in live_nodes() if node.id not in {*self._seen, own}]
        if not new:
            return
        blind = [report for report in ask_nodes(new, self._workspace) if report.storage]
        alive = {node.id for node in live_nodes()} if blind else set()
        blind = [report for report in blind if report.node.id in alive]
        if blind:
            raise cannot_see(self._workspace, blind)
        self._seen.update(node.id for node in new)


def cannot_see(workspace: Workspace, blind: list[NodeReport]) -> EngineError:
    """Make the error of nodes that do not see the workspace."""
    shown = "; ".join(f"{report.node}: {report.storage}" for report in blind[:_SHOWN])
    more = f"; and {len(blind) - _SHOWN} more" * (len(blind) > _SHOWN)
    if workspace.is_local:
        todo = (
            "Mount this folder at the same path on every node, or set `workspace` to a URL that "
            "all nodes reach, such as s3://bucket/run."
        )
    else:
        todo = (
            "Give these nodes access to it: the extra of its kind (`pip install "
            "'reki-ray[s3]'`), credentials (a role of the machine, or variables set before "
            "`ray start`), and a network path."
        )
    return EngineError(
        f"{counted(len(blind), 'node')} cannot read the workspace: {shown}{more}",
        where=workspace.location,
        todo=todo,
    )


def problems(report: NodeReport, expected: dict[str, str]) -> list[tuple[str, str]]:
    """What is wrong with a node, and what to do about each; empty if nothing is.

    Args:
        expected: Versions of the driver, see `versions_here`.
    """
    if report.failure:
        return [
            (
                f"it cannot run a task: {report.failure}",
                "Install the same reki-ray there as here, and read the node's logs in "
                "/tmp/ray/session_latest/logs.",
            )
        ]
    found = []
    if report.storage:
        found.append(
            (
                f"it cannot read the workspace: {report.storage}",
                "Put the workspace on storage that all nodes share, and give them access.",
            )
        )
    for name, version in expected.items():
        other = report.versions.get(name, "none")
        if other != version:
            found.append(
                (f"{name} {other}, here {version}", f"Install {name} {version} on this node.")
            )
    if abs(report.clock) > CLOCK_SECONDS:
        way = "ahead of" if report.clock > 0 else "behind"
        found.append(
            (
                f"its clock is {abs(report.clock):.1f} s {way} this one",
                "Synchronise the clocks of all nodes (chrony, or systemd-timesyncd).",
            )
        )
    if report.free_gib < FREE_GIB:
        found.append(
            (
                f"{report.free_gib:.1f} GiB free for caches and temporary files",
                f"Free at least {FREE_GIB:g} GiB there, or set REKI_CACHE to a larger disk.",
            )
        )
    return found
