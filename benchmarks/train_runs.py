"""Single runs of the train benchmark; each prints one line of JSON and ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import harness, train_data
from reki_ray.config import Arm, RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace

_STREAM: Final[dict[str, Any]] = {
    "arms": ["fair_base"],
    "seeds": [0],
    "epochs": 1,
    "data": "stream",
    "history": 5,
    "batch_size": 32_768,
    "network": {"embedding": 8, "attention": [8], "mlp": [16, 8], "dropout": 0.0},
    "id_dropout": 0.0,
}
_MEMORY: Final = "worker-memory.json"


def reference(folder: str, seed: str, epochs: str) -> dict[str, Any]:
    """The plain loop."""
    from benchmarks import train_reference  # after set_environment
    from reki_ray.training.arms import read_representations
    from reki_ray.training.dataset import read_dataset
    from reki_ray.training.worker import TrainingData

    workspace = Workspace(folder)
    dataset = read_dataset(workspace)
    arm: Arm = "reki_i"
    found = read_representations(workspace, arm, dataset.user_ids, dataset.item_ids)
    data = TrainingData.of(dataset, {arm: found}, train_data.config(folder, {}).train)
    rows = train_reference.train(data, int(seed), int(epochs))
    rates = sorted(row["samples_per_second"] for row in rows)
    return {
        "auc": max(row["auc"] for row in rows),
        "samples_per_second": round(rates[len(rates) // 2], 1),
        "epochs": rows,
        "peak_rss_mib": harness.peak_rss_mib(),
    }


def stage(folder: str, train: str) -> dict[str, Any]:
    """Stage train as `reki train` runs it, for one seed."""
    workspace = Workspace(folder)
    trained = _train(train_data.config(folder, json.loads(train)), workspace)
    found: dict[str, Any] = {"peak_rss_gib": trained["peak_rss_gib"]}
    for metrics in trained["runs"]:
        found[metrics["arm"]] = {
            "auc": metrics["valid"]["auc"],
            **{
                name: metrics[name]
                for name in (
                    *("samples_per_second", "input_wait_share", "best_epoch", "epochs"),
                    "precision",
                )
            },
        }
    shutil.rmtree(workspace.local_path("train"))
    return found


def stream(folder: str) -> dict[str, Any]:
    """One epoch over the whole stream."""
    workspace = Workspace(folder)
    trained = _train(train_data.config(folder, _STREAM), workspace)
    (metrics,) = trained["runs"]
    worker = trained["worker"]
    return {
        "samples": worker["samples"],
        "data": trained["data"],
        "samples_per_second": metrics["samples_per_second"],
        "input_wait_share": metrics["input_wait_share"],
        "memory_growth": round(worker["rss_mib"][-1] / worker["rss_mib"][0], 4),
        "peak_rss_gib": trained["peak_rss_gib"],
        "worker": worker,
    }


def _train(config: RekiConfig, workspace: Workspace) -> dict[str, Any]:
    from reki_ray.stages import train as training
    from reki_ray.training.runs import METRICS, planned
    from reki_ray.training.sample_files import SampleFiles

    rows = len(SampleFiles.find(workspace))
    target = str(workspace.local_path(_MEMORY))
    training.train_runs = _watched(target, rows)  # type: ignore[attr-defined]
    result = training.run(config, workspace, Reporter(quiet=True))
    worker = json.loads(Path(target).read_text())
    peak = harness.peak_rss_mib() + worker["peak_rss_mib"]
    return {
        "data": result.details["data"],
        "runs": [workspace.read_json(f"{one.folder}/{METRICS}") for one in planned(config.train)],
        "worker": worker,
        "peak_rss_gib": round(peak / 1024, 3),
    }


def _watched(target: str, rows: int) -> Callable[[dict[str, Any]], None]:
    """The worker's train loop, which notes its own memory at every tenth of the samples."""

    def train_runs(settings: dict[str, Any]) -> None:
        from reki_ray.training import worker
        from reki_ray.training.batches import BatchBuilder, Prepared
        from reki_ray.training.dataset import Samples

        prepare, seen = BatchBuilder.prepare, [0]
        resident: list[float] = []
        private: list[float] = []

        def counting(self: BatchBuilder, samples: Samples) -> Prepared:
            prepared = prepare(self, samples)
            seen[0] += len(samples)
            if seen[0] >= (len(resident) + 1) * rows / 10:
                memory = psutil.Process().memory_info()
                resident.append(round(memory.rss / 2**20, 1))
                private.append(round((memory.rss - memory.shared) / 2**20, 1))
            return prepared

        BatchBuilder.prepare = counting  # type: ignore[method-assign]
        try:
            worker.train_runs(settings)
        finally:
            BatchBuilder.prepare = prepare  # type: ignore[method-assign]
        found = {
            "samples": seen[0],
            "rss_mib": resident,
            "private_mib": private,
            "peak_rss_mib": harness.peak_rss_mib(),
        }
        Path(target).write_text(json.dumps(found))

    return train_runs


_RUNS: dict[str, Callable[..., dict[str, Any]]] = {
    "movielens": train_data.fill_movielens,
    "fill_stream": train_data.fill_stream,
    "reference": reference,
    "stage": stage,
    "stream": stream,
}


if __name__ == "__main__":
    harness.answer(_RUNS)
