"""The Ray Train worker: trains the pending runs one by one."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.util.queue import Queue
from torch import Tensor, nn
from typing_extensions import override

from reki_ray.config import Arm, TrainConfig
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError
from reki_ray.models.artifact import Bundle, Origin
from reki_ray.models.base_model import Architecture, EmbeddedModel
from reki_ray.models.ctr_model import CTRModel
from reki_ray.models.features import FeatureSpace
from reki_ray.models.rerank_model import RerankArchitecture, RerankModel
from reki_ray.schema import WHOLE_ANSWER, Split
from reki_ray.training.arms import ARMS, Representations, permute
from reki_ray.training.batches import BatchBuilder, EncodedDataset, TrainSamples, encode_dataset
from reki_ray.training.checkpoint import Epoch, RunState, read_state, write_state
from reki_ray.training.dataset import Dataset, Samples
from reki_ray.training.loop import Trainer, Workers
from reki_ray.training.precision import EMULATED, emulates
from reki_ray.training.rerank_lists import build_lists
from reki_ray.training.runs import Run, finished, settings_of, write_diverged, write_run
from reki_ray.training.sample_stream import SampleStream, StreamedSamples


@dataclass(frozen=True)
class TrainingData:
    """Inputs of all runs of a stage, stored once per node in Ray's object store.

    Args:
        samples: Validation samples, and training samples if they are held.
        representations: By arm, before `permute`; None for an arm without knowledge.
        lists: Training and validation lists; empty without rerankers.
    """

    features: FeatureSpace
    encoded: EncodedDataset
    samples: dict[Split, Samples]
    representations: dict[Arm, Representations | None]
    lists: dict[Split, Samples]
    stream: SampleStream | None = None

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        representations: dict[Arm, Representations | None],
        config: TrainConfig,
        stream: SampleStream | None = None,
    ) -> TrainingData:
        """Training data of a data set, without its test samples.

        Raises:
            ConfigError: No record has an attribute of `train.buckets`.
            DataError: Rerankers need lists, and no sample is positive.
        """
        features = dataset.train_features(config.buckets)
        samples: dict[Split, Samples] = {
            split: part for split, part in dataset.samples.items() if split != "test"
        }
        learned: tuple[Split, ...] = ("train", "valid") if config.rerankers else ()
        lists = {split: build_lists(dataset, split, config.rerank) for split in learned}
        encoded = encode_dataset(dataset, features)
        return cls(features, encoded, samples, representations, lists, stream)

    def samples_of(self, run: Run) -> dict[Split, Samples]:
        """Samples or lists that a run is trained and validated on."""
        return self.lists if run.reranks else self.samples


@dataclass(frozen=True)
class WorkerTask:
    """Task of every worker.

    Args:
        workspace: Root of the workspace, an absolute path or a URL.
        runs: All runs of the stage; finished ones are skipped.
        data: Reference to the `TrainingData`, in a list so that Ray passes it on unresolved.
        progress: Receives (run name, epoch or divergence) and ("", warning) of the first worker.
    """

    workspace: str
    config: TrainConfig
    runs: list[Run]
    data: list[ray.ObjectRef[TrainingData]]
    progress: Queue


class RayWorkers(Workers):
    """The workers of this Ray Train group."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world = context.get_world_size()
        self.device = ray.train.torch.get_device()

    def require(self, device: str) -> None:
        """Check the kind of device.

        Raises:
            EngineError: torch finds no such device on this node.
        """
        if self.device.type != device:
            raise EngineError(
                f"train.device is {device}, which Ray finds on this node, but torch does not",
                where=f"node {ray.util.get_node_ip_address()}",
                todo="Install a build of torch for CUDA on all nodes, or set train.device to cpu.",
            )

    @override
    def wrap(self, model: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(model) if self.world > 1 else model

    @override
    def synchronise(self, model: nn.Module) -> None:
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    @override
    def gather(self, values: Tensor) -> list[Tensor]:
        if self.world == 1:
            return [values]
        gathered = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(gathered, values.contiguous())
        return gathered


def train_runs(settings: dict[str, Any]) -> None:
    """Train loop of a worker; Ray Train wants a mapping, {"task": WorkerTask}."""
    task: WorkerTask = settings["task"]
    workspace = Workspace(task.workspace)
    workers = RayWorkers()
    workers.require(task.config.device)
    # Ray sets one OpenMP thread per worker; the workers of a node share its cores.
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // ray.train.get_context().get_local_world_size()))
    # Read before the first collective step: no worker can finish a run before all have checked.
    pending = [run for run in task.runs if finished(workspace, run) is None]
    slow = any(
        ARMS[run.arm].uses_knowledge
        and emulates(settings_of(task.config, run).precision, workers.device)
        for run in pending
    )
    if slow and workers.rank == 0:
        task.progress.put(("", EMULATED))
    data = ray.get(task.data[0])
    state = _latest_state()
    for run in pending:
        _train_run(run, task, data, workers, state)


def _train_run(
    run: Run, task: WorkerTask, data: TrainingData, workers: RayWorkers, state: RunState | None
) -> None:
    config = settings_of(task.config, run)
    buffer = task.config.shuffle_buffer
    trainer, bundle = new_trainer(run, config, data, workers.device, workers, buffer=buffer)
    if state is not None:
        trainer.resume(state)

    def after_epoch(epoch: Epoch, state: RunState) -> None:
        if workers.rank == 0:
            task.progress.put((run.name, epoch))
        _report(run, epoch, state, first=workers.rank == 0)

    trainer.run(after_epoch)
    if trainer.divergence is not None:
        if workers.rank == 0:
            target = Workspace(task.workspace)
            write_diverged(target, run, trainer.divergence, trainer.epochs)
            task.progress.put((run.name, trainer.divergence))
        return
    scores = trainer.predict()
    if workers.rank == 0:
        samples = data.samples_of(run)["valid"]
        valid = trainer.objective.summarise(samples.labels, scores, samples.users)
        write_run(Workspace(task.workspace), run, bundle, valid, trainer.epochs)


def new_bundle(run: Run, config: TrainConfig, data: TrainingData) -> Bundle[Any, Any]:
    """Untrained model of a run, a reranker or one of clicks, initialised with the run's seed."""
    inputs = ARMS[run.arm]
    representations = data.representations[run.arm]
    layers = {
        "backbone": run.backbone,
        "network": config.network,
        "hein": config.hein,
        "gate": config.gate,
        "representation": representations.items.dimension if representations else 0,
        "user_factors": representations.users.factors if representations else (WHOLE_ANSWER,),
        "item_factors": representations.items.factors if representations else (WHOLE_ANSWER,),
        "id_dropout": config.id_dropout,
    }
    features = data.features if inputs.profile else replace(data.features, user_fields={})
    torch.manual_seed(run.seed)
    architecture: Architecture
    model: EmbeddedModel
    if run.reranks:
        architecture = RerankArchitecture(
            **layers, reranker=config.rerank.network, list_size=config.rerank.list_size
        )
        model = RerankModel(architecture, features)
    else:
        architecture = Architecture(**layers)
        model = CTRModel(architecture, features)
    if representations is not None:
        model.user_reader.fit(torch.from_numpy(representations.users.vectors))
        model.item_reader.fit(torch.from_numpy(representations.items.vectors))
    origin = Origin(
        arm=run.arm,
        seed=run.seed,
        user_representations=inputs.users.path if inputs.users else "",
        item_representations=inputs.items.path if inputs.items else "",
    )
    return Bundle(model, architecture, features, inputs.history(config), origin)


def new_trainer(
    run: Run,
    config: TrainConfig,
    data: TrainingData,
    device: torch.device,
    workers: Workers | None = None,
    *,
    buffer: int = 1,
) -> tuple[Trainer, Bundle[Any, Any]]:
    """Trainer of a run's untrained model; `buffer` streamed samples are shuffled."""
    bundle = new_bundle(run, config, data)
    representations = permute(data.representations[run.arm], run.arm, run.seed)
    encoded = data.encoded
    if not bundle.features.user_fields:
        encoded = replace(encoded, user_attributes={})

    batches = {
        split: BatchBuilder(
            encoded,
            samples,
            bundle.history,
            representations,
            enriched=bundle.model.enriches,
            device=device,
        )
        for split, samples in data.samples_of(run).items()
    }
    valid = batches["valid"]
    train: TrainSamples
    train = StreamedSamples(data.stream, valid, buffer) if data.stream else batches["train"]
    trainer = Trainer(bundle.model.to(device), train, valid, config, run, workers)
    return trainer, bundle


def _report(run: Run, epoch: Epoch, state: RunState, *, first: bool) -> None:
    """Save the state of the epoch, equal on all workers, on the first one."""
    metrics = {"run": run.name, "epoch": epoch.epoch, "quality": epoch.quality}
    if not first:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_state(Path(folder), state)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _latest_state() -> RunState | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return read_state(Path(folder))
