"""The wheel holds everything that runs, and nothing that only tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("reki_ray", "actors", "deployments")
DATA_SUFFIXES = (".yaml", ".j2", ".html", ".css", ".js", ".typed")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: setuptools leaves its build folder where it builds.
    source = folder / "source"
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [wheel] = folder.glob("reki_ray-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_wheel_holds_all_code_and_data_of_the_three_packages(names: set[str]) -> None:
    tracked = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", *DATA_SUFFIXES)
    }
    assert tracked <= names, sorted(tracked - names)


def test_wheel_holds_no_tests(names: set[str]) -> None:
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)
