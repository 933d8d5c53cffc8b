"""Single runs of the cluster benchmark; each prints one line of JSON and ends."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks import harness
from reki_ray.config import Arm
from reki_ray.core.ray_cluster import ray_session
from reki_ray.core.vectors import normalise
from reki_ray.training.dataset import Samples

_DIMENSION = 64
_GROUP_POINTS = 500
_MIN_CLUSTER_SIZE = 25
_MOVIELENS: dict[str, Any] = {
    # Two factors in a few words, or asking 7,000 times would take an hour on two cores.
    "prompts": {
        "scenario": "movies",
        "few_shot": True,
        "max_members": 5,
        "factors": ["genre", "mood and tone"],
        "max_history": 10,
    },
    "cluster": {"users": {"min_cluster_size": 12}, "items": {"min_cluster_size": 8}},
    "extract": {
        "engine": {
            "kind": "vllm",
            "model": "packaged:smollm2-135m-instruct",
        },
        "unit_rows": 64,
        "batch_size": 64,
        "sampling": {"max_tokens": 32, "constrain": True},
        "max_dead_share": 1.0,
    },
    "train": {
        "seeds": [0, 1, 2],
        "batch_size": 2048,
        "learning_rate": 4e-3,
        "epochs": 3,
    },
}


def planted(count: int, groups: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (count, 64) of unit length around normal centres, and the group of each."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, groups, count)
    centres = random.normal(size=(groups, _DIMENSION)).astype(np.float32)
    points = np.empty((count, _DIMENSION), dtype=np.float32)
    for start in range(0, count, 100_000):
        rows = slice(start, start + 100_000)
        noise = random.normal(size=(len(truth[rows]), _DIMENSION)).astype(np.float32)
        points[rows] = normalise(centres[truth[rows]] + noise)
    return points, truth


def hdbscan(count: str) -> dict[str, Any]:
    """The stage's path from vectors to the table of clusters."""
    from sklearn.metrics import normalized_mutual_info_score

    from reki_ray.clustering.clusterers import build_clusterer, group
    from reki_ray.config import ClusterConfig, RayConfig, SideClusterConfig
    from reki_ray.schema import CLUSTER_ID
    from reki_ray.stages.cluster import map_on_cluster

    points, truth = planted(int(count), max(2, int(count) // _GROUP_POINTS), seed=0)
    ids = [f"i{row:08d}" for row in range(len(points))]
    side = SideClusterConfig(min_cluster_size=_MIN_CLUSTER_SIZE)
    config = ClusterConfig()
    with ray_session(RayConfig()), _peak_memory() as peak:
        started = time.monotonic()
        clusterer = build_clusterer(config, side, len(ids), map_on_cluster)
        found = group(ids, points, clusterer, "i", min_size=side.min_cluster_size)
        seconds = time.monotonic() - started
    labels = np.unique(found.clusters[CLUSTER_ID].to_pylist(), return_inverse=True)[1]
    return {
        "points": len(points),
        "seconds": round(seconds, 1),
        "rss_gib": round(peak[0] / 2**30, 2),
        "nmi": round(normalized_mutual_info_score(truth, labels), 4),
        **{name: found.figures[name] for name in ("clusters", "noise_share", "mean_similarity")},
    }


def streakhc(count: str, seed: str) -> dict[str, Any]:
    """One long stream, on one thread."""
    from threadpoolctl import threadpool_limits

    stream = _stream(planted(20_000, 50, int(seed))[0], int(seed))
    points, _ = planted(int(count), 50, int(seed))
    stream.insert(points[:2000])  # compiled, and the tree is full
    resident = []
    tenth = len(points) // 10
    with threadpool_limits(1):
        started = time.monotonic()
        for start in range(0, len(points), tenth):
            stream.insert(points[start : start + tenth])
            resident.append(psutil.Process().memory_info().rss)
        seconds = time.monotonic() - started
    return {
        "inserts_per_s": round(len(points) / seconds, 1),
        "memory_growth": round(resident[-1] / resident[0], 4),
    }


def quality(seed: str) -> dict[str, Any]:
    """Fifty groups of 4,000 points: StreaKHC beside mini-batch k-means."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import normalized_mutual_info_score

    from reki_ray.clustering.assignment import nearest

    points, truth = planted(4000, 50, int(seed))
    stream = _stream(points[:1000], int(seed))
    stream.insert(points)
    found = nearest(points, stream.cut(50, min_size=10))[0]
    control = MiniBatchKMeans(50, n_init=3, random_state=int(seed)).fit_predict(points)
    return {
        "streakhc_nmi": normalized_mutual_info_score(truth, found),
        "kmeans_nmi": normalized_mutual_info_score(truth, control),
    }


def assign(seed: str) -> dict[str, Any]:
    """New ids, one at a time, to the nearest of many centres."""
    from reki_ray.clustering.assignment import nearest

    centres, _ = planted(10_000, 10_000, int(seed))
    points, _ = planted(2000, 50, int(seed) + 100)
    times = []
    for row in range(len(points)):
        started = time.perf_counter()
        nearest(points[row : row + 1], centres)
        times.append(1000 * (time.perf_counter() - started))
    return {"p50_ms": float(np.median(times)), "p99_ms": float(np.quantile(times, 0.99))}


def text() -> dict[str, Any]:
    """Titles and attributes of MovieLens-100K's items: stages ingest and cluster."""
    from reki_ray.config import RekiConfig
    from reki_ray.core.progress import Reporter
    from reki_ray.stages.pipeline import run_stages, select

    with tempfile.TemporaryDirectory(prefix="reki-bench-") as folder:
        config = RekiConfig.model_validate(
            {
                "name": "bench-cluster",
                "workspace": folder,
                "data": {"source": {"kind": "movielens_100k"}},
            }
        )
        entries = run_stages(config, select(until="cluster"), Reporter(quiet=True))
    figures = entries["cluster"].details["items"]
    return {name: figures[name] for name in ("clusters", "noise_share", "mean_similarity")}


def movielens(folder: str, ml1m: str) -> dict[str, Any]:
    """Two runs up to the test split: each id asked about alone, and by its cluster."""
    from reki_ray.config import EvaluateConfig
    from reki_ray.evaluation.comparison import ALL, Comparison

    source = {"kind": "movielens_1m", "path": ml1m} if ml1m else {"kind": "movielens_100k"}
    individual = _ask(f"{folder}/individual", source, "individual", ["reki_i"])
    collective = _ask(f"{folder}/collective", source, "collective", ["reki_c", "reki_c_shuffled"])
    scores = {**collective.scores, **individual.scores}
    everywhere = {ALL: np.ones(len(individual.samples), dtype=bool)}
    comparison = Comparison(individual.samples, everywhere, scores, EvaluateConfig())
    arms = [comparison.entry(arm, "din") for arm in scores]
    auc = {f"{one['arm']}_auc": [one["auc"], *one["auc_ci"]] for one in arms}
    for name, other in (("reki_i", "reki_i"), ("shuffled", "reki_c_shuffled")):
        compared = comparison.control("reki_c", other)
        auc[f"reki_c_minus_{name}"] = [compared["delta_auc"], *compared["delta_ci"]]
    return {
        "dataset": source["kind"],
        "calls": {"individual": individual.calls, "collective": collective.calls},
        "calls_ratio": collective.calls / individual.calls,
        "auc": auc,
        "arms": arms,
    }


class _Asked(NamedTuple):
    """One run of `movielens`.

    Attributes:
        calls: Prompts without duplicates.
        scores: Of the test samples, by arm and seed.
        samples: The test samples.
    """

    calls: int
    scores: dict[Arm, dict[int, np.ndarray]]
    samples: Samples


def _ask(folder: str, source: dict[str, str], mode: str, arms: list[Arm]) -> _Asked:
    import pyarrow.compute as pc

    from reki_ray import schema
    from reki_ray.config import RekiConfig
    from reki_ray.core.progress import Reporter
    from reki_ray.core.workspace import Workspace
    from reki_ray.extraction.plan_table import PLAN
    from reki_ray.stages.pipeline import run_stages, select

    config = RekiConfig.model_validate(
        {
            **_MOVIELENS,
            "name": f"bench-cluster-{mode}",
            "workspace": folder,
            "data": {"source": source},
            "extract": {**_MOVIELENS["extract"], "mode": mode},
            "train": {**_MOVIELENS["train"], "arms": ["fair_base", *arms]},
        }
    )
    run_stages(config, select(until="evaluate"), Reporter(quiet=True))
    workspace = Workspace(folder)
    found = workspace.read_table(schema.PREDICTIONS)
    scores: dict[Arm, dict[int, np.ndarray]] = {}
    for arm in config.train.arms:
        for seed in config.train.seeds:
            rows = pc.and_(pc.equal(found[schema.ARM], arm), pc.equal(found[schema.SEED], seed))
            one = found.filter(rows)
            scores.setdefault(arm, {})[seed] = one[schema.SCORE].to_numpy()
    users, items = (
        np.unique(one[name].to_pylist(), return_inverse=True)[1]
        for name in (schema.USER_ID, schema.ITEM_ID)
    )
    return _Asked(
        calls=len(pc.unique(workspace.read_table(PLAN)[schema.PROMPT_HASH])),
        scores=scores,
        samples=Samples(users, items, np.zeros_like(users), one[schema.LABEL].to_numpy()),
    )


def _stream(sample: np.ndarray, seed: int) -> Any:
    from reki_ray.clustering.streakhc.stream import IsolationKernel, StreaKHC

    return StreaKHC(IsolationKernel.drawn(sample, 200, 256, seed), max_leaves=1024)


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """Peak of the resident memory of this process and all below it, bytes."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak[0] = max(peak[0], total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        stop.set()
        watcher.join()


_RUNS: dict[str, Callable[..., dict[str, Any]]] = {
    run.__name__: run for run in (hdbscan, streakhc, quality, assign, text, movielens)
}


if __name__ == "__main__":
    harness.answer(_RUNS)
