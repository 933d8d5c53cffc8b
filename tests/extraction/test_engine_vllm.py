"""The vLLM engine with a real model: the contract of all engines, nine factors, a killed core."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from benchmarks import synthetic
from reki_ray import schema
from reki_ray.config import ExtractConfig, VllmEngine
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.extraction.answer_cache import LEDGER
from reki_ray.extraction.engines import build_engine
from reki_ray.prompts.scenario import load_scenario
from reki_ray.schema import FACTOR, REASON, SUBJECT_ID, TEXT
from reki_ray.stages.extract import run
from tests.conftest import TinyConfig
from tests.contracts import engine_contract as contract
from tests.contracts.engine_contract import CONTRACT, Asked, Candidate

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("ray_local"),
]

CHOOSING = {"max_tokens": 400, "constrain": "choices"}
TOO_LONG = "title: " + "long " * 3000


@pytest.fixture(scope="module", params=["text", "json"])
def asked(request: pytest.FixtureRequest, ray_local: None) -> Asked:
    del ray_local
    template = contract.template(request.param)
    config = ExtractConfig.model_validate(
        {
            "engine": VllmEngine(max_model_len=1024),
            "sampling": {"max_tokens": 96, "constrain": "choices"},
            "batch_size": 4,
        }
    )
    return contract.asked(Candidate(build_engine(config, template), template, TOO_LONG))


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_vllm_keeps_the_contract(asked: Asked, promise: Callable[[Asked], None]) -> None:
    promise(asked)


def stage_config(tiny_config: TinyConfig, **extract: Any) -> Any:
    return tiny_config(
        prompts={"few_shot": True, "form": extract.pop("form", "text")},
        extract={
            "engine": {"kind": "vllm", "max_model_len": 2048},
            "mode": "individual",
            "batch_size": 4,
            "unit_rows": 4,
            "max_dead_share": 1.0,
            **extract,
        },
        train={"arms": ["fair_base", "reki_i"]},
    )


def test_nine_factors_come_as_nine_fields(
    tiny_config: TinyConfig, workspace: Workspace, reporter: Reporter
) -> None:
    synthetic.fill(workspace, users=2, items=6, events=3)
    config = stage_config(tiny_config, form="json", sampling=CHOOSING)
    result = run(config, workspace, reporter)
    rows = workspace.read_table(schema.KNOWLEDGE).to_pylist()
    factors = load_scenario("movies").factors
    assert len(factors) == 9
    answered = {row[SUBJECT_ID] for row in rows}
    assert len(answered) == result.rows_out >= 6
    empty = sum(result.details["answers"]["empty_factors"].values())
    assert len(rows) + empty == 9 * len(answered)
    named = {row[FACTOR] for row in rows}
    assert {factor.key for factor in factors if factor.choices} <= named
    assert all(row[TEXT].strip() for row in rows)
    if result.dead:
        assert all(workspace.read_table(schema.DEAD_LETTERS)[REASON].to_pylist())


def kill_the_core(workspace: Workspace, killed: list[int]) -> None:
    """Kill the engine core of this session's vLLM as soon as a first unit is kept."""
    while not workspace.parts(LEDGER):
        time.sleep(0.2)
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("VLLM::Engine"):  # a kernel keeps 15 characters of a name
            process.kill()
            killed.append(process.pid)


def test_a_killed_engine_core_costs_its_unfinished_units_alone(
    tiny_config: TinyConfig, workspace: Workspace, reporter: Reporter
) -> None:
    synthetic.fill(workspace, users=24, items=24, events=3)
    killed: list[int] = []
    killer = threading.Thread(target=kill_the_core, args=(workspace, killed), daemon=True)
    killer.start()
    result = run(stage_config(tiny_config, sampling=CHOOSING), workspace, reporter)
    killer.join(timeout=60)
    assert killed
    # A dead core is not an answer: no prompt in flight may become a dead letter.
    reasons = []
    if result.dead:
        reasons = workspace.read_table(schema.DEAD_LETTERS)[REASON].to_pylist()
    assert not [reason for reason in reasons if "engine" in reason.lower()]
    assert result.rows_in == result.rows_out + result.dead == 48
    hashes = workspace.read_table(LEDGER)[schema.PROMPT_HASH].to_pylist()
    assert len(hashes) == len(set(hashes)) == result.rows_out
