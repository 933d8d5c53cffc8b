"""Pools of engines grow with their queue and end after it, with Ray's fake autoscaler."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.faulty_engine import SUBJECTS
from tests.support.hosts import REPOSITORY, missing

_REASON = missing()
_ALONE = (
    *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
    *("sh", "-c", 'ip link set lo up && mount -t tmpfs tmpfs /tmp && exec "$@"', "sh"),
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(_REASON is not None, reason=str(_REASON)),
]


def test_nodes_come_for_a_queue_of_prompts_and_go_after_it() -> None:
    done = subprocess.run(
        [*_ALONE, sys.executable, "-m", "tests.support.growing_cluster", "/tmp/workspace"],
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",  # Ray calls `ray`
            # A token that is visible where /tmp is private.
            "RAY_AUTH_MODE": "disabled",
        },
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["answers"] == SUBJECTS
    assert found["nodes"][0] == 0
    assert max(found["nodes"]) == 3
    assert found["nodes"][-1] == 0
