"""The command line: exit codes, one clear line for what went wrong, machine-readable output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from reki_ray.cli import doctor
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import StageEntry, Workspace
from reki_ray.store.versions import VersionStore
from tests.support.store_factory import fill

REKI = str(Path(sys.executable).parent / "reki")


def reki(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", **variables}
    return subprocess.run(
        [REKI, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_wrong_configuration_leaves_with_2_and_says_what_to_do(tmp_path: Path) -> None:
    done = reki("run", "-c", "none.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot read the configuration" in done.stderr
    assert "what to do:" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_option_and_unknown_stage_leave_with_2(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: a\ndata: {source: {kind: movielens_100k}}\n")
    assert reki("run", "--speed", "9", cwd=tmp_path).returncode == 2
    done = reki("run", "-c", "c.yaml", "--force", "cook", cwd=tmp_path)
    assert done.returncode == 2
    assert "no stage 'cook'" in done.stderr


@pytest.mark.parametrize(
    ("option", "name", "told"),
    [
        ("--arms", "magic", "train.arms"),
        ("--backbones", "magic", "is not a backbone"),
        ("--rerankers", "prm,magic", "is not a reranker"),
    ],
)
def test_evaluate_takes_names_from_its_options(
    tmp_path: Path, option: str, name: str, told: str
) -> None:
    (tmp_path / "c.yaml").write_text("name: a\ndata: {source: {kind: movielens_100k}}\n")
    done = reki("evaluate", "-c", "c.yaml", option, name, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert told in done.stderr


def test_missing_data_leave_with_3(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "name: a\ndata: {source: {kind: movielens_1m, path: nowhere}}\n"
    )
    done = reki("ingest", "-c", "c.yaml", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "nowhere" in done.stderr


def test_unreachable_cluster_leaves_with_4(tmp_path: Path) -> None:
    nobody = "127.0.0.1:1"
    done = reki("doctor", "--cluster", "--json", cwd=tmp_path, RAY_ADDRESS=nobody)
    assert done.returncode == 4, done.stdout
    by_name = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert by_name["ray"]["ok"]
    assert not by_name["cluster"]["ok"]
    assert "ray start --head" in by_name["cluster"]["todo"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "--json >&-"])
def test_streams_that_the_caller_closed_end_no_command(tmp_path: Path, closed: str) -> None:
    Workspace(tmp_path).record("ingest", StageEntry("f"))
    line = f"{REKI} status --workspace . {closed}"
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_status_speaks_json(tmp_path: Path) -> None:
    Workspace(tmp_path).record("ingest", StageEntry("f", rows_in=5, rows_out=4, dead=1))
    done = reki("status", "--workspace", str(tmp_path), "--json", cwd=tmp_path)
    assert done.returncode == 0
    [ingest] = [s for s in json.loads(done.stdout)["stages"] if s["name"] == "ingest"]
    assert (ingest["done"], ingest["rows_in"], ingest["dead"]) == (True, 5, 1)


def test_doctor_names_a_package_that_shadows_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "actors", raising=False)
    [finding] = [f for f in doctor.examine(cluster=False) if f.check == "actors"]
    assert not finding.ok
    assert str(tmp_path) in finding.detail
    assert doctor.exit_code([finding]) == 2


def test_progress_writes_plain_lines_and_a_heartbeat(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reki_ray.core.progress._LINE_SECONDS", 0.0)
    with Reporter(workspace).task("extract: asking", total=10, unit="prompts") as task:
        task.advance(4, generated_tokens=100)
        beat = workspace.read_json("progress.json")
        assert (beat["done"], beat["total"], beat["finished"]) == (0, 10, False)
    assert "extract: asking: 4 of 10 prompts" in capsys.readouterr().err
    assert workspace.read_json("progress.json")["finished"]
    assert workspace.read_json("progress.json")["counters"] == {"generated_tokens": 100}


def test_an_experiment_is_started_compared_and_stopped(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "name: a\nworkspace: run\ndata: {source: {kind: movielens_100k}}\n"
    )
    store = VersionStore(tmp_path / "run" / "publish")
    base, better = (store.publish(partial(fill, knowledge=k)) for k in (False, True))
    wrong = reki("experiment", "start", "first", "base", "-c", "c.yaml", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "NAME=VERSION:SHARE" in wrong.stderr
    variants = [f"base={base}:0.5", f"reki=v{better}:0.5"]
    started = reki("experiment", "start", "first", *variants, "-c", "c.yaml", cwd=tmp_path)
    assert started.returncode == 0, started.stderr
    compared = reki("ab", "-c", "c.yaml", "--json", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert [one["exposures"] for one in json.loads(compared.stdout)["variants"]] == [0, 0]
    assert reki("experiment", "stop", "-c", "c.yaml", cwd=tmp_path).returncode == 0
    again = reki("ab", "-c", "c.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert "experiment" in again.stderr


def test_a_version_is_exported_to_where_replicas_look_vectors_up(tmp_path: Path) -> None:
    run = "name: a\nworkspace: run\ndata: {source: {kind: movielens_100k}}\n"
    (tmp_path / "own.yaml").write_text(run)
    lmdb = "store: {vectors: {kind: lmdb, url: vectors}}\n"
    (tmp_path / "lmdb.yaml").write_text(run + lmdb)
    away = "store: {vectors: {kind: redis, url: 'redis://:secret@127.0.0.1:1/0'}}\n"
    (tmp_path / "away.yaml").write_text(run + away)
    VersionStore(tmp_path / "run" / "publish").publish(fill)
    done = reki("export", "-c", "lmdb.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["version"], told["kind"], told["vectors"], told["written"]) == (1, "lmdb", 16, 16)
    nowhere = reki("export", "-c", "own.yaml", cwd=tmp_path)
    assert nowhere.returncode == 2
    assert "store.vectors.kind" in nowhere.stderr
    gone = reki("export", "-c", "away.yaml", "--version", "1", cwd=tmp_path)
    assert gone.returncode == 3
    assert "does not answer" in gone.stderr
    assert "secret" not in gone.stderr
