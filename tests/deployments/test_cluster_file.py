"""cluster.yaml passes Ray's own check, and names only paths and commands that exist here."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli
from typer.main import get_command

from reki_ray.cli.main import app
from reki_ray.config import load_config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")


@pytest.fixture
def cluster() -> dict[str, Any]:
    return dict(yaml.safe_load(TEXT))


def test_passes_rays_schema_check(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_head_has_no_gpu_and_workers_scale_from_zero(cluster: dict[str, Any]) -> None:
    workers = cluster["available_node_types"]["gpu_worker"]
    assert workers["min_workers"] == 0
    assert workers["max_workers"] == cluster["max_workers"]
    assert cluster["docker"]["head_image"].endswith("-cpu")


def test_images_hold_the_ray_that_is_tested(cluster: dict[str, Any]) -> None:
    for image in (cluster["docker"]["head_image"], cluster["docker"]["worker_image"]):
        assert f":{metadata.version('ray')}-py311-" in image


def test_make_target_exists(cluster: dict[str, Any]) -> None:
    [command] = [c for c in cluster["setup_commands"] if "~/reki-ray" in c]
    arguments = command.replace("~/reki-ray", str(ROOT)).split()
    done = subprocess.run([*arguments, "--dry-run"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ray_commands_and_their_options_exist(cluster: dict[str, Any]) -> None:
    commands = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    for line in commands:
        program, name, *options = line.split()
        assert (Path(sys.prefix) / "bin" / Path(program).name).exists()
        known = {flag for option in ray_cli.commands[name].params for flag in option.opts}
        assert {option.partition("=")[0] for option in options} <= known


def test_reki_commands_in_the_comments_exist() -> None:
    lines = re.findall(r"\.venv/bin/reki (\w+)([^'\n]*)'", TEXT)
    assert len(lines) == 3
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, rest in lines:
        known = {flag for option in commands[name].params for flag in option.opts}
        assert {word for word in rest.split() if word.startswith("--")} <= known
        for path in re.findall(r"configs/\S+", rest):
            assert load_config(ROOT / path).name
