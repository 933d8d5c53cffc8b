"""A workspace on a local disk, in memory and on an S3 server that fails as networks do."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
import s3fs

from reki_ray import schema
from reki_ray.core import run_lock
from reki_ray.core.run_lock import LOCK
from reki_ray.core.workspace import StageEntry, Workspace
from reki_ray.errors import ConfigError, EngineError
from tests.support.s3_server import BUCKET, Fault, FaultProxy

CUTS = pa.table({"user_id": ["a", "b"], "cut": [1, 2]})


@pytest.fixture
def few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute less for each error that does not pass."""
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(proxy: FaultProxy) -> Workspace:
    return Workspace(f"s3://{BUCKET}/{uuid.uuid4().hex}")


def ingest(workspace: Workspace, rows: int = 2, fingerprint: str = "one") -> None:
    with workspace.replacing("ingest") as scratch:
        scratch.write_table(schema.CUTS, CUTS.slice(0, rows))
        scratch.write_json("ingest/deep/er/note.json", {"rows": rows})
    workspace.record("ingest", StageEntry(fingerprint))


# --- everywhere ------------------------------------------------------------------------------
def test_a_stage_replaces_its_output_whole(anywhere: str) -> None:
    workspace, other = Workspace(anywhere), Workspace(anywhere)
    assert other.stages() == {}
    ingest(workspace)
    assert other.read_table(schema.CUTS).num_rows == 2
    ingest(workspace, rows=1, fingerprint="two")
    # Nothing is remembered of an earlier listing.
    assert other.read_table(schema.CUTS).num_rows == 1
    assert other.read_json("ingest/deep/er/note.json") == {"rows": 1}
    assert other.stages()["ingest"].fingerprint == "two"
    assert not other.exists(".scratch-ingest")


def test_a_stage_may_leave_a_table_without_files(anywhere: str) -> None:
    workspace = Workspace(anywhere)
    ingest(workspace)
    with workspace.replacing("ingest", [schema.CUTS]):
        pass
    assert not workspace.has_table(schema.CUTS)
    assert workspace.read_json("ingest/deep/er/note.json") == {"rows": 2}


def test_a_failed_stage_leaves_the_old_output(anywhere: str) -> None:
    workspace = Workspace(anywhere)
    ingest(workspace)

    def fail() -> None:
        with workspace.replacing("ingest") as scratch:
            scratch.write_table(schema.CUTS, CUTS.slice(0, 1))
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert Workspace(anywhere).read_table(schema.CUTS).num_rows == 2
    assert Workspace(anywhere).stages()["ingest"].fingerprint == "one"


def test_one_of_many_writers_creates_a_file(anywhere: str) -> None:
    def create(number: int) -> bool:
        return Workspace(anywhere).create("one/pointer", f"{number}".encode())

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, range(16)))
    assert sum(created) == 1
    assert Workspace(anywhere).read_bytes("one/pointer") == str(created.index(True)).encode()


def test_a_second_run_is_refused_and_may_start_after_the_first(anywhere: str) -> None:
    first, second = Workspace(anywhere), Workspace(anywhere)
    with first.lock():
        first.record("ingest", StageEntry("one"))
        with pytest.raises(ConfigError, match="another run is working"), second.lock():
            pass
    with second.lock():
        assert second.stages()["ingest"].fingerprint == "one"


def test_a_missing_file_is_told_from_a_broken_storage(anywhere: str) -> None:
    with pytest.raises(FileNotFoundError):
        Workspace(anywhere).read_bytes("none")


# --- locks of object stores ------------------------------------------------------------------
def held(s3: Workspace, *, age: float, host: str = "elsewhere", pid: int = 1) -> None:
    holder = {"host": host, "pid": pid, "token": "theirs", "beat": time.time() - age}
    s3.write(LOCK, json.dumps(holder).encode())


def test_a_run_that_gives_no_heartbeat_is_dead(s3: Workspace) -> None:
    held(s3, age=30)
    with (
        pytest.raises(ConfigError, match=r"process 1 of elsewhere, last heartbeat 3\d s ago"),
        s3.lock(),
    ):
        pass
    held(s3, age=run_lock.STALE_SECONDS + 1)
    with s3.lock():
        assert json.loads(s3.read_bytes(LOCK))["pid"] == os.getpid()
    assert not s3.exists(LOCK)


def test_a_killed_run_of_this_host_is_not_waited_for(s3: Workspace) -> None:
    held(s3, age=20, host=socket.gethostname(), pid=2**22 + 1)  # beyond the largest process id
    with s3.lock():
        pass
    held(s3, age=20, host=socket.gethostname(), pid=os.getppid())
    with pytest.raises(ConfigError, match="another run"), s3.lock():
        pass


def test_the_lock_beats(s3: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.05)
    with s3.lock():
        first = json.loads(s3.read_bytes(LOCK))["beat"]
        while json.loads(s3.read_bytes(LOCK))["beat"] == first:
            time.sleep(0.05)


def test_a_run_whose_lock_was_taken_over_publishes_nothing(s3: Workspace) -> None:
    with s3.lock():
        ingest(s3)
        held(s3, age=0)
        with pytest.raises(EngineError, match="on elsewhere, has taken this workspace over"):
            ingest(s3, rows=1, fingerprint="two")
    assert s3.stages()["ingest"].fingerprint == "one"
    assert s3.read_table(schema.CUTS).num_rows == 2
    assert json.loads(s3.read_bytes(LOCK))["token"] == "theirs"


# --- faults ----------------------------------------------------------------------------------
@pytest.mark.parametrize("fault", ["slow", "503", "torn", "cut"])
def test_a_passing_fault_costs_time_alone(s3: Workspace, proxy: FaultProxy, fault: Fault) -> None:
    proxy.fail(2, fault)
    ingest(s3)
    assert [found for _, _, found in proxy.requests].count(fault) == 2
    assert s3.read_table(schema.CUTS).num_rows == 2


def test_a_created_file_whose_answer_was_lost_is_ours(s3: Workspace, proxy: FaultProxy) -> None:
    proxy.fail(1, "cut")
    assert s3.create("pointer", b"ours")
    assert not s3.create("pointer", b"theirs")


@pytest.mark.usefixtures("few_retries")
@pytest.mark.parametrize("fault", ["503", "torn", "cut"])
def test_a_lasting_fault_is_an_error_that_keeps_the_old_output(
    s3: Workspace, proxy: FaultProxy, fault: Fault
) -> None:
    ingest(s3)
    proxy.fail(10_000, fault)
    with pytest.raises(EngineError, match="the workspace cannot be written"):
        ingest(s3, rows=1, fingerprint="two")
    proxy.fail(0, "none")
    assert s3.read_table(schema.CUTS).num_rows == 2
    assert s3.stages()["ingest"].fingerprint == "one"


@pytest.mark.usefixtures("few_retries")
def test_a_move_that_is_cut_off_leaves_the_stage_undone(s3: Workspace, proxy: FaultProxy) -> None:
    ingest(s3)
    scratch_puts = "/ingest/"

    def cut(method: str, path: str) -> Fault:
        return (
            "503" if method == "PUT" and scratch_puts in path and ".scratch" not in path else "none"
        )

    proxy.fault = cut
    with pytest.raises(EngineError):
        ingest(s3, rows=1, fingerprint="two")
    proxy.fail(0, "none")
    assert "ingest" not in s3.stages()
    ingest(s3, rows=1, fingerprint="two")
    assert s3.read_table(schema.CUTS).num_rows == 1
