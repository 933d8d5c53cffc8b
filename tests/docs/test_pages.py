"""What the documentation says is what the code does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from reki_ray.cli import bench

ROOT = Path(__file__).parents[2]


def test_configuration_page_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "render_configuration.py"))["render"]()
    committed = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert committed == page, "run: python docs/render_configuration.py"


def test_make_bench_runs_every_benchmark() -> None:
    called = re.findall(r"reki bench (\w+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert sorted(called) == sorted(bench.NAMES)
