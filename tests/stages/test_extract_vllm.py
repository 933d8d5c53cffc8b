"""The extract stage with a real LLM in vLLM on the CPU, through Ray Data."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from reki_ray import schema
from reki_ray.config import ExtractConfig, PromptsConfig, VllmEngine
from reki_ray.core.downloads import cache_folder, resolve_model
from reki_ray.core.progress import Reporter, Task
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError
from reki_ray.extraction.cost_estimate import estimate
from reki_ray.extraction.engine_speed import known_speed
from reki_ray.extraction.engines.vllm import VllmBatchEngine, preloaded_libraries
from reki_ray.prompts.renderer import Renderer
from reki_ray.prompts.reply_parser import by_factor
from reki_ray.prompts.scenario import load_scenario
from reki_ray.stages.extract import run
from reki_ray.stages.extract_runner import ExtractRunner
from tests.conftest import TinyConfig

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

GENRES = ("Adventure", "Comedy", "Horror", "War")
TITLES = ["Star Wars", "Toy Story", "Alien", "word " * 2000, *(f"Film {n}" for n in range(60))]


def fill(workspace: Workspace) -> None:
    """Items, one with a title longer than the context, and one user."""
    count = len(TITLES)
    tables: list[tuple[schema.Table, dict[str, list[Any]]]] = [
        (
            schema.ITEMS,
            {
                schema.ITEM_ID: [f"m{i}" for i in range(count)],
                schema.TITLE: TITLES,
                schema.ATTRIBUTES: [[("genre", [GENRES[i % len(GENRES)]])] for i in range(count)],
                schema.TEXT: [None] * count,
                schema.IMAGE: [None] * count,
            },
        ),
        (
            schema.USERS,
            {
                schema.USER_ID: ["u0"],
                schema.ATTRIBUTES: [[("gender", ["F"])]],
                schema.TEXT: [None],
                schema.IMAGE: [None],
            },
        ),
        (
            schema.INTERACTIONS,
            {
                schema.USER_ID: ["u0"] * 2,
                schema.ITEM_ID: ["m0", "m1"],
                schema.TIMESTAMP: [1, 2],
                schema.RATING: [5.0, 4.0],
                schema.LABEL: [1, 1],
            },
        ),
        (schema.CUTS, {schema.USER_ID: ["u0"], schema.CUT: [1]}),
    ]
    for table, columns in tables:
        workspace.write_table(table, pa.table(columns, schema=table.schema))


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """When each unit was asked, and when the driver heard that it is kept, s since the epoch."""
    found: list[tuple[float, float]] = []
    count = ExtractRunner._count

    def counting(self: ExtractRunner, counts: dict[str, Any], task: Task) -> None:
        found.append((counts[schema.ASKED_AT], time.time()))
        count(self, counts, task)

    monkeypatch.setattr(ExtractRunner, "_count", counting)
    return found


def test_a_real_model_answers_and_a_prompt_too_long_fails_alone(
    tiny_config: TinyConfig,
    workspace: Workspace,
    reporter: Reporter,
    heard: list[tuple[float, float]],
) -> None:
    fill(workspace)
    config = tiny_config(
        prompts={
            "few_shot": True,
            "max_title_chars": 20_000,
            "factors": ["genre", "mood and tone"],
        },
        extract={
            "engine": {"kind": "vllm", "device": "cpu", "max_model_len": 1024},
            "mode": "individual",
            "sampling": {"max_tokens": 24, "constrain": "choices"},
            "batch_size": 2,
            "unit_rows": 2,
            "prompts_in_flight": 4,
            "max_dead_share": 0.5,
        },
        train={"arms": ["fair_base", "reki_i"]},
    )
    result = run(config, workspace, reporter)
    rows = workspace.read_table(schema.KNOWLEDGE).to_pylist()
    dead = workspace.read_table(schema.DEAD_LETTERS).to_pylist()
    assert [letter[schema.SUBJECT_ID] for letter in dead] == ["m3"]
    assert "1024" in dead[0][schema.REASON]
    alive = {"u0", *(f"m{i}" for i in range(len(TITLES)))} - {"m3"}
    assert sorted(row[schema.SUBJECT_ID] for row in rows) == sorted(alive)
    for row in rows:
        assert row[schema.TEXT].startswith("genre: ")
        assert 0 < row[schema.GENERATED_TOKENS] <= 24
        assert 100 < row[schema.PROMPT_TOKENS] < 1024
        assert row[schema.MODEL] == "packaged:smollm2-135m-instruct"
        assert row[schema.FINISH_REASON] == "stop"
    assert (result.rows_in, result.rows_out, result.dead) == (len(TITLES) + 1, len(TITLES), 1)
    # More units than go to the engine at once: the first is kept before the last is asked.
    assert min(kept for _, kept in heard) < max(asked for asked, _ in heard if asked < math.inf)
    assert result.details["tokens_per_second"] > 0


@pytest.mark.slow
def test_the_demos_way_of_asking_gets_an_answer_for_every_factor(
    tiny_config: TinyConfig, workspace: Workspace, reporter: Reporter
) -> None:
    fill(workspace)
    demo = yaml.safe_load(Path("configs/movielens-100k.yaml").read_text(encoding="utf-8"))
    config = tiny_config(
        prompts=demo["prompts"],
        extract={**demo["extract"], "mode": "individual"},
        train={"arms": ["fair_base", "reki_i"]},
    )
    stats = run(config, workspace, reporter).details["answers"]
    assert stats["quarantined"] == {"error": 1} or not stats["quarantined"]  # the endless title
    assert stats["complete"] >= 0.95 * stats["answered"]
    assert sum(stats["asked_again"].values()) <= 0.05 * stats["answered"]
    texts = workspace.read_table(schema.KNOWLEDGE)[schema.TEXT].to_pylist()
    factors = demo["prompts"]["factors"]
    for text in texts:
        assert len(by_factor(text, factors)) >= len(factors) - 1
    genres = {by_factor(text, factors)["genre"].partition(",")[0] for text in texts}
    assert len(genres) >= len(GENRES) - 1  # an answer for each subject, not one for all


@pytest.mark.slow
def test_the_speed_of_a_real_engine_is_measured(
    tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    resolve_model("packaged:smollm2-135m-instruct")
    shutil.copytree(cache_folder(), tmp_path / "cache", symlinks=True)
    shutil.rmtree(tmp_path / "cache" / "speeds", ignore_errors=True)
    monkeypatch.setenv("REKI_CACHE", str(tmp_path / "cache"))
    config = tiny_config(
        prompts={"factors": ["genre", "mood and tone"]},
        extract={
            "engine": {"kind": "vllm", "max_model_len": 1024},
            "sampling": {"max_tokens": 24, "constrain": "choices"},
        },
    )
    found = estimate(config, None, users=1000, items=100, measure=True)
    assert found.speed_source == "measured"
    assert found.tokens_per_second > 1
    assert found.prefill_tokens_per_second > 1
    known = known_speed(config.extract, None)
    assert known is not None
    assert known.generation == found.tokens_per_second


def test_a_cluster_that_is_too_small_is_refused_before_the_start() -> None:
    template = Renderer(load_scenario("movies"), PromptsConfig()).template
    many = ExtractConfig(min_replicas=9, max_replicas=9)
    with pytest.raises(EngineError, match="need 10 CPU"):
        VllmBatchEngine(VllmEngine(), many, template).require_room()
    on_gpu = VllmEngine(device="gpu", engine_kwargs={"tensor_parallel_size": 2})
    extract = ExtractConfig(engine=on_gpu)
    with pytest.raises(EngineError, match="need 2 GPU"):
        VllmBatchEngine(on_gpu, extract, template).require_room()


def test_preloaded_libraries_exist() -> None:
    assert all("lib" in path for path in preloaded_libraries().split(":") if path)
