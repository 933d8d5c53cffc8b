"""What `reki status` shows: finished stages, work that goes on here or elsewhere, what is next."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from reki_ray.cli import status
from reki_ray.cli.views.health import status_view
from reki_ray.core import run_log
from reki_ray.core.formats import duration
from reki_ray.core.progress import Reporter
from reki_ray.core.stage import STAGE_NAMES
from reki_ray.core.workspace import StageEntry, Workspace
from reki_ray.errors import ConfigError
from tests.support import s3_server


def beat(workspace: Workspace, **changed: object) -> None:
    """Write a heartbeat, by default that of a process which is gone."""
    gone = 2**22 - 1  # above the largest process id that Linux gives out by default
    content: dict[str, object] = {
        "label": "extract: asking",
        "done": 25,
        "total": 100,
        "unit": "prompts",
        "counters": {"generated_tokens": 500},
        "started_at": time.time() - 10,
        "updated_at": time.time(),
        "finished": False,
        "host": socket.gethostname(),
        "pid": gone,
    }
    workspace.write_json("progress.json", {**content, **changed})


def shown(workspace: Workspace) -> str:
    console = Console(file=io.StringIO(), width=200)
    with console.capture() as capture:
        console.print(status_view(status.read(workspace)))
    return capture.get()


def test_the_work_of_a_process_that_is_gone_is_told(workspace: Workspace) -> None:
    beat(workspace)
    activity = status.read(workspace).activity
    assert activity is not None
    assert not activity.alive
    assert activity.seconds_left == pytest.approx(30, abs=0.1)
    assert activity.rates["generated_tokens"] == pytest.approx(50, abs=0.1)
    text = shown(workspace)
    assert "extract: asking: 25 of 100 prompts, 50 generated tokens/s, about 30 s left" in text
    assert "the process is gone, last seen" in text
    assert "`reki run` resumes the work" in text


@pytest.mark.parametrize(
    ("host", "pid", "silent", "alive", "said"),
    [
        (None, os.getpid(), 1, True, "; running"),
        (None, os.getpid(), 7200, True, "; last sign of life 2 h ago"),
        (None, 2**22 - 1, 1, False, "; the process is gone, last seen 1.0 s ago"),
        # A process of this number may well run here: it says nothing about another machine.
        ("node-7", os.getpid(), 7200, False, "; the process on node-7 is gone, last seen 2 h ago"),
        ("node-7", 2**22 - 1, 1, True, "; running on node-7"),
        # As older releases wrote it.
        ("", os.getpid(), 1, True, "; running"),
        ("", os.getpid(), 7200, False, "; the process is gone, last seen 2 h ago"),
    ],
)
def test_a_process_is_looked_for_on_its_own_machine_only(
    workspace: Workspace, host: str | None, pid: int, silent: float, alive: bool, said: str
) -> None:
    now = time.time() - silent
    beat(
        workspace,
        pid=pid,
        updated_at=now,
        started_at=now - 10,
        host=socket.gethostname() if host is None else host,
    )
    activity = status.read(workspace).activity
    assert activity is not None
    assert activity.alive is alive
    assert activity.silent_seconds == pytest.approx(silent, abs=5)
    if silent > 60 or not alive:
        said = said.replace("1.0 s", f"{activity.silent_seconds:.1f} s")
    assert said in shown(workspace)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"finished": false, "figures": 7}'])
def test_a_heartbeat_that_cannot_be_read_hides_no_stage(workspace: Workspace, content: str) -> None:
    workspace.record("ingest", StageEntry("f"))
    workspace.write_text("progress.json", content)
    found = status.read(workspace)
    assert found.activity is None
    assert found.stages[0].done


def test_the_heart_beats_while_no_step_gets_done(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reki_ray.core.progress.HEARTBEAT_SECONDS", 0.01)
    with Reporter(workspace, quiet=True).task("cluster: grouping", 2, "sides"):
        before = workspace.read_json("progress.json")["updated_at"]
        while workspace.read_json("progress.json")["updated_at"] == before:
            time.sleep(0.01)
        activity = status.read(workspace).activity
        assert activity is not None
        assert activity.alive
        assert activity.host == socket.gethostname()
    assert status.read(workspace).activity is None


def test_a_heartbeat_that_cannot_be_written_stops_no_work(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("reki_ray.core.progress.HEARTBEAT_SECONDS", 0.001)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(workspace, "write_json", full)
    with Reporter(workspace, quiet=True).task("encode", 2) as task:
        task.advance(2)
    assert task.done == 2
    assert [record.message for record in caplog.records] == [
        "progress cannot be written, the work goes on: [Errno 28] No space left on device"
    ]


def test_status_says_what_is_done_and_what_comes_next(workspace: Workspace) -> None:
    Path(workspace.root).mkdir()
    assert "No stage is done yet, and nothing is running" in shown(workspace)
    for name in STAGE_NAMES[:-1]:
        workspace.record(name, StageEntry("f", rows_in=12_345, seconds=4000.0))
    text = shown(workspace)
    assert "Not done yet: report. `reki run` continues from there." in text
    assert "1 h 7 min" in text
    assert "12,345" in text
    workspace.write_text("report.html", "")
    assert f"Report (of an earlier run): {workspace.location}/report.html" in shown(workspace)
    workspace.record("report", StageEntry("f"))
    text = shown(workspace)
    finished = time.localtime(workspace.stages()["report"].finished_at)
    assert "All stages are done, the last one at " in text
    assert time.strftime("%Y-%m-%d %H:%M:%S", finished) in text
    assert f"Report: {workspace.location}/report.html" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.9, "1 min"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (3599.9, "1 h"),
        (3600, "1 h"),
        (12_000, "3 h 20 min"),
        (86_399, "1 d"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_status_of_no_workspace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such workspace"):
        status.read(Workspace(tmp_path / "none"))


def test_watch_follows_a_run_to_its_end_from_another_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with s3_server.s3_server() as address, monkeypatch.context() as patch:
        s3_server.use(patch, address)
        workspace = Workspace(f"s3://{s3_server.BUCKET}/runs/watched")
        beat(workspace, host="node-7", run_id="r-1")
        watching = subprocess.Popen(
            [sys.executable, "-c", _STATUS, "--watch", "--json", "--workspace", workspace.root],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        assert (first["activity"]["host"], first["activity"]["run_id"]) == ("node-7", "r-1")
        beat(workspace, host="node-7", done=100, finished=True)
        for name in STAGE_NAMES:
            workspace.record(name, StageEntry("f"))
        rest = [json.loads(line) for line in watching.communicate(timeout=120)[0].splitlines()]
        assert rest[-1]["activity"] is None
        assert all(stage["done"] for stage in rest[-1]["stages"])
        assert watching.returncode == 0


def test_watch_ends_with_a_process_that_is_gone(workspace: Workspace) -> None:
    beat(workspace)
    (only,) = status.follow(workspace)
    assert only.activity is not None
    assert not only.activity.alive


def test_log_lines_have_the_run_and_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(run_log.RUN_ID, "run-7")
    done = subprocess.run(
        [sys.executable, "-c", _LOGS], check=True, capture_output=True, text=True, timeout=300
    )
    lines = [line for line in done.stderr.splitlines() if "run=run-7" in line]
    assert len(lines) == 1
    assert f"WARNING run=run-7 node={socket.gethostname()} reki_ray.test: low" in lines[0]


_STATUS = "import sys; from reki_ray.cli.main import app; app(['status', *sys.argv[1:]])"
_LOGS = """
import logging
from reki_ray.core import run_log
run_log.configure()
run_log.configure()
logging.getLogger("reki_ray.test").warning("low")
"""
