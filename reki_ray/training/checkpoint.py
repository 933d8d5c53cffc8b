"""The state of a run after an epoch on disk, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reki_ray.metrics.ranking import HEADLINE

_TENSORS: Final = "state.safetensors"
_PROGRESS: Final = "state.json"


@dataclass(frozen=True)
class Epoch:
    """Metrics of one epoch.

    Args:
        epoch: Number, from 1.
        loss: Mean training loss, nats per sample.
        valid_auc: AUC over all validation samples; None with a single label, and of rerankers.
        valid_logloss: Log-loss over all validation samples, nats per sample; of rerankers the
            listwise loss, nats per list.
        seconds: Time of the training steps.
        samples_per_second: Over all workers; of rerankers lists.
        learning_rate: After the last step.
        valid_ndcg: NDCG over all validation lists, of rerankers.
        input_wait_share: Largest share of time that a worker waited for batches.
    """

    epoch: int
    loss: float
    valid_auc: float | None
    valid_logloss: float
    seconds: float
    samples_per_second: float
    learning_rate: float
    valid_ndcg: float | None = None
    input_wait_share: float = 0.0

    @property
    def quality(self) -> float:
        """Quantity that selection maximises: NDCG of lists, else as `quality`."""
        if self.valid_ndcg is not None:
            return self.valid_ndcg
        return quality({"auc": self.valid_auc, "logloss": self.valid_logloss})


@dataclass(frozen=True)
class Divergence:
    """Failure of a run: from this epoch, counted from 1, its numbers are not finite."""

    epoch: int
    reason: str

    def __str__(self) -> str:
        return f"diverged in epoch {self.epoch}: {self.reason}"


def quality(valid: Mapping[str, Any]) -> float:
    """Criterion of selection: NDCG of lists, AUC, or minus the log-loss if that is undefined."""
    if "ndcg" in valid:
        return float(valid["ndcg"][str(HEADLINE)])
    return float(-valid["logloss"] if valid["auc"] is None else valid["auc"])


def best_of(epochs: Sequence[Epoch]) -> Epoch:
    """The first epoch of the highest quality."""
    return max(epochs, key=lambda epoch: epoch.quality)


def time_of(epochs: Sequence[Epoch]) -> dict[str, float]:
    """Total time of the steps, median samples per second, and share of time spent waiting."""
    seconds = sum(epoch.seconds for epoch in epochs)
    waited = sum(epoch.input_wait_share * epoch.seconds for epoch in epochs)
    rates = sorted(epoch.samples_per_second for epoch in epochs)
    return {
        "seconds": round(seconds, 3),
        "samples_per_second": rates[len(rates) // 2],
        "input_wait_share": round(waited / max(seconds, 1e-9), 4),
    }


@dataclass
class RunState:
    """State to resume a run from after its last finished epoch.

    Args:
        fingerprint: Of the run; no other run resumes from it.
        model: Weights and buffers after the last epoch.
        best: Weights and buffers after the best epoch.
    """

    fingerprint: str
    epochs: list[Epoch]
    model: dict[str, Tensor]
    best: dict[str, Tensor]
    optimiser: dict[str, Any]


def write_state(folder: Path, state: RunState) -> None:
    """Write a run's state into an existing folder."""
    tensors = {
        **{f"model/{name}": tensor for name, tensor in state.model.items()},
        **{f"best/{name}": tensor for name, tensor in state.best.items()},
    }
    for parameter, values in state.optimiser["state"].items():
        for name, tensor in values.items():
            tensors[f"optimiser/{parameter}/{name}"] = tensor
    # Clones: safetensors rejects tensors that share memory, as model and best do at first.
    save_file({name: t.detach().cpu().clone() for name, t in tensors.items()}, folder / _TENSORS)
    progress = {
        "fingerprint": state.fingerprint,
        "epochs": [asdict(epoch) for epoch in state.epochs],
        "groups": state.optimiser["param_groups"],
    }
    (folder / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")


def read_state(folder: Path) -> RunState:
    """Read a run's state, on the CPU."""
    progress = json.loads((folder / _PROGRESS).read_bytes())
    model: dict[str, Tensor] = {}
    best: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / _TENSORS).items():
        kind, _, name = key.partition("/")
        if kind == "optimiser":
            parameter, _, name = name.partition("/")
            moments.setdefault(int(parameter), {})[name] = tensor
        else:
            (model if kind == "model" else best)[name] = tensor
    return RunState(
        fingerprint=progress["fingerprint"],
        epochs=[Epoch(**epoch) for epoch in progress["epochs"]],
        model=model,
        best=best,
        optimiser={"state": moments, "param_groups": progress["groups"]},
    )


def copy_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copy of a model's weights and buffers on the CPU."""
    return {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}
