"""Engines, drivers and nodes that die in the middle of stage extract: nothing is lost or repeated.

The model does not matter here, so the engine is scripted; its processes are real and really die.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from reki_ray import schema
from reki_ray.config import ExtractConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.stage import StageResult
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError
from reki_ray.extraction.answer_cache import FAILURES, LEDGER
from reki_ray.prompts.template import PromptTemplate
from reki_ray.stages import extract as extract_stage
from reki_ray.stages import extract_runner
from tests.support import faulty_engine
from tests.support.faulty_engine import SUBJECTS, UNIT_ROWS, Death, Fault

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

RunStage = Callable[..., StageResult]


@pytest.fixture
def run_stage(
    workspace: Workspace, tmp_path: Path, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> RunStage:
    """Runs stage extract over filled tables with a faulty_engine engine."""
    faulty_engine.fill(workspace)

    def run(fault: Fault, **extract: Any) -> StageResult:
        def build(section: ExtractConfig, template: PromptTemplate) -> faulty_engine.FaultyEngine:
            return faulty_engine.FaultyEngine(section.engine, section, template, fault)  # type: ignore[arg-type]

        monkeypatch.setattr(extract_stage, "build_engine", build)
        return extract_stage.run(
            faulty_engine.config(workspace.root, **extract), workspace, reporter
        )

    return run


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    "death",
    [
        "sigkill",
        pytest.param("os_exit", marks=pytest.mark.slow),
        pytest.param("clean_exit", marks=pytest.mark.slow),
    ],
)
def test_an_engine_actor_that_dies_costs_its_unfinished_units_alone(
    run_stage: RunStage, workspace: Workspace, tmp_path: Path, death: Death
) -> None:
    result = run_stage(Fault(str(tmp_path), death))
    assert (tmp_path / "died").exists()
    assert result.dead == 0
    faulty_engine.require_sound(workspace, result, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_an_engine_that_always_dies_fails_the_stage_and_keeps_what_it_answered(
    run_stage: RunStage, workspace: Workspace, tmp_path: Path
) -> None:
    hopeless = Fault(str(tmp_path), "os_exit", after=1, every_actor=True)
    with pytest.raises(EngineError, match=r"the engine failed.*prompts are left") as caught:
        run_stage(hopeless, restarts=0, unit_rows=2)
    assert "run `reki extract` again" in caught.value.todo
    result = run_stage(Fault(str(tmp_path)))
    faulty_engine.require_sound(workspace, result, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_prompt_that_kills_each_engine_is_a_dead_letter_and_its_neighbours_are_answered(
    run_stage: RunStage, workspace: Workspace, tmp_path: Path
) -> None:
    poison = " 17\ngenre"  # the prompt of one item
    result = run_stage(Fault(str(tmp_path), poison=poison), restarts=1, unit_rows=4)
    (letter,) = workspace.read_table(schema.DEAD_LETTERS).to_pylist()
    assert letter[schema.SUBJECT_ID] == "i00000017"
    assert poison in letter[schema.PROMPT]
    assert "asked alone, the engine failed" in letter[schema.REASON]
    faulty_engine.require_sound(workspace, result, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_an_engine_that_does_not_start_blames_no_prompt(
    run_stage: RunStage, workspace: Workspace, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="the model does not fit") as caught:
        run_stage(Fault(str(tmp_path), no_start=True), restarts=1)
    assert f"{SUBJECTS} prompts are left" in caught.value.what
    assert not workspace.has_table(FAILURES)


@pytest.mark.usefixtures("ray_local")
def test_a_slow_start_is_no_stall(
    run_stage: RunStage, workspace: Workspace, tmp_path: Path
) -> None:
    result = run_stage(Fault(str(tmp_path), start_seconds=10.0), stall_minutes=0.15)
    faulty_engine.require_sound(workspace, result, tmp_path)


@pytest.mark.usefixtures("ray_local")
def test_silence_is_noticed(run_stage: RunStage, workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no prompt finished") as caught:
        run_stage(Fault(str(tmp_path), seconds=8.0), stall_minutes=0.05, unit_rows=1)
    assert "stall_minutes" in caught.value.where


@pytest.mark.parametrize(
    ("no_node", "missing"), [(True, "waiting for a GPU node"), (False, "an engine to start")]
)
def test_a_start_has_a_patience_of_its_own(
    monkeypatch: pytest.MonkeyPatch, workspace: Workspace, no_node: bool, missing: str
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(extract_runner, "replicas", lambda since: 0)
    monkeypatch.setattr(extract_runner, "waits_for_node", lambda demand: no_node)
    config = faulty_engine.config(workspace.root, start_minutes=3.0, stall_minutes=1.0).extract
    engine: Any = SimpleNamespace(demand={"GPU": 1.0}, name="vllm", model="m")
    watch = extract_runner._Watch(config, engine)
    now[0] += 120.0
    assert watch.look() == 0
    assert missing in watch.note
    assert watch.note.endswith(", 2 min")
    watch.require_life()
    now[0] += 120.0
    with pytest.raises(EngineError, match=f"no engine ran, .*{missing}") as error:
        watch.require_life()
    assert "start_minutes" in error.value.where


def start(
    workspace: Workspace,
    fault: Fault,
    environment: Mapping[str, str] | None = None,
    **extract: Any,
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.support.run_stage", workspace.location]
    # A session of its own: the kill must not reach the tests.
    return subprocess.Popen(
        [*command, json.dumps(dataclasses.asdict(fault)), json.dumps(extract)],
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    )


def wait_for_units(workspace: Workspace, units: int, run: subprocess.Popen[bytes]) -> None:
    while len(workspace.parts(LEDGER)) < units:
        assert run.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_driver_that_is_killed_at_half_resumes_without_asking_again(
    run_stage: RunStage, workspace: Workspace, tmp_path: Path
) -> None:
    run = start(workspace, Fault(str(tmp_path), seconds=0.05))
    try:
        wait_for_units(workspace, SUBJECTS // 8 // 2, run)
    finally:
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    finished = faulty_engine.kept(workspace)
    assert 0 < len(finished) < SUBJECTS
    before = faulty_engine.calls(tmp_path)
    result = run_stage(Fault(str(tmp_path)))
    after = faulty_engine.calls(tmp_path)
    assert all(len(after[address]) == len(before[address]) for address in finished)
    assert result.details["cache_hits"] >= len(finished)
    faulty_engine.require_sound(workspace, result, tmp_path)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without room for engines, so that these live on nodes that come and go."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield made
    finally:
        made.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_node_that_goes_and_one_that_comes_lose_nothing(
    cluster: Cluster, run_stage: RunStage, workspace: Workspace, tmp_path: Path
) -> None:
    first = cluster.add_node(num_cpus=2)
    fault = Fault(str(tmp_path), seconds=0.2)
    run = start(workspace, fault, environment={"RAY_ADDRESS": cluster.address})
    try:
        wait_for_units(workspace, 4, run)
        cluster.add_node(num_cpus=2)
        cluster.remove_node(first, allow_graceful=False)
        assert run.wait(timeout=300) == 0
    finally:
        if run.poll() is None:
            os.kill(run.pid, signal.SIGKILL)
            run.wait()
    result = run_stage(Fault(str(tmp_path)))
    assert result.details["cache_hits"] == SUBJECTS
    faulty_engine.require_sound(workspace, result, tmp_path)


def drain(cluster: Cluster, node: Any, seconds: int) -> None:
    """What a cloud's agent does at a spot notice."""
    command = ["-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address]
    command += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "spot", "--deadline-remaining-seconds", str(seconds)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("notice", ["drain", "sigterm", "none"])
def test_a_lost_node_repeats_at_most_the_prompts_in_flight(
    cluster: Cluster, run_stage: RunStage, workspace: Workspace, tmp_path: Path, notice: str
) -> None:
    first = cluster.add_node(num_cpus=2)
    fault = Fault(str(tmp_path), seconds=0.2)
    run = start(workspace, fault, environment={"RAY_ADDRESS": cluster.address})
    try:
        wait_for_units(workspace, 2, run)
        cluster.add_node(num_cpus=2)
        if notice == "drain":
            drain(cluster, first, seconds=60)
            wait_for_silence(tmp_path)
        cluster.remove_node(first, allow_graceful=notice == "sigterm")
        assert run.wait(timeout=300) == 0
    finally:
        if run.poll() is None:
            os.kill(run.pid, signal.SIGKILL)
            run.wait()
    # One unit in work, and one that was answered but not written yet.
    assert faulty_engine.repeated(tmp_path) <= (0 if notice == "drain" else 2 * UNIT_ROWS)
    result = run_stage(Fault(str(tmp_path)))
    assert result.details["cache_hits"] == SUBJECTS
    faulty_engine.require_sound(workspace, result, tmp_path)


def wait_for_silence(folder: Path) -> None:
    """Wait until no engine has called the model for three seconds."""
    while time.time() - max(map(max, faulty_engine.callers(folder).values())) < 3:
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_short_queue_starts_a_second_engine_and_its_end_stops_one(
    cluster: Cluster, run_stage: RunStage, workspace: Workspace, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=3)
    fault = Fault(str(tmp_path), seconds=0.1, slow=" 59\ngenre", concurrent=True)
    environment = {"RAY_ADDRESS": cluster.address}
    run = start(workspace, fault, environment, unit_rows=40, max_replicas=2)
    try:
        while not (tmp_path / "calls").exists() or len(faulty_engine.callers(tmp_path)) < 2:
            assert run.poll() is None, "one engine did all the work"
            time.sleep(0.1)
        engines = [Path(f"/proc/{pid}") for pid in faulty_engine.callers(tmp_path)]
        while all(engine.exists() for engine in engines):
            assert run.poll() is None, "both engines ran until the end"
            time.sleep(0.1)
        assert any(engine.exists() for engine in engines)
        assert run.wait(timeout=300) == 0
    finally:
        if run.poll() is None:
            os.kill(run.pid, signal.SIGKILL)
            run.wait()
    assert len(faulty_engine.callers(tmp_path)) == 2
    assert not faulty_engine.repeated(tmp_path)
    result = run_stage(Fault(str(tmp_path)))
    faulty_engine.require_sound(workspace, result, tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a part of the answers only."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=220k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this account may not mount a small file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_full_disk_stops_the_stage_and_loses_no_answer(
    run_stage: RunStage, small_disk: Path, workspace: Workspace, tmp_path: Path
) -> None:
    ledger = Path(workspace.path(LEDGER.path))
    ledger.parent.mkdir(parents=True)
    ledger.symlink_to(small_disk)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 160 * 1024)
    with pytest.raises(EngineError, match="answer cache cannot be written") as caught:
        run_stage(Fault(str(tmp_path)), unit_rows=4)
    assert "Free some space" in caught.value.todo
    finished = faulty_engine.kept(workspace)
    assert 0 < len(finished) < SUBJECTS
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    result = run_stage(Fault(str(tmp_path)), unit_rows=4)
    faulty_engine.require_sound(workspace, result, tmp_path)
