"""launch/docker: the script that installs the image, run as shell, and the Dockerfile around it.

Not covered: the steps `system` (apt-get), `models` (16 GB) and `check` with real packages, and the
build itself, which needs Docker. pip, hf, python3 -m venv's result and reki are stubs here.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.launched_hosts import LaunchedHosts

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch/docker/install.sh"
DOCKERFILE = (ROOT / "launch/docker/Dockerfile").read_text(encoding="utf-8")
STEPS = ("system", "venv", "packages", "models", "profile", "check")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A container whose commands are stubs that write down their calls."""
    return LaunchedHosts(tmp_path, baked=False).host("host")


def install(host: Path, *steps: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "HOST": str(host),
        "HOME": str(host / "container"),
        "PATH": f"{host}/container/bin:{os.environ['PATH']}",
        **variables,
    }
    return subprocess.run(
        ["bash", str(SCRIPT), *steps], env=environment, capture_output=True, text=True, check=False
    )


def calls(host: Path) -> list[str]:
    return (host / "calls").read_text(encoding="utf-8").splitlines()


def test_script_is_valid_and_stops_at_the_first_error() -> None:
    checked = subprocess.run(["bash", "-n", SCRIPT], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    text = SCRIPT.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert os.access(SCRIPT, os.X_OK)
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", code)
    # Unquoted variables are split at blanks, which only the loop over models wants.
    assert re.findall(r"\$\{?[a-z]\w*", unquoted) == ["$models"]


def test_all_steps_run_in_order(host: Path) -> None:
    done = install(host, REKI_CLOUD="aws", REKI_MODELS="Qwen/Qwen3-8B a/b")
    assert done.returncode == 0, done.stderr
    apt, compiler, pip, packaged, *rest = calls(host)
    assert apt == "apt-get update"
    assert "build-essential" in compiler
    assert pip.startswith("pip install ")
    assert f"--constraint {ROOT}/constraints.txt" in pip
    assert " boto3 " in pip
    assert pip.endswith("[gpu,stores,s3]")
    assert "packaged:all-minilm-l6-v2" in packaged
    assert rest[:2] == ["hf download Qwen/Qwen3-8B", "hf download a/b"]
    assert rest[-1] == "reki --help"


@pytest.mark.parametrize(("cloud", "extras"), [("gcp", "gpu,stores,gs"), ("none", "gpu,stores")])
def test_packages_follow_the_cloud(host: Path, cloud: str, extras: str) -> None:
    install(host, "venv", "packages", REKI_CLOUD=cloud)
    [pip] = [call for call in calls(host) if call.startswith("pip ")]
    assert pip.endswith(f"[{extras}]")
    assert ("google-api-python-client" in pip) == (cloud == "gcp")


def test_package_is_built_from_a_copy_that_has_all_it_needs(host: Path) -> None:
    (host / "recorder").write_text(
        '#!/bin/bash\nfor last; do :; done\nls "${last%%\\[*}" > "$HOST/copied"\n', encoding="utf-8"
    )
    done = install(host, "venv", "packages")
    assert done.returncode == 0, done.stderr
    copied = (host / "copied").read_text(encoding="utf-8").split()
    assert {"reki_ray", "actors", "deployments", "pyproject.toml", "LICENSE"} <= set(copied)


@pytest.mark.slow
def test_real_environment_is_made(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", SCRIPT, "venv"],
        env={**os.environ, "REKI_VENV": str(tmp_path / "venv")},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "venv/bin/pip").exists()


def test_login_shell_finds_ray_after_profile_and_twice_changes_nothing(host: Path) -> None:
    install(host, "venv", "profile")
    profile = host / "container/.profile"
    before = profile.read_text(encoding="utf-8")
    install(host, "profile")
    assert profile.read_text(encoding="utf-8") == before
    found = subprocess.run(
        ["bash", "-lc", "command -v ray"],
        env={"HOME": str(host / "container"), "HOST": str(host)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(host / "container/venv/bin/ray")


@pytest.mark.parametrize(
    ("steps", "variables", "words"),
    [(("vnev",), {}, "no step vnev"), (("packages",), {"REKI_CLOUD": "azure"}, "azure is not")],
)
def test_wrong_use_is_refused(
    host: Path, steps: tuple[str, ...], variables: dict[str, str], words: str
) -> None:
    done = install(host, *steps, **variables)
    assert done.returncode == 2
    assert words in done.stderr


def test_failed_step_ends_the_script(host: Path) -> None:
    (host / "container/bin/apt-get").write_text("#!/bin/bash\nexit 7\n", encoding="utf-8")
    done = install(host)
    assert done.returncode == 7
    assert not (host / "container/venv").exists()


def test_dockerfile_runs_every_step_and_copies_what_exists() -> None:
    run = [
        word
        for line in re.findall(r"^RUN .*install\.sh ([^\n&]+)", DOCKERFILE, re.MULTILINE)
        for word in shlex.split(line)
    ]
    assert tuple(run) == STEPS
    ignored = (ROOT / "launch/docker/Dockerfile.dockerignore").read_text(encoding="utf-8")
    allowed = re.findall(r"^!(\S+)$", ignored, re.MULTILINE)
    for line in re.findall(r"^COPY (?:--\S+ )*(.+)$", DOCKERFILE, re.MULTILINE):
        for source in shlex.split(line)[:-1]:
            assert (ROOT / source).exists()
            assert any(source == path or source.startswith(f"{path}/") for path in allowed)
    assert {"NVIDIA_VISIBLE_DEVICES", "PATH"} <= set(re.findall(r"([A-Z_]+)=", DOCKERFILE))


def test_step_names_are_those_of_the_script() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert tuple(re.findall(r"^([a-z]+)\(\) \{", text, re.MULTILINE)) == (
        "system",
        "venv",
        "packages",
        "models",
        "profile",
        "check",
    )
