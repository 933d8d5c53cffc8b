"""What was acknowledged survives kills at random moments, and nobody meets half of anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.chaos

FEW = {"file": 20, "refresher": 6, "store": 3}
MANY = {"file": 400, "refresher": 80, "store": 40}


def kill(writer: str, folder: Path, rounds: int) -> None:
    command = [sys.executable, "-m", "tests.support.killed_writers", writer, str(folder)]
    done = subprocess.run(
        [*command, str(rounds), "11"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) > 0


@pytest.mark.parametrize("writer", FEW)
def test_kills_lose_nothing(tmp_path: Path, writer: str) -> None:
    kill(writer, tmp_path / writer, FEW[writer])


@pytest.mark.slow
@pytest.mark.parametrize("writer", MANY)
def test_many_kills_lose_nothing(tmp_path: Path, writer: str) -> None:
    kill(writer, tmp_path / writer, MANY[writer])
