"""Benchmark of the online graph: 100 candidates, a stored history of 30, on this machine alone.

composed_to_floor    p50 of the composed graph over that of as many empty deployments, called in the
                     same order, plus the model's own time
fused_to_monolith    p50 of the fused graph over that of one process of FastAPI and uvicorn with the
                     same model and store
knowledge_overhead   p50 of the composed graph with knowledge over that of the base model
composed_p50_ms, fused_p50_ms, floor_p50_ms, monolith_p50_ms, base_p50_ms, model_p50_ms
                     what these are made of
lookup_p99_ms        vectors of 101 ids out of 10 million, in process
replica_growth_mib   private memory that a process gains by opening these and looking ids up
p99_to_p50_at_70     composed graph under requests that arrive at random at 70 % of the saturation
                     rate: p99 over p50, counted from the moment at which a request was due
saturation_per_s     most requests a second of the composed graph
soak_memory_growth   resident memory of all replicas at the end of 30 minutes at half the saturation
                     rate over that at a tenth; part soak, which is not run by default
soak_failures        requests of that time whose answer was not 200; `runs` counts the answers by
                     status and code of the error, and those that were degraded

A round measures all graphs one after the other on the same Ray Serve and behind the same proxy, one
request at a time; ratios are taken within a round. Model, users and items are synthetic: a DIN with
HEIN's sizes by default and untrained weights, which does not change its time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import Figures, Found, Part
from reki_ray.core.progress import Reporter

NAME = "serve"
_RUNS = "benchmarks.serve_runs"
_PARTS = ("latency", "lookup", "load", "soak")
_GRAPHS = ("composed", "fused", "floor", "monolith", "base", "model")


def run(arguments: Sequence[str] = ()) -> Path:
    """Measure everything and write the figures; returns the file."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="reki-bench-", dir=options.folder) as scratch:
        folder = Path(scratch)
        if {"latency", "load", "soak"} & set(options.parts):
            _run("fill", folder)
        parts = {
            "latency": Part(partial(_latency, folder, options), _latency_figures),
            "lookup": Part(partial(_lookup, folder, options), _lookup_figures),
            "load": Part(partial(_load, folder, options), _load_figures),
            "soak": Part(partial(_soak, folder, options), _soak_figures),
        }
        return harness.run_parts(NAME, {name: parts[name] for name in options.parts}, vars(options))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="reki bench serve", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS[:-1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=300, help="a graph and round")
    parser.add_argument("--vectors", type=int, default=10_000_000)
    parser.add_argument("--load-seconds", type=float, default=20.0, help="a round of part load")
    parser.add_argument("--soak-minutes", type=float, default=30.0)
    parser.add_argument("--folder", type=Path, help="where stores go; a temporary folder")
    return parser.parse_args(arguments)


def _latency(folder: Path, options: argparse.Namespace) -> Iterator[Found]:
    yield _run("latency", folder, options.rounds, options.requests)


def _latency_figures(found: Found) -> Figures:
    rounds = found["rounds"]
    figures = {
        "composed_to_floor": harness.figure(
            [one["composed"] / (one["floor"] + one["model"]) for one in rounds]
        ),
        "fused_to_monolith": harness.figure([one["fused"] / one["monolith"] for one in rounds]),
        "knowledge_overhead": harness.figure([one["composed"] / one["base"] for one in rounds]),
    }
    for name in _GRAPHS:
        figures[f"{name}_p50_ms"] = harness.figure([one[name] for one in rounds], 2)
    return figures


def _lookup(folder: Path, options: argparse.Namespace) -> Iterator[Found]:
    filled = _run("fill_vectors", folder, options.vectors)
    yield {"filled": filled, "rounds": [_run("lookup", folder) for _ in range(5)]}


def _lookup_figures(found: Found) -> Figures:
    rounds = found["rounds"]
    return {
        "lookup_p50_ms": harness.figure([one["p50_ms"] for one in rounds]),
        "lookup_p99_ms": harness.figure([one["p99_ms"] for one in rounds]),
        "replica_growth_mib": harness.figure([one["growth_mib"] for one in rounds], 1),
    }


def _load(folder: Path, options: argparse.Namespace) -> Iterator[Found]:
    yield _run("load", folder, 5, options.load_seconds)


def _load_figures(found: Found) -> Figures:
    rounds = found["rounds"]
    return {
        "saturation_per_s": harness.figure([one["saturation"] for one in rounds], 1),
        "p99_to_p50_at_70": harness.figure([one["p99_ms"] / one["p50_ms"] for one in rounds]),
        "p50_at_70_ms": harness.figure([one["p50_ms"] for one in rounds], 2),
        "p99_at_70_ms": harness.figure([one["p99_ms"] for one in rounds], 2),
    }


def _soak(folder: Path, options: argparse.Namespace) -> Iterator[Found]:
    yield _run("soak", folder, options.soak_minutes)


def _soak_figures(found: Found) -> Figures:
    return {
        "soak_minutes": harness.figure([found["minutes"]], 1),
        "soak_memory_growth": harness.figure([found["memory_growth"]]),
        "soak_failures": harness.figure([found["failures"]], 0),
    }


def _run(what: str, *values: object) -> dict[str, Any]:
    found = harness.process(_RUNS, what, *values)
    short = {name: value for name, value in found.items() if name != "raw"}
    Reporter().say(f"serve: {what}: {json.dumps(short)}")
    return found


if __name__ == "__main__":
    run(sys.argv[1:])
