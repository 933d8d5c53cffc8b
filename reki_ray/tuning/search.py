"""`reki tune`: search a backbone's best settings with Ray Tune, on the validation split alone."""

from __future__ import annotations

import contextlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from reki_ray.config import Arm, RekiConfig, TrainConfig, TuneConfig
from reki_ray.core.formats import counted
from reki_ray.core.imports import require
from reki_ray.core.nodes import SharedWorkspace
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
from reki_ray.tuning.searcher import Study, TrialRecorder, open_study
from reki_ray.tuning.trial import QUALITY, train_trial

_STATE: Final = ".tune"
"""Folder for Ray Tune's own files in the workspace, removed after each search."""

_ENVIRONMENT: Final = {
    # Waiting threads give up their core, see the stage train.
    "OMP_WAIT_POLICY": "PASSIVE",
    # No tables and log files of Ray Tune: we have our own.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


def search(
    config: RekiConfig, arm: Arm, reporter: Reporter, *, out: Path | None = None
) -> list[Search]:
    """Try `tune.trials` settings of every backbone of `train.backbones`, and write the best.

    Settings that were tried before with the same configuration, space, seed and data are not tried
    again: an interrupted search resumes, a finished one does nothing. Never reads the test samples.

    Args:
        config: The run; its samples, and the vectors of the arm, must exist.
        out: YAML file or folder for the best settings; None writes to the workspace.

    Raises:
        ConfigError: There is nothing to search, a stage is not done, or a package is missing.
        DataError: A table is missing or damaged.
        EngineError: No trial of a backbone gave a result, or there is no GPU to try it on.
    """
    optuna = require("optuna", "reki tune")
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # our progress shows each trial
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    results.check_target(out, config.train.backbones)
    workspace = Workspace(config.root)
    needed = "encode" if ARMS[arm].uses_knowledge else "ingest"
    expected = pipeline.fingerprints(config)
    pipeline.require_done([needed], expected, workspace, what="reki tune", until=needed)
    dataset = read_dataset(workspace, ("train", "valid"))
    vectors = read_representations(workspace, arm, dataset.user_ids, dataset.item_ids)
    if vectors is not None and emulates(config.train.precision, torch.device(config.train.device)):
        reporter.say(f"tune: {EMULATED}")
    searches = _searches(config, arm, dataset, vectors)
    data: list[ray.ObjectRef[TrainingData]] = []
    with contextlib.ExitStack() as session:
        for search_ in searches:
            # Keeps out a second search for the same; others of the workspace may run.
            lock = Workspace(f"{workspace.root}/{results.FOLDER}/.locks/{search_.name}").lock()
            with lock, open_study(search_, workspace) as study:
                missing = int(min(config.tune.trials, search_.size)) - len(search_.tried)
                if missing > 0:
                    if not data:
                        for name, value in _ENVIRONMENT.items():
                            os.environ.setdefault(name, value)
                        session.enter_context(ray_session(config.ray))
                        SharedWorkspace(workspace).require()
                        data.append(ray.put(TrainingData.of(dataset, {arm: vectors}, config.train)))
                    _run(search_, study, missing, config, workspace, reporter, data)
                else:
                    tried = counted(len(search_.tried), "trial")
                    reporter.say(f"tune {search_.backbone}: {tried}, nothing to do")
            if not search_.finished:
                raise EngineError(
                    f"no trial of {search_.backbone} gave a result: "
                    f"{search_.trials[-1].error or 'unknown'}",
                    where=f"reki tune, arm {arm}",
                    todo="Fix the cause that the message names, and run it again.",
                )
            tuned = results.write_tuned(search_, config.train, workspace, out)
            reporter.say(f"tune {search_.backbone}: {tuned}")
    return searches


def _searches(
    config: RekiConfig, arm: Arm, dataset: Dataset, vectors: Representations | None
) -> list[Search]:
    digests = [dataset.digest(), vectors.digest() if vectors else ""]
    searches = []
    for backbone in config.train.backbones:
        domains = space.space_of(config.tune, backbone, arm)
        ranges = [domain.model_dump_json() for domain in domains.values()]
        run = Run(backbone, arm, config.tune.seed)
        identity = fingerprint(config.train, run, [*digests, *domains, *ranges])
        searches.append(
            Search(
                fingerprint=identity,
                backbone=backbone,
                arm=arm,
                seed=config.tune.seed,
                space=domains,
            )
        )
    return searches


def _run(  # all of a call's state
    search: Search,
    study: Study,
    missing: int,
    config: RekiConfig,
    workspace: Workspace,
    reporter: Reporter,
    data: list[ray.ObjectRef[TrainingData]],
) -> None:
    """Run the missing trials."""
    run = Run(search.backbone, search.arm, search.seed, search.fingerprint)
    concurrency = config.tune.concurrency
    train = config.train.of(search.backbone)
    tried = any(trial.configured for trial in search.tried)
    study.configured = None if tried else space.values(train, search.space)
    workspace.remove(f"{_STATE}/{search.name}")  # of an interrupted search
    with reporter.task(f"tune {search.backbone}: trials", missing, "trials") as task:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(
                    train_trial, config=config.train, run=run, data=data, concurrency=concurrency
                ),
                _resources(config.train, concurrency),
            ),
            tune_config=tune.TuneConfig(
                search_alg=study,
                scheduler=_stopper(config.tune, train.epochs),
                num_samples=missing,
                max_concurrent_trials=concurrency,
                reuse_actors=True,  # a new process would import torch again for each trial
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=search.name,
                storage_path=f"{workspace.location}/{_STATE}",
                failure_config=tune.FailureConfig(max_failures=config.train.max_failures),
                callbacks=[TrialRecorder(study, search, reporter, task, train)],
                verbose=0,
            ),
        )
        # In a thread of its own: fit() would replace the main thread's Ctrl-C handler for good.
        executor = ThreadPoolExecutor(1, thread_name_prefix="tune")
        try:
            executor.submit(tuner.fit).result()
        finally:
            executor.shutdown(wait=False)
    workspace.remove(f"{_STATE}/{search.name}")


def _stopper(config: TuneConfig, epochs: int) -> TrialScheduler:
    """Scheduler that ends a trial which is worse than others at the same epoch."""
    grace = min(config.grace_epochs, epochs)
    if config.stopper == "asha":
        return ASHAScheduler(
            metric=QUALITY, mode="max", max_t=epochs, grace_period=grace, reduction_factor=3
        )
    if config.stopper == "median":
        return MedianStoppingRule(metric=QUALITY, mode="max", grace_period=grace)
    return FIFOScheduler()


def _resources(config: TrainConfig, concurrency: int) -> dict[str, float]:
    """Resources of one trial.

    Raises:
        EngineError: The trials need a GPU, and the cluster has none.
    """
    if config.device == "cuda":
        require_gpus(1, "train.device = cuda")
        share = capacity()["GPU"] / concurrency
        return {"CPU": 0.5, "GPU": 1.0 if share >= 1 else share}
    return {"CPU": cpu_share(concurrency)}
