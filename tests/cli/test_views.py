"""Rooms return data; only the command line and the progress bar print with Rich."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("reki_ray", "actors", "deployments")


def imported(path: Path) -> set[str]:
    """Top-level packages that a module imports, anywhere in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module or "")
    return {name.partition(".")[0] for name in names}


def test_only_the_command_line_and_the_progress_bar_import_rich() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "rich" in imported(path)
    }
    others = {path for path in users if not path.startswith("reki_ray/cli/")}
    assert others == {"reki_ray/core/progress.py"}
