"""A run whose workspace and inputs are on an object store that fails now and then."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import yaml

from reki_ray import schema
from reki_ray.core.workspace import Workspace
from reki_ray.evaluation.comparison import METRICS
from tests.conftest import TinyConfig
from tests.support.s3_server import BUCKET, Fault, FaultProxy

REKI = str(Path(sys.executable).parent / "reki")
DONE = ["ingest", "cluster", "extract", "encode", "train"]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]


def reki(*arguments: str) -> str:
    done = subprocess.run(
        [REKI, *arguments], env={**os.environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def now_and_then(proxy: FaultProxy) -> None:
    """One request in 25 is refused, and the answer to another one is lost."""
    number = itertools.count(1)

    def decide(method: str, path: str) -> Fault:
        place = next(number) % 25
        if method == "DELETE" or place not in (7, 19):
            return "none"
        return "503" if place == 7 else "cut"

    proxy.fault = decide


def test_every_stage_works_in_a_bucket(
    tiny_config: TinyConfig, tiny_data: Path, proxy: FaultProxy, tmp_path: Path
) -> None:
    root = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    workspace = Workspace(f"{root}/run")
    for name in ("interactions", "items", "users"):
        content = (tiny_data / f"{name}.csv").read_bytes()
        Workspace(root).write(f"data/{name}/part-0.csv", content)
    source = {name: f"{root}/data/{name}" for name in ("interactions", "items", "users")}
    columns = {"item_attributes": ["genre"], "user_attributes": ["gender"]}
    config = tiny_config(data={"source": {"kind": "csv", "columns": columns, **source}})
    tree = {**config.model_dump(mode="json", exclude_unset=True), "workspace": workspace.root}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    now_and_then(proxy)
    reki("run", "-c", str(tmp_path / "c.yaml"), "--until", "train")
    reki("evaluate", "-c", str(tmp_path / "c.yaml"))
    faults = [fault for _, _, fault in proxy.requests]
    assert min(faults.count("503"), faults.count("cut")) > 10
    proxy.fail(0, "none")
    stages = workspace.stages()
    assert list(stages) == [*DONE, "evaluate"]
    assert stages["extract"].rows_out == stages["extract"].rows_in > 0
    assert workspace.read_table(schema.REPRESENTATIONS["users"]).num_rows == 40
    assert "reki_c" in json.dumps(workspace.read_json(METRICS))
    left = {
        path.rpartition("/")[2] for path in workspace.filesystem.ls(workspace.path(), detail=False)
    }
    assert left == {*DONE, "evaluate", "manifest.json", "progress.json"}
    said = reki("run", "-c", str(tmp_path / "c.yaml"), "--until", "train")
    assert said.count("unchanged, skipped") == len(DONE)
    # A new input runs what reads it again.
    content = (tiny_data / "users.csv").read_bytes()
    Workspace(root).write("data/users/part-0.csv", content.replace(b"u39,M", b"u39,F"))
    said = reki("ingest", "-c", str(tmp_path / "c.yaml"))
    assert "ingest: done" in said
