"""In which numbers HEIN multiplies, by what the processor has."""

from __future__ import annotations

from queue import Empty
from typing import Any, cast

import pytest
import torch

from reki_ray.config import TrainConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.stages import train as train_stage
from reki_ray.training import loop, precision
from reki_ray.training.precision import EMULATED, chosen_precision, emulates
from tests.training.test_loop import CONFIG, trainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=["avx512_bf16", "amx_bf16", "bf16", "avx2"])
def unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The widest unit of a processor."""
    name: str = request.param
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, name: True})
    return name


def test_auto_takes_what_the_processor_multiplies_fast(unit: str) -> None:
    expected = "float32" if unit == "avx2" else "bfloat16"
    assert chosen_precision("auto", CPU) == expected
    assert emulates("bfloat16", CPU) == (unit == "avx2")
    assert chosen_precision("auto", CUDA) == "float32"
    for wanted in ("float32", "bfloat16"):
        assert chosen_precision(wanted, CPU) == wanted
    assert not emulates("auto", CPU)
    assert not emulates("bfloat16", CUDA)


@pytest.mark.parametrize(
    ("limit", "units"), [("AVX2", False), ("AVX512_CORE", False), ("AVX512_CORE_BF16", True)]
)
def test_a_limit_of_onednn_counts(monkeypatch: pytest.MonkeyPatch, limit: str, units: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert precision.multiplies_bfloat16() == units


@pytest.mark.parametrize("units", [False, True])
def test_auto_reaches_hein_and_recurrent_layers_are_exact(
    filled: Workspace, dataset: Any, monkeypatch: pytest.MonkeyPatch, units: bool
) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: units)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    trained, bundle = trainer(filled, dataset, CONFIG.model_copy(update={"precision": "auto"}))
    assert isinstance(trained, loop.Trainer)
    assert bundle.model.reduced == units
    assert not torch.backends.cudnn.allow_tf32


def test_what_a_worker_has_to_say_is_said(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    class Told:
        """What a worker put into its queue."""

        def __init__(self) -> None:
            self.news = [("", EMULATED)]

        def get(self, timeout: float) -> tuple[str, Any]:
            if not self.news:
                raise Empty
            return self.news.pop()

    class Done:
        """A training that has ended."""

        def done(self) -> bool:
            return True

        def result(self) -> None: ...

    reporter = Reporter(workspace)
    with reporter.task("train: epochs", 1, "epochs") as task:
        watch = train_stage._Watch(reporter, task, None, {}, {})
        train_stage._follow(cast(Any, Done()), cast(Any, Told()), TrainConfig(), watch)
    assert "emulates" in capsys.readouterr().err
