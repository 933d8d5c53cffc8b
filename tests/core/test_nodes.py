"""Nodes that do not see what the driver sees are named, with what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import ray
import yaml

from reki_ray.cli import doctor
from reki_ray.core import nodes
from reki_ray.core.nodes import Node, NodeReport, SharedWorkspace
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError
from tests.conftest import TinyConfig

BIN = Path(sys.executable).parent
HERE = nodes.versions_here()
DRIVER, FIRST, SECOND = (Node(name, name, f"10.0.0.{name}") for name in "123")


def report(node: Node = FIRST, **fields: object) -> NodeReport:
    return NodeReport(node, **{"versions": HERE, "free_gib": 50.0, **fields})  # type: ignore[arg-type]


# --- what is wrong with a node ---------------------------------------------------------------
@pytest.mark.parametrize(
    ("found", "problem", "todo"),
    [
        (report(versions={**HERE, "ray": "2.0.0"}), "ray 2.0.0, here", "Install ray"),
        (report(versions={**HERE, "reki-ray": "0.1"}), "reki-ray 0.1, here", "Install reki-ray"),
        (report(versions={**HERE, "python": "3.9.1"}), "python 3.9.1, here", "Install python"),
        (report(clock=5.0), "clock is 5.0 s ahead of", "Synchronise"),
        (report(clock=-5.0), "clock is 5.0 s behind", "Synchronise"),
        (report(free_gib=0.4), "0.4 GiB free", "REKI_CACHE"),
        (report(storage="no such bucket"), "cannot read the workspace: no such", "all nodes share"),
        (
            report(failure="No module named 'reki_ray'"),
            "cannot run a task: No mod",
            "same reki-ray",
        ),
    ],
)
def test_a_finding_names_the_node_and_what_to_do(
    found: NodeReport, problem: str, todo: str
) -> None:
    well, wrong = doctor.node_findings([report(DRIVER, clock=1.0), found])
    assert (well.ok, well.check) == (True, "node 1 (10.0.0.1)")
    assert (wrong.ok, wrong.check, wrong.exit_code) == (False, "node 2 (10.0.0.2)", 4)
    assert problem in wrong.detail
    assert todo in wrong.todo
    assert doctor.exit_code([well, wrong]) == 4


def test_all_that_is_wrong_is_told() -> None:
    (finding,) = doctor.node_findings([report(clock=9.0, free_gib=1.0, storage="none")])
    for word in ("clock", "GiB free", "workspace"):
        assert word in finding.detail


# --- the workspace of all nodes --------------------------------------------------------------
@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Nodes that were asked, call by call; the driver is node 1, and node 2 is there, too."""
    calls: list[list[str]] = []

    def ask(some: Iterable[Node], workspace: Workspace | None) -> list[NodeReport]:
        del workspace
        calls.append([node.id for node in some])
        return [report(node, storage="" if node == FIRST else "it is empty") for node in some]

    class Context:
        def get_node_id(self) -> str:
            return DRIVER.id

    monkeypatch.setattr(nodes, "ask_nodes", ask)
    monkeypatch.setattr(nodes, "live_nodes", lambda: [DRIVER, FIRST])
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    return calls


def test_a_node_is_asked_once_and_one_that_has_joined_as_well(
    asked: list[list[str]], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedWorkspace(workspace)
    shared.require()
    shared.require()
    assert asked == [["2"]]
    monkeypatch.setattr(nodes, "live_nodes", lambda: [DRIVER, FIRST, SECOND])
    for _ in range(2):  # what is wrong stays wrong
        with pytest.raises(
            EngineError, match=r"1 node cannot .*: 3 \(10.0.0.3\): it is empty"
        ) as e:
            shared.require()
        assert "at the same path on every node" in e.value.todo
    assert asked == [["2"], ["3"], ["3"]]
    with pytest.raises(EngineError) as e:
        SharedWorkspace(Workspace("memory://run")).require()
    assert "credentials" in e.value.todo


@pytest.mark.usefixtures("asked")
def test_a_node_that_was_lost_meanwhile_is_no_problem(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = iter([[DRIVER, SECOND], [DRIVER]])
    monkeypatch.setattr(nodes, "live_nodes", lambda: next(rounds))
    SharedWorkspace(workspace).require()


@pytest.mark.usefixtures("ray_local")
def test_a_real_node_tells_about_itself(workspace: Workspace) -> None:
    live = nodes.live_nodes()
    (found,) = nodes.ask_nodes(live, workspace)
    assert found.node == live[0]
    assert nodes.problems(found, HERE) == []
    assert abs(found.clock) < nodes.CLOCK_SECONDS
    assert workspace.filesystem.ls(workspace.path()) == []  # the marker is gone
    (found,) = nodes.ask_nodes([Node("0" * 56, "gone", "10.0.0.9")], None)
    assert "cannot run a task" in nodes.problems(found, HERE)[0][0]


# --- two nodes -------------------------------------------------------------------------------
ISOLATED = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]

TWO_NODES = """
set -e
ip link set lo up
start="ray start --num-cpus=2 --object-store-memory=100000000 --disable-usage-stats"
$start --head --node-ip-address=127.0.0.1 --port=6399 --include-dashboard=false --temp-dir="$1/ray"
unshare --mount --uts sh -c '
    hostname elsewhere
    mount -t tmpfs tmpfs "$1/shared"
    '"$start"' --address=127.0.0.1:6399' sh "$1"
export RAY_ADDRESS=127.0.0.1:6399
cd "$1"
reki doctor --cluster --json --workspace "$1/shared/run" > blind.json || echo $? > blind.rc
reki doctor --cluster --json --workspace "$1/common/run" > seeing.json || echo $? > seeing.rc
reki run -c c.yaml --until cluster > run.out 2>&1 || echo $? > run.rc
reki run -c c.yaml --until cluster --workspace "$1/common/run" > common.out 2>&1
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = tempfile.mkdtemp(prefix="rk-", dir="/tmp")  # Ray's sockets need a short path
    yield Path(made)
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_sees_another_folder_is_named(folder: Path, tiny_config: TinyConfig) -> None:
    if subprocess.run([*ISOLATED, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs root, for network, mount and process namespaces")
    for name in ("shared", "common"):
        (folder / name).mkdir()
    tree = tiny_config(encode={"backend": "hashing", "dimension": 16}).model_dump(
        mode="json", exclude_unset=True
    )
    tree |= {"workspace": str(folder / "shared/run"), "ray": {}}
    (folder / "c.yaml").write_text(yaml.safe_dump(tree))
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "400"}
    done = subprocess.run(
        [*ISOLATED, "sh", "-c", TWO_NODES, "sh", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = (folder / "run.out").read_text() if (folder / "run.out").exists() else ""
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{said}"
    assert (folder / "run.rc").read_text().strip() == "4"
    assert "1 node cannot read the workspace: elsewhere (127.0.0.1)" in said
    assert "at the same path on every node" in said
    by_check = {f["check"]: f for f in json.loads((folder / "blind.json").read_text())}
    assert "it sees no file" in by_check["node elsewhere (127.0.0.1)"]["detail"]
    seeing = {f["check"]: f for f in json.loads((folder / "seeing.json").read_text())}
    for name in ("blind", "seeing"):
        findings = json.loads((folder / f"{name}.json").read_text())
        assert sum(finding["check"].startswith("node ") for finding in findings) == 2
    assert "it sees" not in seeing["node elsewhere (127.0.0.1)"]["detail"]
    assert Workspace(folder / "common/run").stages().keys() == {"ingest", "cluster"}
