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
calls_ratio             prompts about clusters over prompts about each id alone, on MovieLens
reki_i_auc, reki_c_auc  test AUC of both kinds of knowledge, and its interval
reki_c_minus_reki_i     paired difference of their test AUC, and its interval
reki_c_minus_shuffled   the same against clusters that were dealt out to the wrong ids

Each run is a process of its own. The points of one seed are the same for all methods. MovieLens-1M
is read from `--ml1m` or REKI_ML1M; without it MovieLens-100K stands for it, and the file says so in
`runs.movielens`. The LLM is the demo's, on the CPU: what is compared is one way of asking it with
the other. `--parts` measures some figures alone; the others stay as they were measured before.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Figures, Found, Part
from reki_ray.core.progress import Reporter

NAME = "cluster"
_RUNS = "benchmarks.cluster_runs"
_SMALL_TO_LARGE = 20
_PARTS = ("hdbscan", "streakhc", "quality", "assign", "text", "movielens")


def run(arguments: Sequence[str] = ()) -> Path:
    """Measure everything and write the figures; returns the file."""
    options = _options(arguments)
    seeds = [(seed,) for seed in range(options.repeats)]
    small, large = (options.points // _SMALL_TO_LARGE,), (options.points,)
    parts = {
        "hdbscan": Part(
            partial(_each, "hdbscan", [small, *[large] * options.large_repeats]), _hdbscan_figures
        ),
        "streakhc": Part(
            partial(_each, "streakhc", [(options.stream, *seed) for seed in seeds]),
            _streakhc_figures,
        ),
        "quality": Part(partial(_each, "quality", seeds), _quality_figures),
        "assign": Part(partial(_each, "assign", seeds), _assign_figures),
        "text": Part(partial(_each, "text", [()]), _text_figures),
        "movielens": Part(partial(_movielens, options), _movielens_figures),
    }
    return harness.run_parts(NAME, {name: parts[name] for name in options.parts}, vars(options))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="reki bench cluster", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--large-repeats", type=int, default=1)
    parser.add_argument("--stream", type=int, default=100_000, help="points into StreaKHC")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ml1m", default=os.environ.get("REKI_ML1M", ""), help="MovieLens-1M")
    parser.add_argument("--folder", type=Path, help="workspace of MovieLens; a temporary folder")
    return parser.parse_args(arguments)


def _each(what: str, calls: Sequence[tuple[object, ...]]) -> Iterator[Found]:
    """One process a call; what all of them printed so far, as `all`."""
    found: Found = {"all": []}
    for values in calls:
        found["all"].append(harness.process(_RUNS, what, *values))
        Reporter().say(f"cluster: {what}: {json.dumps(found['all'][-1])}")
        yield found


def _movielens(options: argparse.Namespace) -> Iterator[Found]:
    with tempfile.TemporaryDirectory(prefix="reki-bench-") as scratch:
        workspace = options.folder or Path(scratch)
        yield from _each("movielens", [(workspace, options.ml1m)])


def _hdbscan_figures(found: Found) -> Figures:
    small, *large = found["all"]
    if not large:
        return {}
    slopes = [
        math.log(one["seconds"] / small["seconds"]) / math.log(one["points"] / small["points"])
        for one in large
    ]
    return {
        "hdbscan_1m_seconds": harness.figure([one["seconds"] for one in large], 0),
        "hdbscan_1m_rss_gib": harness.figure([one["rss_gib"] for one in large], 2),
        "growth_exponent": harness.figure(slopes),
    }


def _streakhc_figures(found: Found) -> Figures:
    return {
        f"streakhc_{name}": harness.figure([one[name] for one in found["all"]], digits)
        for name, digits in (("inserts_per_s", 0), ("memory_growth", 3))
    }


def _quality_figures(found: Found) -> Figures:
    return {
        name: harness.figure([one[name] for one in found["all"]], 4)
        for name in ("streakhc_nmi", "kmeans_nmi")
    }


def _assign_figures(found: Found) -> Figures:
    return {"assign_p99_ms": harness.figure([one["p99_ms"] for one in found["all"]])}


def _text_figures(found: Found) -> Figures:
    (text,) = found["all"]
    return {
        "text_similarity": harness.figure([text["mean_similarity"]]),
        "text_clusters": harness.figure([text["clusters"]], 0),
    }


def _movielens_figures(found: Found) -> Figures:
    (measured,) = found["all"]
    return {
        "calls_ratio": harness.figure([measured["calls_ratio"]], 4),
        **{
            name: {"value": round(value, 4), "min": round(low, 4), "max": round(high, 4)}
            for name, (value, low, high) in measured["auc"].items()
        },
    }


if __name__ == "__main__":
    run(sys.argv[1:])
