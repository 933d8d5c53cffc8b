"""What makes training faster must not make another model of it, or say so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError
from reki_ray.training.batches import BatchBuilder
from reki_ray.training.dataset import Dataset, Samples
from reki_ray.training.precision import compiled
from tests.training.test_loop import CONFIG, ignore, trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def train(filled: Workspace, dataset: Dataset, **changes: Any) -> tuple[Any, dict[str, Any]]:
    config = CONFIG.model_copy(update={"epochs": 2, **changes})
    trained, bundle = trainer(filled, dataset, config)
    trained.run(ignore)
    return trained, bundle.model.state_dict()


def test_prefetch_changes_nothing(filled: Workspace, dataset: Dataset) -> None:
    ahead, _ = train(filled, dataset, prefetch=3)
    without, _ = train(filled, dataset, prefetch=0)
    for name in ("loss", "valid_logloss"):
        one, other = ([getattr(e, name) for e in run.epochs] for run in (ahead, without))
        assert one == pytest.approx(other, abs=1e-5)
    assert all(0 <= epoch.input_wait_share <= 1 for epoch in ahead.epochs)


def test_error_of_the_builder_ends_the_run(
    filled: Workspace, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: BatchBuilder, samples: Samples) -> None:
        raise ArithmeticError("broken builder")

    monkeypatch.setattr(BatchBuilder, "of", broken)
    with pytest.raises(ArithmeticError, match="broken builder"):
        train(filled, dataset, prefetch=2)


def test_bfloat16_concerns_hein_in_training_alone(filled: Workspace, dataset: Dataset) -> None:
    trained, weights = train(filled, dataset, precision="bfloat16")
    exact, _ = train(filled, dataset)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert trained.best.valid_logloss == pytest.approx(exact.best.valid_logloss, abs=0.02)
    assert trained.best.valid_logloss != exact.best.valid_logloss

    model = trained._model
    r = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32))
    model.eval()
    served = model.augment_items(r)
    model.train()
    training = model.augment_items(r)
    assert training.shape == served.shape  # what is rounded up is cut off again
    assert training.dtype == torch.float32
    assert not torch.equal(training, served)
    torch.testing.assert_close(training, served, atol=0.05, rtol=0.05)


def test_compiling_without_compiler_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"set train\.compile to false"):
        compiled(torch.nn.Linear(1, 1))
