"""Writes docs/results/benchmarks.md from benchmarks/out/*.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "benchmarks" / "out"
TARGET = Path(__file__).with_name("results") / "benchmarks.md"
HEADER = """# Benchmarks

`make bench` runs the benchmarks and writes this page with `python docs/render_benchmarks.py`. Each
value is a median; the span is the smallest and the largest run. The docstring of
`benchmarks/<name>.py` defines the figures of a section.
"""


def render(results: dict[str, dict[str, Any]]) -> str:
    """Return the page as Markdown, with one section per benchmark.

    Args:
        results: The content of each benchmark's file, by name.
    """
    return HEADER + "".join(_section(name, content) for name, content in sorted(results.items()))


def _section(name: str, content: dict[str, Any]) -> str:
    machine, versions = content["machine"], content["versions"]
    where = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}, Python {machine['python']}"
    )
    tested = ", ".join(f"{library} {version}" for library, version in versions.items())
    rows = "".join(
        f"| `{figure}` | {_number(values['value'])} | "
        f"{_number(values['min'])} to {_number(values['max'])} |\n"
        for figure, values in content["figures"].items()
    )
    return (
        f"\n## {name}\n\n{where}; {tested}; commit `{content['commit']}`, "
        f"{content['measured_at']}.\n\n| figure | median | span |\n|---|---|---|\n{rows}"
    )


def _number(value: float) -> str:
    value += 0.0  # a figure that was rounded to -0
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:g}"


if __name__ == "__main__":
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in OUT.glob("*.json")}
    # benchmarks/llm_choice.py writes its file for a page of its own.
    found = {name: content for name, content in files.items() if "versions" in content}
    TARGET.write_text(render(found), encoding="utf-8")
