"""Compare both engines of `cluster.method: hdbscan`: time, memory and labels on planted groups.

    python -m benchmarks.hdbscan_engines

Every run is a process of its own on one thread; time is processor time. Prints a line of JSON per
engine, number of points and dimensions with the medians of the repeats, and the adjusted Rand index
between the labels of both engines. Groups have about 200 points around random directions; a tenth
of the points is noise.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import adjusted_rand_score, homogeneity_score

from benchmarks import harness
from reki_ray.clustering.hdbscan import ENGINES
from reki_ray.config import SideClusterConfig
from reki_ray.core.vectors import normalise

_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
_SIDE = SideClusterConfig()


def planted(points: int, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, d) of unit length in groups of 200, a tenth of them noise of group -1."""
    random = np.random.default_rng(0)
    truth = random.integers(points // 200, size=points)
    centres = normalise(random.normal(size=(points // 200, dimensions)))
    spread = random.normal(scale=0.3 / dimensions**0.5, size=(points, dimensions))
    vectors = centres[truth] + spread
    noise = random.random(points) < 0.1
    vectors[noise] = random.normal(size=(int(noise.sum()), dimensions))
    truth[noise] = -1
    return normalise(vectors).astype(np.float32), truth


def measure(engine: str, points: int, dimensions: int, selection: str, labels: Path) -> None:
    """Cluster once and print the figures; the labels go to a file."""
    vectors, truth = planted(points, dimensions)
    fit = ENGINES[engine]
    fit(vectors[:500], _SIDE, selection)  # imports and compiles
    started = time.process_time()
    labels_found = fit(vectors, _SIDE, selection)
    seconds = time.process_time() - started
    np.save(labels, labels_found)
    kept = (truth >= 0) & (labels_found >= 0)
    figures = {
        "cpu_seconds": seconds,
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "ari": adjusted_rand_score(truth[kept], labels_found[kept]),
        "homogeneity": homogeneity_score(truth[kept], labels_found[kept]),
        "noise_share": float((labels_found < 0).mean()),
        "clusters": int(labels_found.max()) + 1,
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes", nargs="+", default=["20000x8", "20000x16", "20000x30", "100000x8"]
    )
    parser.add_argument("--selections", nargs="+", default=["leaf", "eom"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        engine, points, dimensions, selection, labels = options.one
        measure(engine, int(points), int(dimensions), selection, Path(labels))
        return
    os.environ.update(_THREADS)
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            points, dimensions = size.split("x")
            for selection in options.selections:
                labels = {engine: Path(folder, f"{engine}.npy") for engine in ENGINES}
                for engine, path in labels.items():
                    arguments = ("--one", engine, points, dimensions, selection, path)
                    runs = [
                        harness.process("benchmarks.hdbscan_engines", *arguments)
                        for _ in range(options.repeats)
                    ]
                    medians = {
                        key: round(statistics.median(run[key] for run in runs), 3)
                        for key in runs[0]
                    }
                    line = {"engine": engine, "size": size, "selection": selection, **medians}
                    sys.stdout.write(json.dumps({**line, "load": os.getloadavg()[0]}) + "\n")
                both = [np.load(path) for path in labels.values()]
                sys.stdout.write(json.dumps({"agreement": adjusted_rand_score(*both)}) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
