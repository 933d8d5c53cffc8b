"""Damaged input and two runs at a time: clear errors, and nothing is lost."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from reki_ray import schema
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import StageEntry, Workspace
from reki_ray.errors import DataError
from reki_ray.extraction.answer_cache import LEDGER
from reki_ray.stages import extract as extract_stage
from reki_ray.stages.pipeline import fingerprints
from tests.conftest import TinyConfig
from tests.support import faulty_engine

pytestmark = [pytest.mark.ray, pytest.mark.chaos]


def footer(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-12:-4] = os.urandom(8)
    path.write_bytes(bytes(content))


def page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).dictionary_page_offset
    content[start : start + 48] = b"\xff" * 48
    path.write_bytes(bytes(content))


def columns(path: Path) -> None:
    pq.write_table(pa.table({"something": ["else"]}), path)


@pytest.mark.usefixtures("ray_local")
def test_damaged_input_is_named_and_costs_no_answer(
    workspace: Workspace, reporter: Reporter
) -> None:
    faulty_engine.fill(workspace)
    config = faulty_engine.config(workspace.root)
    first = extract_stage.run(config, workspace, reporter)
    kept = faulty_engine.kept(workspace)
    tables = [schema.ITEMS, schema.USERS, schema.INTERACTIONS]
    for table, damage in itertools.product(tables, [footer, page, columns]):
        (part,) = workspace.parts(table)
        whole = Path(part).read_bytes()
        damage(Path(part))
        with pytest.raises(DataError) as caught:
            extract_stage.run(config, workspace, reporter)
        assert table.path in caught.value.where, damage.__name__
        Path(part).write_bytes(whole)
    again = extract_stage.run(config, workspace, reporter)
    assert again.details["cache_hits"] == first.rows_out == faulty_engine.SUBJECTS
    assert faulty_engine.kept(workspace) == kept


def reki_extract(config: Path) -> subprocess.Popen[str]:
    arguments = [str(Path(sys.executable).parent / "reki"), "extract", "--config", str(config)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_second_run_on_a_workspace_is_refused_and_the_first_goes_on(
    tiny_config: TinyConfig, workspace: Workspace, tmp_path: Path
) -> None:
    config = tiny_config(
        extract={
            "engine": {"kind": "scripted", "seconds": 0.1},
            "mode": "individual",
            "unit_rows": 4,
        },
        train={"arms": ["fair_base", "reki_i"]},
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    faulty_engine.fill(workspace)
    for name in ("ingest", "cluster"):
        workspace.record(name, StageEntry(fingerprint=fingerprints(config)[name]))
    first = reki_extract(path)
    try:
        while not workspace.parts(LEDGER):
            assert first.poll() is None
            time.sleep(0.05)
        second = reki_extract(path)
        _, errors = second.communicate(timeout=120)
        assert second.returncode == 2
        assert "another run is working on this workspace" in errors
        assert first.wait(timeout=200) == 0
    finally:
        first.kill()
        first.communicate()
    hashes = workspace.read_table(LEDGER)[schema.PROMPT_HASH].to_pylist()
    entry = json.loads(Path(workspace.path("manifest.json")).read_text())["stages"]["extract"]
    assert len(hashes) == len(set(hashes)) == entry["details"]["prompts"]
