"""`reki tune`: search a backbone's best settings with Ray Tune, on the validation split alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import ray
import torch
from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from reki_ray.config import Arm, RekiConfig, TrainConfig, TuneConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import capacity, cpu_share, ray_session, require_gpus
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError
from reki_ray.stages import pipeline
from reki_ray.training.arms import ARMS, Representations, read_representations
from reki_ray.training.dataset import Dataset, read_dataset
from reki_ray.training.precision import EMULATED, emulates
from reki_ray.training.runs import Run, fingerprint
from reki_ray.training.worker import TrainingData
from reki_ray.tuning import results, space
from reki_ray.tuning.results import Search
from reki_ray.tuning.searcher import Following, Suggestions, require_optuna, sampler
from reki_ray.tuning.trial import QUALITY, TrialAssignment, train_trial

_STATE: Final = ".tune"
"""Folder of Ray Tune's own files, below the workspace; nothing in it is needed afterwards."""

_ENVIRONMENT: Final = {
    # Threads that wait give their core away, see the stage train.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Ray Tune's tables and log files: progress and results are told and kept by our own means.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


def search(
    config: RekiConfig, arm: Arm, reporter: Reporter, *, out: Path | None = None
) -> list[Search]:
    """Try `tune.trials` settings of every backbone of `train.backbones`, and write the best.

    What was tried before with the same configuration, space, seed and data is not tried again: an
    interrupted search goes on, and a finished one does nothing. The test samples are not read.

    Args:
        config: The run; its samples, and the vectors of the arm, must be there.
        arm: What the models see.
        reporter: Shows progress.
        out: YAML file, or folder of such files, for the best settings; None takes the workspace.

    Raises:
        ConfigError: There is nothing to search, a stage is not done, or a package is missing.
        DataError: A table is missing or damaged.
        EngineError: No trial of a backbone gave a result, or there is no GPU to try it on.
    """
    require_optuna()
    results.check_target(out, config.train.backbones)
    workspace = Workspace(config.root)
    needed = "encode" if ARMS[arm].uses_knowledge else "ingest"
    wanted = pipeline.fingerprints(config)
    pipeline.require_done([needed], wanted, workspace, what="reki tune", until=needed)
    dataset = read_dataset(workspace, ("train", "valid"))
    vectors = read_representations(workspace, arm, dataset.user_ids, dataset.item_ids)
    searches = _searches(config, arm, dataset, vectors)
    if vectors is not None and emulates(config.train.precision, torch.device(config.train.device)):
        reporter.say(f"tune: {EMULATED}")
    data: list[ray.ObjectRef[TrainingData]] = []
    with contextlib.ExitStack() as stack:
        for one in searches:
            with _lock(workspace, one):
                one.resume(workspace)
                if len(one.settled) < _wanted(config.tune, one):
                    if not data:
                        stack.enter_context(_session(config))
                        data.append(ray.put(TrainingData.of(dataset, {arm: vectors}, config.train)))
                    _run(one, config, workspace, reporter, data)
                else:
                    reporter.say(f"tune {one.backbone}: {len(one.settled)} trials, nothing to do")
            if not one.finished:
                raise EngineError(
                    f"no trial of {one.backbone} gave a result: "
                    f"{one.trials[-1].error or 'unknown'}",
                    where=f"reki tune, arm {arm}",
                    todo="Correct what the message names, and run it again.",
                )
            reporter.say(
                f"tune {one.backbone}: {results.write_tuned(one, config.train, workspace, out)}"
            )
    return searches


def _searches(
    config: RekiConfig, arm: Arm, dataset: Dataset, vectors: Representations | None
) -> list[Search]:
    digests = [dataset.digest(), vectors.digest() if vectors else ""]
    found = []
    for backbone in config.train.backbones:
        domains = space.space_of(config.tune, backbone, arm)
        told = [domain.model_dump_json() for domain in domains.values()]
        run = Run(backbone, arm, config.tune.seed)
        identity = fingerprint(config.train, run, [*digests, *domains, *told])
        found.append(
            Search(
                fingerprint=identity,
                backbone=backbone,
                arm=arm,
                seed=config.tune.seed,
                space=domains,
            )
        )
    return found


def _wanted(config: TuneConfig, one: Search) -> int:
    """Number of trials of a search: a small space has no more."""
    points = space.count(one.space)
    return config.trials if points is None else min(config.trials, points)


def _lock(workspace: Workspace, one: Search) -> contextlib.AbstractContextManager[None]:
    """Keep a second search for the same out; others of the workspace may run beside it."""
    return Workspace(f"{workspace.root}/{results.FOLDER}/.locks/{Path(one.path).stem}").lock()


@contextlib.contextmanager
def _session(config: RekiConfig) -> Iterator[None]:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with ray_session(config.ray):
        yield


def _run(
    one: Search,
    config: RekiConfig,
    workspace: Workspace,
    reporter: Reporter,
    data: list[ray.ObjectRef[TrainingData]],
) -> None:
    """Make the trials that are missing."""
    missing = _wanted(config.tune, one) - len(one.settled)
    run = Run(one.backbone, one.arm, one.seed, one.fingerprint)
    assignment = TrialAssignment(config.train, run, data, config.tune.concurrency)
    own = config.train.of(one.backbone)
    known = any(trial.configured for trial in one.settled)
    first = None if known else space.values(own, one.space)
    name = Path(one.path).stem
    _remove(workspace, f"{_STATE}/{name}")  # of a search that was cut off
    with reporter.task(f"tune {one.backbone}: trials", missing, "trials") as task:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(train_trial, assignment=assignment),
                _resources(config.train, config.tune.concurrency),
            ),
            tune_config=tune.TuneConfig(
                search_alg=Suggestions(sampler(one), one, first),
                scheduler=_stopper(config.tune, own.epochs),
                num_samples=missing,
                max_concurrent_trials=config.tune.concurrency,
                reuse_actors=True,  # a new process would import torch again for each trial
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=f"{workspace.location}/{_STATE}",
                failure_config=tune.FailureConfig(max_failures=config.train.max_failures),
                callbacks=[Following(one, workspace, reporter, task, own)],
                verbose=0,
            ),
        )
        # In a thread of its own: fit() would take the main thread's Ctrl-C for good.
        executor = ThreadPoolExecutor(1, thread_name_prefix="tune")
        try:
            executor.submit(tuner.fit).result()
        finally:
            executor.shutdown(wait=False)
    _remove(workspace, f"{_STATE}/{name}")


def _stopper(config: TuneConfig, epochs: int) -> TrialScheduler:
    """What ends a trial that is worse than others at the same epoch."""
    grace = min(config.grace_epochs, epochs)
    if config.stopper == "asha":
        return ASHAScheduler(
            metric=QUALITY, mode="max", max_t=epochs, grace_period=grace, reduction_factor=3
        )
    if config.stopper == "median":
        return MedianStoppingRule(metric=QUALITY, mode="max", grace_period=grace)
    return FIFOScheduler()


def _resources(config: TrainConfig, concurrency: int) -> dict[str, float]:
    """What one of the trials at a time takes.

    Raises:
        EngineError: The trials need a GPU, and the cluster has none.
    """
    if config.device == "cuda":
        require_gpus(1, "train.device = cuda")
        share = capacity()["GPU"] / concurrency
        return {"CPU": 0.5, "GPU": 1.0 if share >= 1 else share}
    return {"CPU": cpu_share(concurrency)}


def _remove(workspace: Workspace, folder: str) -> None:
    if workspace.exists(folder):
        workspace.filesystem.rm(workspace.path(folder), recursive=True)
