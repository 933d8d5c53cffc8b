"""Every example of examples/ runs as its first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from reki_ray.store.versions import VersionStore
from tests.support import store_factory
from tests.support.live_graph import make_config, running

FOLDER: Final = Path(__file__).parents[2] / "examples"
TESTED: Final = {"hein_only", "extract_only", "store_only", "own_data", "serve_client"}


def run(name: str, *arguments: str, folder: Path) -> str:
    """Standard output of an example that runs in a folder of its own."""
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_a_test() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == TESTED


def test_hein_only(tmp_path: Path) -> None:
    output = run("hein_only", folder=tmp_path)
    assert "augmented item vectors: (100, 16)" in output
    losses = [float(line.rsplit(" ", 1)[1]) for line in output.splitlines() if "loss" in line]
    assert losses[-1] < losses[0]


def test_store_only(tmp_path: Path) -> None:
    output = run("store_only", folder=tmp_path)
    assert "versions: [1, 2], current: 1" in output
    assert "(3, 32)" in output
    assert "rolled back to: 1" in output


@pytest.mark.ray
def test_extract_only(tmp_path: Path) -> None:
    output = run("extract_only", folder=tmp_path)
    assert output.count("genre: ") == 3
    assert "vectors: (3, " in output


@pytest.mark.ray
@pytest.mark.serve
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_own_data(tmp_path: Path) -> None:
    output = run("own_data", "shop", folder=tmp_path)
    assert "report: " in output
    assert (tmp_path / "shop" / "run" / "report.html").is_file()


@pytest.mark.serve
def test_serve_client(tmp_path: Path) -> None:
    VersionStore(tmp_path / "publish").publish(store_factory.fill)
    with running(make_config(tmp_path)) as graph:
        arguments = ("--url", graph.url, "--user", "u0", "--items", "m0", "m1")
        lines = run("serve_client", *arguments, folder=tmp_path).splitlines()
    assert lines[0].startswith("version v1, user vector from: ")
    assert [line.split(":")[0].strip() for line in lines[1:3]] == ["m0", "m1"]
    assert lines[3].startswith(("recommended: m", "no recommendations: "))
