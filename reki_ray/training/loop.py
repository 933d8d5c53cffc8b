"""The training loop in plain torch; Ray enters through `Workers` and a callback."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from reki_ray.config import TrainConfig
from reki_ray.models.artifact import not_finite
from reki_ray.models.base_model import EmbeddedModel
from reki_ray.models.inputs import Output
from reki_ray.training.batches import BatchBuilder, Prepared, TrainSamples, WorkerShard, dealt
from reki_ray.training.checkpoint import Divergence, Epoch, RunState, best_of, copy_weights
from reki_ray.training.objectives import CLICKS, LISTS, Objective
from reki_ray.training.precision import chosen_precision, compiled
from reki_ray.training.prefetch import Prefetched
from reki_ray.training.runs import Run

PREDICT_BATCH = 4096
"""Samples per forward pass without gradient."""


class Workers:
    """The workers that train one model together: one alone, unless a subclass knows others."""

    rank = 0
    world = 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """Model whose gradients are averaged over the workers."""
        return model

    def synchronise(self, model: nn.Module) -> None:
        """Give every worker the first one's running statistics."""

    def gather(self, values: Tensor) -> list[Tensor]:
        """Equally long tensors of all workers, by rank."""
        return [values]


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine to zero, counted in optimiser steps."""

    peak: float
    steps: int
    warmup: int

    @classmethod
    def of(cls, config: TrainConfig, steps_per_epoch: int) -> Schedule:
        """Schedule of a run."""
        steps = steps_per_epoch * config.epochs
        return cls(config.learning_rate, steps, round(steps * config.warmup_share))

    def rate(self, step: int) -> float:
        """Learning rate of a step, the first being 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Trainer:
    """Trains one model and keeps its best weights by the validation samples.

    Args:
        model: On its device.
        run: Its seed and objective count, and the state of another run is not resumed.

    Attributes:
        divergence: How the run failed, if it did.
    """

    def __init__(
        self,
        model: EmbeddedModel,
        train: TrainSamples,
        valid: BatchBuilder,
        config: TrainConfig,
        run: Run,
        workers: Workers | None = None,
    ) -> None:
        self._model = model
        self.objective: Objective = LISTS if run.reranks else CLICKS
        self._train = train
        self._valid = valid
        self._config = config
        self._seed = run.seed
        self._workers = workers or Workers()
        self._device = next(model.parameters()).device
        # Otherwise cuDNN's recurrent layers compute in TF32.
        torch.backends.cudnn.allow_tf32 = False
        model.reduced = chosen_precision(config.precision, self._device) == "bfloat16"
        wrapped = self._workers.wrap(model)
        self._wrapped = compiled(wrapped) if config.compile else wrapped
        self._optimiser = torch.optim.AdamW(
            _groups(model, config),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.steps_per_epoch = self._share(epoch=1).steps(len(train))
        self._schedule = Schedule.of(config, self.steps_per_epoch)
        self._state = RunState(run.fingerprint, [], {}, copy_weights(model), {})
        self.divergence: Divergence | None = None

    @property
    def epochs(self) -> list[Epoch]:
        """Metrics of the finished epochs."""
        return self._state.epochs

    @property
    def best(self) -> Epoch:
        """Metrics of the best epoch."""
        return best_of(self.epochs)

    def resume(self, state: RunState) -> None:
        """Continue after the last epoch of a state; a state of another run is ignored."""
        if state.fingerprint != self._state.fingerprint:
            return
        self._state = state
        self._model.load_state_dict(state.model)
        self._optimiser.load_state_dict(state.optimiser)

    def run(self, after_epoch: Callable[[Epoch, RunState], None]) -> None:
        """Train until the last epoch or until patience ends, then load the best weights.

        A run ends with a `divergence` when its loss, scores or weights are not finite.

        Args:
            after_epoch: Called on every worker after each epoch with its figures and the state.
        """
        while not self._finished():
            number = len(self.epochs) + 1
            loss, seconds, waited = self._train_epoch(number)
            scores = self.predict()
            if reason := self._not_finite(loss, scores):
                self.divergence = Divergence(number, reason)
                return
            labels = self._valid.labels(np.arange(len(scores))).cpu().numpy()
            done = Epoch(
                epoch=number,
                loss=loss,
                **self.objective.validate(labels, scores),
                seconds=round(seconds, 4),
                samples_per_second=round(len(self._train) / seconds, 1),
                learning_rate=self._schedule.rate(number * self.steps_per_epoch - 1),
                input_wait_share=round(waited, 5),
            )
            if not self.epochs or done.quality > self.best.quality:
                self._state.best = copy_weights(self._model)
            self._state.epochs.append(done)
            self._state.model = self._model.state_dict()
            self._state.optimiser = self._optimiser.state_dict()
            after_epoch(done, self._state)
        self._model.load_state_dict(self._state.best)
        self._model.eval()

    def predict(self) -> npt.NDArray[np.float32]:
        """Scores of the validation samples, see `predict`."""
        return predict(self._model, self._valid, self._workers, self.objective)

    def _finished(self) -> bool:
        if not self.epochs:
            return False
        stale = len(self.epochs) - self.best.epoch
        return len(self.epochs) >= self._config.epochs or stale >= self._config.patience

    def _not_finite(self, loss: float, scores: npt.NDArray[np.float32]) -> str:
        """Reason why an epoch diverged, the same on every worker; empty if all is finite."""
        if not math.isfinite(loss):
            return f"the training loss is {loss}"
        broken = int((~np.isfinite(scores)).sum())
        if broken:
            return f"{broken} of {scores.size} validation scores are not finite"
        return next((f"weights of {name} are not finite" for name in not_finite(self._model)), "")

    def _share(self, epoch: int) -> WorkerShard:
        workers = self._workers
        local_batch = max(1, self._config.batch_size // workers.world)
        return WorkerShard(self._seed, epoch, workers.rank, workers.world, local_batch)

    def _train_epoch(self, number: int) -> tuple[float, float, float]:
        """Mean loss, seconds, and largest share of them that a worker waited for batches."""
        # Seeded per epoch, so that a resumed run draws the same as an uninterrupted one.
        entropy = np.random.SeedSequence([self._seed, number, self._workers.rank])
        torch.manual_seed(int(entropy.generate_state(1)[0]))
        self._wrapped.train()
        # Read once per epoch: reading a loss waits for all queued work of an accelerator.
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        count = 0
        started = time.perf_counter()
        batches = self._train.epoch(self._share(number))
        with Prefetched(batches, self._config.prefetch) as prepared:
            # Exactly as many steps as the other workers, which would wait otherwise.
            for step in range(self.steps_per_epoch):
                step_input = next(prepared)
                at = (number - 1) * self.steps_per_epoch + step
                step_loss = self._step(step_input, self._schedule.rate(at)).double()
                total += step_loss * len(step_input.labels)
                count += len(step_input.labels)
        loss = float(total) / count
        seconds = time.perf_counter() - started
        own = torch.tensor([loss, prepared.waited / seconds], dtype=torch.float64)
        losses, waited = torch.stack(self._workers.gather(own.to(self._device))).unbind(dim=1)
        return float(losses.mean()), seconds, float(waited.max())

    def _step(self, prepared: Prepared, rate: float) -> Tensor:
        for group in self._optimiser.param_groups:
            group["lr"] = rate * group["multiple"]
        output: Output = self._wrapped(prepared.batch)
        loss = self.objective.loss(output.logits, prepared.labels)
        if output.auxiliary is not None:
            loss = loss + output.auxiliary
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._model.parameters(), self._config.gradient_clip)
        self._optimiser.step()
        return loss.detach()


def predict(
    model: EmbeddedModel,
    batches: BatchBuilder,
    workers: Workers | None = None,
    objective: Objective = CLICKS,
) -> npt.NDArray[np.float32]:
    """Scores (N,) of all samples of a split, or (N, K) of all lists, on every worker.

    Args:
        workers: Each computes its share, then all get all scores.
    """
    workers = workers or Workers()
    workers.synchronise(model)
    model.eval()
    count = len(batches)
    share = dealt(np.arange(count), workers.rank, workers.world)
    with torch.inference_mode():
        parts = [
            objective.scores(model(batches.build(share[start : start + PREDICT_BATCH])).logits)
            for start in range(0, len(share), PREDICT_BATCH)
        ]
    if not parts:
        return np.zeros(0, dtype=np.float32)
    gathered = workers.gather(torch.cat(parts))
    together = torch.stack(gathered, dim=1).flatten(0, 1)[:count]
    scores: npt.NDArray[np.float32] = together.cpu().numpy()
    return scores


def _groups(model: EmbeddedModel, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameter groups, each with its multiple of the learning rate."""
    knowledge = model.knowledge_parameters()
    known = set(knowledge)
    rest = [parameter for parameter in model.parameters() if parameter not in known]
    groups = [(rest, 1.0), (knowledge, config.hein.rate)]
    return [{"params": group, "multiple": multiple} for group, multiple in groups if group]
