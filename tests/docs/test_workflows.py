"""The groups of the continuous integration cover every test exactly once."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path
from typing import Final

import yaml
from _pytest.mark.expression import Expression

ROOT: Final = Path(__file__).parents[2]


def test_each_combination_of_markers_is_in_one_group() -> None:
    groups = expressions()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    options = project["tool"]["pytest"]["ini_options"]["markers"]
    markers = [option.partition(":")[0] for option in options]
    for count in range(len(markers) + 1):
        for chosen in itertools.combinations(markers, count):
            selected = {name for name, group in groups if matches(group, chosen)}
            # The runners have no GPU.
            assert len(selected) == ("gpu" not in chosen), (chosen, selected)


def matches(group: Expression, markers: tuple[str, ...]) -> bool:
    return group.evaluate(lambda name, /, **_: name in markers)


def expressions() -> list[tuple[str, Expression]]:
    """Name and marker expression of every group, per matrix entry on one version of Python."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    groups = []
    for job in workflow["jobs"].values():
        template = job["steps"][-1]["env"]["MARKERS"]
        for entry in job["strategy"]["matrix"]["include"]:
            text = template.replace("${{ matrix.markers }}", entry["markers"])
            groups.append((entry["group"], Expression.compile(text.strip())))
    return groups
