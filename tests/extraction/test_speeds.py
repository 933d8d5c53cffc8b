"""The speed of an engine: remembered for its machine, corrected by what runs really did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reki_ray.config import ExtractConfig
from reki_ray.core.downloads import cache_folder
from reki_ray.core.progress import HEARTBEAT
from reki_ray.core.workspace import Workspace
from reki_ray.extraction.estimating import speeds
from reki_ray.extraction.estimating.estimate import estimate
from reki_ray.extraction.estimating.render import summary
from reki_ray.extraction.estimating.speeds import (
    MeasuredSpeed,
    known_speed,
    observed_speed,
    remember,
)
from reki_ray.extraction.run_stats import Snapshot
from tests.conftest import TinyConfig

RUN = Snapshot(prompt_tokens=30_000, cached_tokens=10_000, generated_tokens=10_000, seconds=100.0)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache without speeds; converted models take half a minute, and are those of all tests."""
    known, own = cache_folder(), tmp_path / "cache"
    own.mkdir()
    for entry in known.glob("[!s]*"):
        (own / entry.name).symlink_to(entry)
    monkeypatch.setenv("REKI_CACHE", str(own))
    return own


def extract(**engine: Any) -> ExtractConfig:
    return ExtractConfig.model_validate({"engine": {"kind": "vllm", **engine}})


def measured(prefill: float = 1000.0, generation: float = 100.0) -> MeasuredSpeed:
    return MeasuredSpeed(
        prefill=prefill, generation=generation, source="measured", machine="here", measured_at=0
    )


def test_a_speed_is_that_of_its_engine_and_survives_a_damaged_file(cache: Path) -> None:
    assert known_speed(extract(), None) is None
    remember(extract(), measured())
    assert known_speed(extract(), None) == measured()
    assert known_speed(extract(model="org/other"), None) is None
    assert known_speed(extract(cpu_threads=1), None) is None
    (kept,) = (cache / "speeds").iterdir()
    kept.write_text("{")
    assert known_speed(extract(), None) is None


def test_a_run_scales_both_rates_to_the_time_that_it_took() -> None:
    remember(extract(), measured())
    # 20,000 tokens to read at 1,000/s and 10,000 to write at 100/s: 120 s were expected, not 100.
    found = observed_speed(extract(), RUN)
    assert found is not None
    assert found.source == "observed"
    assert found.prefill == pytest.approx(1200)
    assert found.generation == pytest.approx(120)
    two = observed_speed(extract(), RUN.model_copy(update={"replicas": 2}))
    assert two is not None
    assert two.generation == pytest.approx(60)
    few = RUN.model_copy(update={"generated_tokens": 20})
    assert observed_speed(extract(), few) is None


def test_a_run_at_work_corrects_the_plan(workspace: Workspace) -> None:
    remember(extract(), measured())
    beat = {"figures": RUN.model_dump(), "finished": False}
    workspace.write_json(HEARTBEAT, beat)
    found = known_speed(extract(), workspace)
    assert found is not None
    assert found.generation == pytest.approx(120)
    workspace.write_json(HEARTBEAT, {**beat, "finished": True})
    assert known_speed(extract(), workspace) == measured()


def test_an_estimate_says_where_its_speed_is_from(tiny_config: TinyConfig) -> None:
    config = tiny_config()
    guessed = estimate(config, None, users=1000, items=100)
    assert guessed.speed_source == "configured"
    assert any("not measured" in sentence for sentence in guessed.assumptions)
    assert all("time not measured yet" in line for line in summary(guessed))
    remember(config.extract, measured())
    known = estimate(config, None, users=1000, items=100)
    assert (known.speed_source, known.tokens_per_second) == ("measured", 100.0)
    assert any("measured with a few prompts: here" in said for said in known.assumptions)
    assert all(" with 1 engine" in line for line in summary(known))
    given = estimate(config, None, users=1000, items=100, tokens_per_second=7)
    assert (given.speed_source, given.tokens_per_second) == ("given", 7)
    assert given.prefill_tokens_per_second == 1000.0


def test_only_an_engine_of_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert speeds.can_measure(extract())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert not speeds.can_measure(extract(device="gpu"))
    for other in (
        {"kind": "scripted"},
        {"kind": "openai", "base_url": "http://h/v1", "model": "m"},
    ):
        assert not speeds.can_measure(ExtractConfig.model_validate({"engine": other}))


def test_a_remembered_speed_is_plain_json(cache: Path) -> None:
    remember(extract(), measured())
    (kept,) = (cache / "speeds").iterdir()
    assert json.loads(kept.read_text()) == measured().model_dump()
