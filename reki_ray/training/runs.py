"""Trained runs in the workspace: names, identity, and the folder of a finished one."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from reki_ray.config import Arm, Backbone, TrainConfig
from reki_ray.core.stage import CODE_VERSIONS
from reki_ray.core.workspace import Workspace
from reki_ray.models import artifact as bundles
from reki_ray.models.artifact import Bundle
from reki_ray.training.checkpoint import Divergence, Epoch, best_of, time_of

STAGE: Final = "train"
METRICS: Final = "metrics.json"

_WITHOUT_EFFECT: Final = {
    *("arms", "backbones", "rerankers", "seeds", "tuned"),
    *("max_failures", "device", "mlflow"),
    *("data", "max_held_samples", "prefetch"),
}
"""Keys that do not change the result of a run. Whether its samples were held or streamed does, and
is part of the digest of its data."""


@dataclass(frozen=True)
class Run:
    """One model to train.

    Args:
        fingerprint: Equal if training again would give the same model.
    """

    backbone: Backbone
    arm: Arm
    seed: int
    fingerprint: str = ""
    reranks: bool = False

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{slug(self.backbone)}-{self.arm}-{self.seed}"

    @property
    def folder(self) -> str:
        """The run's folder below the workspace."""
        return f"{STAGE}/{self.name}"


def slug(backbone: Backbone) -> str:
    """Name of a backbone or reranker, safe in file names."""
    return backbone.replace(":", ".")


def planned(config: TrainConfig, *, reranks: bool = False) -> list[Run]:
    """All runs of click models, or of rerankers, without fingerprints, an arm's seeds in a row."""
    return [
        Run(name, arm, seed, reranks=reranks)
        for name in (config.rerankers if reranks else config.backbones)
        for arm in config.arms
        for seed in config.seeds
    ]


def settings_of(config: TrainConfig, run: Run) -> TrainConfig:
    """The configuration of one run: with tuned settings, or the rates of rerankers."""
    return config.for_reranking() if run.reranks else config.of(run.backbone)


def effective(config: TrainConfig, run: Run) -> dict[str, Any]:
    """Settings that change the result of a run, JSON-ready."""
    without = _WITHOUT_EFFECT if run.reranks else _WITHOUT_EFFECT | {"rerank"}
    return settings_of(config, run).model_dump(mode="json", exclude=without)


def fingerprint(config: TrainConfig, run: Run, digests: Sequence[str]) -> str:
    """Identity of a run: its configuration and name, digests of its inputs, and the code."""
    identity = {
        "config": effective(config, run),
        "run": run.name,
        "data": list(digests),
        "version": CODE_VERSIONS[STAGE],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def finished(workspace: Workspace, run: Run) -> dict[str, Any] | None:
    """Content of the run's metrics.json if it was trained with this identity."""
    if not workspace.exists(run.folder, METRICS):
        return None
    metrics = read_metrics(workspace, run)
    return metrics if metrics.get("fingerprint") == run.fingerprint else None


def remove_stale(workspace: Workspace, runs: Sequence[Run]) -> None:
    """Remove outdated folders of these runs, and all unfinished ones; other runs are kept."""
    files = workspace.filesystem
    folder = workspace.path(STAGE)
    if not files.exists(folder):
        return
    by_name = {run.name: run for run in runs}
    for path in files.ls(folder, detail=False):
        name = path.rstrip("/").rpartition("/")[2]
        run = by_name.get(name)
        whole = workspace.exists(STAGE, name, METRICS)
        if not whole or (run is not None and finished(workspace, run) is None):
            files.rm(path, recursive=True)


def write_run(
    workspace: Workspace,
    run: Run,
    bundle: Bundle[Any, Any],
    valid: dict[str, Any],
    epochs: Sequence[Epoch],
) -> None:
    """Write a finished run with its best model; metrics.json comes last and marks it finished."""
    model = bundle.model
    metrics = {
        **_identity(run, epochs),
        "valid": valid,
        "best_epoch": best_of(epochs).epoch,
        **time_of(epochs),
        "parameters": sum(p.numel() for p in model.parameters()),
        "precision": "bfloat16" if bundle.uses_knowledge and model.reduced else "float32",
    }
    workspace.remove(run.folder)
    with tempfile.TemporaryDirectory() as scratch:
        bundles.save(Path(scratch), bundle)
        for name in (bundles.WEIGHTS, bundles.DESCRIPTION):
            with (
                Path(scratch, name).open("rb") as source,
                workspace.writing(run.folder, name) as sink,
            ):
                shutil.copyfileobj(source, sink)
    workspace.write_json(f"{run.folder}/{METRICS}", metrics)


def write_diverged(
    workspace: Workspace, run: Run, divergence: Divergence, epochs: Sequence[Epoch]
) -> None:
    """Write that a run diverged: it is not trained again, and nothing uses it."""
    workspace.remove(run.folder)
    metrics = {**_identity(run, epochs), "diverged": asdict(divergence)}
    workspace.write_json(f"{run.folder}/{METRICS}", metrics)


def read_metrics(workspace: Workspace, run: Run) -> dict[str, Any]:
    """Content of the metrics.json of a finished run; see `divergence_of`."""
    return dict(workspace.read_json(f"{run.folder}/{METRICS}"))


def divergence_of(metrics: dict[str, Any]) -> Divergence | None:
    """Divergence of a run from its metrics.json; None if it has a result."""
    return Divergence(**metrics["diverged"]) if "diverged" in metrics else None


def trained(workspace: Workspace, runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Finished runs that have a result, and those that diverged."""
    split: tuple[list[Run], list[Run]] = ([], [])
    for run in runs:
        split[divergence_of(read_metrics(workspace, run)) is not None].append(run)
    return split


def seeds_of(runs: Sequence[Run], backbone: Backbone, arm: Arm) -> list[int]:
    """Seeds of the runs of a backbone, or reranker, with an arm."""
    return [run.seed for run in runs if (run.backbone, run.arm) == (backbone, arm)]


def _identity(run: Run, epochs: Sequence[Epoch]) -> dict[str, Any]:
    return {
        "arm": run.arm,
        "reranker" if run.reranks else "backbone": run.backbone,
        "seed": run.seed,
        "fingerprint": run.fingerprint,
        "epochs": [asdict(epoch) for epoch in epochs],
    }


def read_bundle(workspace: Workspace, run: Run) -> Bundle[Any, Any]:
    """Model of a finished run, a reranker or one of clicks.

    Raises:
        StoreError: It is missing or damaged.
    """
    load = bundles.load_reranker if run.reranks else bundles.load
    if workspace.is_local:
        return load(workspace.local_path(run.folder))
    with tempfile.TemporaryDirectory() as scratch:
        for name in (bundles.WEIGHTS, bundles.DESCRIPTION):
            if workspace.exists(run.folder, name):
                target = str(Path(scratch) / name)
                workspace.filesystem.get_file(workspace.path(run.folder, name), target)
        return load(Path(scratch))
