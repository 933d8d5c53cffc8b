"""A cluster on three hosts, from launch to end; the steps build on one another, in this order."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.hosts import missing
from tests.support.on_premises import (
    LAUNCH,
    PROMPTS,
    WORKSPACE,
    OnPremises,
    on_premises,
    wait_for,
)

_REASON = missing()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(_REASON is not None, reason=str(_REASON)),
]

REPLICAS, UNIT_ROWS = 2, 2
UNITS_IN_FLIGHT = 8
"""Per replica: Ray Data queues up to so many blocks at an actor."""
DIED_SECONDS = 90
"""launch/on-premises.yaml declares a silent host dead after 20 s; the machine may be busy."""


@pytest.fixture(scope="module")
def lab() -> Iterator[OnPremises]:
    with on_premises() as found:
        yield found


def test_launch_up_waits_for_all_nodes_and_checks_them(lab: OnPremises) -> None:
    code, output = lab.reki("launch", "up", LAUNCH)
    assert code == 0
    assert "3 nodes" in output
    assert lab.nodes() == dict.fromkeys(["10.77.0.1", "10.77.0.2", "10.77.0.3"], True)


def test_a_client_without_the_token_is_refused(lab: OnPremises) -> None:
    code = (
        "from ray._raylet import GcsClient; "
        "print(len(GcsClient(address='10.77.0.1:6379').get_all_node_info(timeout=30)))"
    )
    for mode, refused in (("token", False), ("disabled", True)):
        done = lab.hosts["worker1"].run(f'RAY_AUTH_MODE={mode} python -c "{code}"', check=False)
        assert (done.returncode != 0) == refused, done.stdout + done.stderr
    assert "InvalidToken" in done.stderr or "nauthenticated" in done.stderr.lower()

    asked = lab.hosts["head"].run("curl -s -o /dev/null -w '%{http_code}' 127.0.0.1:8265/api/jobs/")
    assert asked.stdout == "401"


def test_extraction_survives_a_host_that_is_cut_off_and_comes_back(lab: OnPremises) -> None:
    command = f"cd && reki submit {LAUNCH} -- run --until extract --config tiny.yaml"
    job = lab.operator.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: len(lab.calls().get("worker1", {})) >= UNIT_ROWS, "calls on worker1", 240)
        lab.hosts.cut("worker1")
        cut_at = time.time()
        wait_for(lambda: lab.nodes().get("10.77.0.2") is False, "the host's death", DIED_SECONDS)
        lab.hosts.heal("worker1")
        output, _ = job.communicate(timeout=600)
    finally:
        lab.hosts.heal("worker1")
        job.kill()
    assert job.returncode == 0, output

    # Every prompt is settled once, and was asked again only if it was on the lost host.
    settled = lab.python(lab.hosts["worker2"], _SETTLED)
    assert settled == {"rows": PROMPTS, "ids": PROMPTS}
    calls = lab.calls()
    asked = Counter(prompt for host in calls.values() for prompt, at in host.items() for _ in at)
    again = {prompt for prompt, times in asked.items() if times > 1}
    on_lost = {prompt for prompt, at in calls["worker1"].items() if min(at) < cut_at + DIED_SECONDS}
    assert len(asked) == PROMPTS
    assert again <= on_lost
    assert len(again) <= REPLICAS * UNITS_IN_FLIGHT * UNIT_ROWS
    assert len(calls) > 1, "all calls were on one host"


_SETTLED = f"""
import json
from reki_ray import schema
from reki_ray.core.workspace import Workspace
workspace, rows = Workspace({WORKSPACE!r}), []
for table in (schema.KNOWLEDGE, schema.DEAD_LETTERS):
    if workspace.has_table(table):
        columns = [schema.SUBJECT_KIND, schema.SUBJECT_ID]
        rows += workspace.read_table(table, columns=columns).to_pylist()
print(json.dumps({{"rows": len(rows), "ids": len({{tuple(row.values()) for row in rows}})}}))
"""


def test_the_lost_host_is_a_node_again(lab: OnPremises) -> None:
    wait_for(lambda: lab.nodes().get("10.77.0.2"), "the healed host", 240)


def test_a_repeated_submission_attaches(lab: OnPremises) -> None:
    before = lab.calls()
    code, output = lab.submit("run", "--until", "extract")
    assert code == 0
    assert "succeeded before" in output
    assert lab.calls() == before


def test_a_failing_command_brings_its_exit_code_back(lab: OnPremises) -> None:
    code, output = lab.submit("promote", "99", check=False)
    assert code == 2, output


def test_encodes_and_trains_on_several_hosts_and_publishes(lab: OnPremises) -> None:
    code, output = lab.submit("run", "--until", "publish")
    assert code == 0, output
    assert "publish: done" in output


def test_launch_down_leaves_nothing(lab: OnPremises) -> None:
    code, output = lab.reki("launch", "down", LAUNCH)
    assert code == 0, output
    assert output.count("stopped") == 3
    for host in lab.hosts.values():
        assert host.processes() == []
    assert not lab.hosts["head"].path("/root/.reki-cluster-state").exists()
    code, output = lab.reki("launch", "status", LAUNCH, check=False)
    assert code == 4
    assert "reki launch up" in output
