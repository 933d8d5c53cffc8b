"""Stage train: all arms and seeds, jointly with HEIN, on Ray Train."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from queue import Empty
from typing import Any, Final

import ray
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Queue

from reki_ray.config import KNOWLEDGE_ARMS, Arm, RekiConfig, TrainConfig
from reki_ray.core.progress import Reporter, Task
from reki_ray.core.ray_cluster import cpu_share, ray_session, require_gpus
from reki_ray.core.stage import StageResult
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError, EngineError, RekiError
from reki_ray.training import runs as runs_module
from reki_ray.training.arms import Representations, read_representations
from reki_ray.training.checkpoint import Divergence, Epoch, quality
from reki_ray.training.dataset import Dataset
from reki_ray.training.mlflow import Tracker
from reki_ray.training.runs import Run, divergence_of
from reki_ray.training.sample_stream import load_dataset, open_stream, streams
from reki_ray.training.worker import TrainingData, WorkerTask, train_runs

_STATE: Final = ".train"
"""Folder of the checkpoints of unfinished runs, below the workspace."""

_POLL_SECONDS: Final = "0.1"
"""A worker's report waits for the controller's next poll, by default every 2 s: longer than a small
epoch."""

# A mapping, because Ray annotates RunConfig with the fields of its first version.
_WORKER_ENVIRONMENT: Final[dict[str, Any]] = {
    "worker_runtime_env": {
        "env_vars": {
            # Waiting threads sleep: on a busy machine spinning ones take many times as long.
            "OMP_WAIT_POLICY": "PASSIVE",
            # Every step frees memory that the next one needs: returning it to the system and
            # getting new pages took 8 % of a step.
            "MALLOC_MMAP_THRESHOLD_": str(2**30),
            "MALLOC_TRIM_THRESHOLD_": str(2**32),
        }
    }
}


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Train every arm with every seed, except for finished runs.

    Raises:
        DataError: A table is missing or damaged.
        ConfigError: All runs diverged.
        EngineError: Training failed more often than `train.max_failures`, or the cluster has too
            few GPUs.
    """
    streamed = streams(config.train, workspace)
    with ray_session(config.ray) if streamed else nullcontext():
        dataset = load_dataset(config, workspace)
        representations = {
            arm: read_representations(workspace, arm, dataset.user_ids, dataset.item_ids)
            for arm in config.train.arms
        }
        runs = _identify(config.train, dataset, representations)
        runs_module.remove_stale(workspace, runs)
        pending = [each for each in runs if runs_module.finished(workspace, each) is None]
        if pending:
            _train_pending(config, workspace, reporter, dataset, representations, runs, pending)
    samples = dataset.sample_count
    return StageResult(samples, samples, details=_details(workspace, runs, streamed=streamed))


def _train_pending(
    config: RekiConfig,
    workspace: Workspace,
    reporter: Reporter,
    dataset: Dataset,
    representations: dict[Arm, Representations | None],
    runs: list[Run],
    pending: list[Run],
) -> None:
    epochs = {run.name: runs_module.settings_of(config.train, run).epochs for run in runs}
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_SECONDS)
    with (
        Tracker(config, pending) if config.train.mlflow else nullcontext() as tracker,
        ray_session(config.ray),
        reporter.task("train: epochs", sum(epochs[run.name] for run in pending), "epochs") as task,
    ):
        scaling = _scaling(config.train)
        stream = None
        if dataset.streamed is not None:
            stream = open_stream(workspace, dataset.user_ids, dataset.item_ids)
        data = TrainingData.of(dataset, representations, config.train, stream)
        lengths = {
            run.name: len(stream.files if stream else data.samples_of(run)["train"]) for run in runs
        }
        watch = _Watch(reporter, task, tracker, epochs, lengths)
        _train(config.train, workspace, runs, data, scaling, watch)
        if tracker is not None:
            for each in runs_module.trained(workspace, pending)[0]:  # diverged runs stay unfinished
                tracker.finish(each, runs_module.read_metrics(workspace, each))
    workspace.remove(_STATE)


def _identify(
    config: TrainConfig, dataset: Dataset, representations: dict[Arm, Representations | None]
) -> list[Run]:
    """All runs with their fingerprints, of contents: new knowledge does not retrain an arm without
    knowledge."""
    data = dataset.digest()
    empty = hashlib.sha256().hexdigest()
    vectors = {arm: r.digest() if r else empty for arm, r in representations.items()}
    return [
        replace(each, fingerprint=runs_module.fingerprint(config, each, [data, vectors[each.arm]]))
        for each in [*runs_module.planned(config), *runs_module.planned(config, reranks=True)]
    ]


def _train(
    config: TrainConfig,
    workspace: Workspace,
    runs: list[Run],
    data: TrainingData,
    scaling: ScalingConfig,
    watch: _Watch,
) -> None:
    """One trainer for all runs: starting one costs more than training a small model."""
    progress = Queue(actor_options={"num_cpus": 0})
    task = WorkerTask(workspace.location, config, runs, [ray.put(data)], progress)
    # Of all runs, finished or not: a killed stage resumes under the same name, where Ray Train
    # finds the checkpoint of the unfinished run.
    identity = hashlib.sha256("".join(each.fingerprint for each in runs).encode()).hexdigest()
    trainer = TorchTrainer(
        train_runs,
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend="nccl" if config.device == "cuda" else "gloo"),
        scaling_config=scaling,
        run_config=RunConfig(
            name=identity[:16],
            # One client for all files of a run: with the same credentials, and retries of its own.
            storage_path=f"{task.workspace}/{_STATE}"
            if workspace.is_local
            else workspace.path(_STATE),
            storage_filesystem=None if workspace.is_local else workspace.arrow_filesystem,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            **_WORKER_ENVIRONMENT,
        ),
    )
    # In a separate thread: fit() would disable the main thread's Ctrl-C.
    executor = ThreadPoolExecutor(1, thread_name_prefix="train")
    try:
        fit = executor.submit(trainer.fit)
        _follow(fit, progress, config, watch)
    finally:
        executor.shutdown(wait=False)
        progress.shutdown(force=True)


def _scaling(config: TrainConfig) -> ScalingConfig:
    """Resources of the workers.

    Raises:
        EngineError: They need more GPUs than the cluster has.
    """
    if config.device == "cuda":
        require_gpus(config.workers, f"train.device = cuda, train.workers = {config.workers}")
        return ScalingConfig(num_workers=config.workers, use_gpu=True)
    share = cpu_share(config.workers)
    return ScalingConfig(num_workers=config.workers, resources_per_worker={"CPU": share})


@dataclass
class _Watch:
    """Shows and logs the progress of the workers.

    Args:
        epochs: Largest number of epochs of every run, by name.
        samples: Samples or lists per epoch of every run.
    """

    reporter: Reporter
    task: Task
    tracker: Tracker | None
    epochs: dict[str, int]
    samples: dict[str, int]
    done: dict[str, int] = field(default_factory=dict)

    def receive(self, name: str, event: Epoch | Divergence | str) -> None:
        """Handle an event of the workers, see `WorkerTask`."""
        if isinstance(event, str):
            self.reporter.say(f"train: {event}")
            return
        for before in self.done.keys() - {name}:  # stopped early
            self._advance(before, self.epochs[before])
        if isinstance(event, Divergence):
            self.reporter.say(f"train: {name} {event}. It has no result; the other runs continue")
            self._advance(name, self.epochs[name])
            return
        self._advance(name, event.epoch, samples=self.samples[name])
        if self.tracker is not None:
            self.tracker.epoch(name, event)

    def _advance(self, name: str, epoch: int, **counts: int) -> None:
        seen = self.done.get(name, 0)
        self.task.advance(max(0, epoch - seen), **counts)
        self.done[name] = max(epoch, seen)


def _follow(fit: Future[Result], progress: Queue, config: TrainConfig, watch: _Watch) -> None:
    """Show finished epochs until training ends."""
    while True:
        done = fit.done()
        try:
            watch.receive(*progress.get(timeout=0.5))
        except Empty:
            if done:
                break
    try:
        fit.result()
    except TrainingFailedError as error:
        cause = error.__cause__ or error
        if isinstance(cause, RekiError):
            raise cause from error
        raise EngineError(
            f"training failed: {str(error).strip().splitlines()[-1]}",
            where=f"train, {config.workers} workers on {config.device}",
            todo="Run `reki train` again: finished runs and epochs are kept. If it fails again, "
            "lower train.batch_size or look at Ray's logs.",
        ) from error


def _details(workspace: Workspace, runs: list[Run], *, streamed: bool) -> dict[str, Any]:
    """Results of the stage.

    Raises:
        ConfigError: No click model has a result.
    """
    rows, rerankers, diverged = [], [], []
    kept = ("best_epoch", "seconds", "samples_per_second", "input_wait_share")
    for each in runs:
        metrics = runs_module.read_metrics(workspace, each)
        if failed := divergence_of(metrics):
            diverged.append({"run": each.name, **asdict(failed)})
            continue
        figures = {key: metrics[key] for key in kept}
        origin = {"arm": each.arm, "seed": each.seed}
        valid = metrics["valid"]
        if each.reranks:
            ndcg = {"valid_ndcg": quality(valid)}
            rerankers.append({"reranker": each.backbone, **origin, **ndcg, **figures})
        else:
            row = {"backbone": each.backbone, **origin, "valid_auc": valid["auc"], **figures}
            rows.append((quality(valid), row))
    if not rows:
        raise ConfigError(
            f"all runs diverged: {diverged[0]['run']} in epoch {diverged[0]['epoch']}, "
            f"{diverged[0]['reason']}",
            where="train",
            todo="Lower train.learning_rate; with train.hein.scaling length, take standardise.",
        )
    knowing = [row for row in rows if row[1]["arm"] in KNOWLEDGE_ARMS] or rows
    _, best = max(knowing, key=lambda row: row[0])
    rates = sorted(row["samples_per_second"] for _, row in knowing)
    return {
        "samples_per_second": rates[len(rates) // 2],
        "input_wait_share": max(row["input_wait_share"] for _, row in rows),
        "data": "stream" if streamed else "tensors",
        "runs": [row for _, row in rows],
        "rerankers": rerankers,
        "diverged": diverged,
        "chosen": {key: best[key] for key in ("backbone", "arm", "seed", "valid_auc")},
    }
