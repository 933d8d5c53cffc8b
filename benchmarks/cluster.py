"""Benchmark of stage cluster.

hdbscan_1m_seconds      stage path of HDBSCAN (projection, parts on a local Ray, joining, total
                        assignment, names) over 1,000,000 x 64 synthetic points on this machine
hdbscan_1m_rss_gib      peak resident memory of all its processes together
growth_exponent         slope of log seconds over log points, from 50,000 points to 1,000,000
streakhc_inserts_per_s  points a second into StreaKHC, t = 200, psi = 256, one thread, the map
                        of the kernel included
streakhc_memory_growth  resident memory after the whole stream over that after its first tenth
streakhc_nmi            normalised mutual information with 50 planted groups of 4,000 points
kmeans_nmi              the same of mini-batch k-means with as many clusters
assign_p99_ms           99th percentile of assigning one new id to the nearest of 10,000 centres
text_similarity         mean cosine of encoded MovieLens titles and their centres
text_clusters           clusters of these titles

Each run is a process of its own. The points of one seed are the same for all methods.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from reki_ray.progress import Reporter

NAME = "cluster"
_MODULE = "benchmarks.cluster_runs"


def run(arguments: Sequence[str] = ()) -> Path:
    """Measure everything and write the figures; returns the file."""
    options = _options(arguments)
    reporter = Reporter()
    runs: dict[str, Any] = {"options": vars(options)}

    def measure(what: str, *values: object) -> dict[str, Any]:
        found = harness.process(_MODULE, what, *values)
        runs.setdefault(what, []).append(found)
        reporter.say(f"cluster: {what}: {json.dumps(found)}")
        return found

    sizes = [int(options.points / 20), *[options.points] * options.large_repeats]
    hdbscan = [measure("hdbscan", size) for size in sizes]
    streams = [measure("streakhc", options.stream, seed) for seed in range(options.repeats)]
    quality = [measure("quality", seed) for seed in range(options.repeats)]
    assign = [measure("assign", seed) for seed in range(options.repeats)]
    text = measure("text")
    small, large = hdbscan[0], hdbscan[1:]
    figures = {
        "hdbscan_1m_seconds": harness.figure([one["seconds"] for one in large], 0),
        "hdbscan_1m_rss_gib": harness.figure([one["rss_gib"] for one in large], 2),
        "growth_exponent": harness.figure(
            [
                math.log(one["seconds"] / small["seconds"])
                / math.log(one["points"] / small["points"])
                for one in large
            ]
        ),
        "streakhc_inserts_per_s": harness.figure([one["inserts_per_s"] for one in streams], 0),
        "streakhc_memory_growth": harness.figure([one["memory_growth"] for one in streams]),
        "streakhc_nmi": harness.figure([one["streakhc_nmi"] for one in quality], 4),
        "kmeans_nmi": harness.figure([one["kmeans_nmi"] for one in quality], 4),
        "assign_p99_ms": harness.figure([one["p99_ms"] for one in assign]),
        "text_similarity": harness.figure([text["mean_similarity"]]),
        "text_clusters": harness.figure([text["clusters"]], 0),
    }
    return harness.write(NAME, figures, runs)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="reki bench cluster", description=__doc__)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--large-repeats", type=int, default=1)
    parser.add_argument("--stream", type=int, default=100_000, help="points into StreaKHC")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args(arguments)
