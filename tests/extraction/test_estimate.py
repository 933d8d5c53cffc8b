"""`reki plan`: estimates from samples, with every assumption, and the speed of the engine."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from reki_ray import schema
from reki_ray.cli.views.plan import render
from reki_ray.config import ExtractConfig, RekiConfig, ScriptedEngine
from reki_ray.core.downloads import cache_folder, resolve_model
from reki_ray.core.progress import HEARTBEAT, Reporter
from reki_ray.core.tables import row_groups, rows_of
from reki_ray.core.workspace import ROW_GROUP_ROWS, Workspace
from reki_ray.errors import ConfigError
from reki_ray.extraction import engine_speed, prompt_sample
from reki_ray.extraction.capacity import MEASURED
from reki_ray.extraction.cost_estimate import Estimate, ModeEstimate, encoder_dimension, estimate
from reki_ray.extraction.engine_speed import EngineSpeed, known_speed, observed_speed, remember
from reki_ray.extraction.prompt_sample import PromptSample, sample_prompts
from reki_ray.extraction.run_stats import Snapshot
from reki_ray.extraction.shards import cut_into_shards, load
from reki_ray.extraction.subjects import Subjects
from reki_ray.extraction.token_counts import Interval, KindEstimate, token_counter
from reki_ray.llm.chat_template import ChatRenderer
from reki_ray.llm.prices import gpus_of
from reki_ray.prompts.renderer import Renderer
from reki_ray.prompts.scenario import load_scenario
from reki_ray.stages import ingest
from tests.conftest import TinyConfig

SMOLLM2 = {"kind": "vllm", "model": "packaged:smollm2-135m-instruct"}


def plan(config: RekiConfig, workspace: Workspace | None = None, **given: Any) -> Estimate:
    speeds = {"tokens_per_second": 100.0, "prefill_tokens_per_second": 1000.0, "engines": 2}
    return estimate(config, workspace, **{"users": None, "items": None, **speeds, **given})


def renderer_of(config: RekiConfig) -> Renderer:
    return Renderer(load_scenario(config.prompts.scenario), config.prompts)


def kinds(found: Estimate) -> dict[str, KindEstimate]:
    return {kind.kind: kind for mode in found.modes for kind in mode.kinds}


def said(found: Estimate) -> str:
    return "\n".join(found.assumptions)


@pytest.fixture
def ingested(tiny_config: TinyConfig, workspace: Workspace, reporter: Reporter) -> RekiConfig:
    config = tiny_config(extract={"engine": SMOLLM2})
    ingest.run(config, workspace, reporter)
    return config


def write_clusters(workspace: Workspace) -> None:
    for side, table, key in (
        ("users", schema.USERS, "user_id"),
        ("items", schema.ITEMS, "item_id"),
    ):
        ids = workspace.read_table(table)[key].to_pylist()
        rows = {
            "id": ids,
            "cluster_id": [f"{side}-{row % 5}" for row in range(len(ids))],
            "similarity": np.ones(len(ids)),
            "method": ["hdbscan"] * len(ids),
        }
        workspace.write_table(schema.CLUSTERS[side], pa.table(rows))  # type: ignore[index]


def exact_tokens(config: RekiConfig, workspace: Workspace) -> dict[str, list[int]]:
    """Tokens of every prompt of the configured mode, rendered as stage extract does."""
    renderer = renderer_of(config)
    chat = ChatRenderer(resolve_model(config.extract.engine.model), "main")
    tokens: dict[str, list[int]] = {}
    for shard in cut_into_shards(workspace, config.extract.mode):
        for prompt in Subjects(load(workspace, shard), renderer, config.prompts):
            text = chat.text(renderer.template.messages(prompt.subject_kind, prompt.body))
            found = chat._tokenizer(text)["input_ids"]
            tokens.setdefault(prompt.subject_kind, []).append(len(found))
    return tokens


# --- from a workspace ------------------------------------------------------------------------
def test_a_workspace_is_estimated_from_the_prompts_it_will_have(
    ingested: RekiConfig, workspace: Workspace
) -> None:
    write_clusters(workspace)
    found = plan(ingested, workspace)
    for mode in ("individual", "collective"):
        tree = ingested.model_dump(mode="json")
        arms = {"arms": ["fair_base"]}
        asked = {**tree, "extract": {**tree["extract"], "mode": mode}, "train": arms}
        for kind, tokens in exact_tokens(RekiConfig.model_validate(asked), workspace).items():
            # So small a data set is sampled whole.
            assert kinds(found)[kind].subjects == len(tokens)
            assert kinds(found)[kind].prompt_tokens.mean == pytest.approx(np.mean(tokens))
            assert 0 < kinds(found)[kind].cached_tokens < min(tokens)
    assert "clustered" not in said(found)
    assert "random members" not in said(found)


def test_an_unclustered_workspace_is_estimated_by_the_smallest_cluster(
    ingested: RekiConfig, workspace: Workspace
) -> None:
    found = plan(ingested, workspace)
    assert kinds(found)["user_cluster"].subjects == 40 // 16
    assert kinds(found)["item_cluster"].subjects == 60 // 16
    assert "cluster.users.min_cluster_size (4)" in said(found)
    assert "random members" in said(found)


def test_equal_prompts_are_counted_once(
    tiny_config: TinyConfig, workspace: Workspace, reporter: Reporter
) -> None:
    config = tiny_config(prompts={"max_history": 1, "max_title_chars": 8})
    ingest.run(config, workspace, reporter)
    user = kinds(plan(config, workspace))["user"]
    totals: dict[schema.Side, int | None] = {"users": None, "items": None}
    samples = sample_prompts(config, workspace, renderer_of(config), [], totals)
    bodies = samples["user"].bodies
    assert user.prompts == len(set(bodies)) < user.subjects == 40
    assert user.duplicate_share == pytest.approx(1 - user.prompts / 40)


def test_given_counts_scale_what_the_workspace_shows(
    ingested: RekiConfig, workspace: Workspace
) -> None:
    write_clusters(workspace)
    small, large = plan(ingested, workspace), plan(ingested, workspace, users=40_000)
    assert kinds(large)["user"].subjects == 40_000
    assert kinds(large)["user"].prompt_tokens == kinds(small)["user"].prompt_tokens
    assert kinds(large)["item"] == kinds(small)["item"]
    assert kinds(large)["user_cluster"].subjects == 5 * 1000
    assert "user clusters grows" in said(large)


def test_large_tables_are_read_in_part(
    ingested: RekiConfig, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clusters(workspace)
    whole = plan(ingested, workspace)
    monkeypatch.setattr(prompt_sample, "_LARGE", 10)
    monkeypatch.setattr(prompt_sample, "_LARGE_SAMPLE", 20)
    monkeypatch.setattr(prompt_sample, "_ROW_GROUPS", 1)
    part = plan(ingested, workspace)
    for kind, figures in kinds(part).items():
        assert figures.subjects == kinds(whole)[kind].subjects
        assert figures.sampled <= 200
        relative = figures.prompt_tokens.mean / kinds(whole)[kind].prompt_tokens.mean
        assert 0.85 < relative < 1.15
    assert "random members" in said(part)


def test_rows_of_some_ids_are_read_from_the_row_groups_that_may_hold_them(
    workspace: Workspace,
) -> None:
    count = 5 * ROW_GROUP_ROWS
    ids = [f"u{row:08d}" for row in range(count)]
    workspace.write_table(schema.CUTS, pa.table({"user_id": ids, "cut": np.arange(count)}))
    assert len(row_groups(workspace, schema.CUTS)) == 5
    wanted = pa.array([ids[3], ids[7], ids[-1], "stranger", "a"])
    rows = rows_of(workspace, schema.CUTS, "user_id", wanted)
    assert rows["cut"].to_pylist() == [3, 7, count - 1]
    (fragment,) = workspace.dataset(schema.CUTS, schema.CUTS.schema).get_fragments()
    read = fragment.split_by_row_group(pc.field("user_id").isin(wanted))
    assert [part.row_groups[0].id for part in read] == [0, 4]


# --- from counts -----------------------------------------------------------------------------
def test_counts_alone_are_enough(tiny_config: TinyConfig, workspace: Workspace) -> None:
    config = tiny_config(extract={"engine": SMOLLM2})
    found = plan(config, workspace, users=100_000_000, items=10_000_000)
    assert found.modes[0].subjects == 110_000_000
    assert found.modes[1].subjects == 100_000_000 // 16 + 10_000_000 // 16
    assert "worked examples of scenario movies" in said(found)
    for mode in found.modes:
        assert mode.prompts == mode.subjects
        assert mode.cached_tokens < mode.prompt_tokens.low
        assert mode.prompt_tokens.low <= mode.prompt_tokens.mean <= mode.prompt_tokens.high
        assert mode.storage.total > mode.storage.published > 100_000_000 * 32 * 4
    assert found == plan(config, None, users=100_000_000, items=10_000_000)


def test_without_workspace_both_counts_are_needed(
    tiny_config: TinyConfig, workspace: Workspace
) -> None:
    with pytest.raises(ConfigError, match="items is unknown"):
        plan(tiny_config(), workspace, users=5)
    with pytest.raises(ConfigError, match="users is unknown"):
        plan(tiny_config(), None, items=5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"users": 0},
        {"users": 10**15},
        {"items": -1},
        {"engines": 0},
        {"tokens_per_second": math.nan},
        {"prefill_tokens_per_second": 0.0},
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    tiny_config: TinyConfig, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="not a positive number: --"):
        plan(tiny_config(), None, **{"users": 5, "items": 5, **wrong})


# --- arithmetic ------------------------------------------------------------------------------
def test_hours_money_and_time_follow_from_tokens(tiny_config: TinyConfig) -> None:
    engine = {**SMOLLM2, "device": "gpu", "engine_kwargs": {"tensor_parallel_size": 2}}
    prices = {"currency": "EUR", "gpu_hour": 3.0, "prompt_tokens": 1.0, "generated_tokens": 4.0}
    config = tiny_config(extract={"engine": engine, "prices": {**prices, "cached_tokens": 0.5}})
    found = plan(config, None, users=1000, items=1000)
    assert found.currency == "EUR"
    mode: ModeEstimate = found.modes[0]
    prompt = sum(kind.prompts * kind.prompt_tokens.mean for kind in mode.kinds)
    cached = sum(kind.prompts * kind.cached_tokens for kind in mode.kinds)
    generated = sum(kind.prompts * kind.generated_tokens.mean for kind in mode.kinds)
    assert mode.prompt_tokens.mean == pytest.approx(prompt)
    assert mode.cached_tokens == cached
    hours = ((prompt - cached) / 1000 + generated / 100) / 3600
    assert mode.engine_hours.mean == pytest.approx(hours)
    assert mode.gpu_hours.mean == pytest.approx(2 * hours)
    assert mode.wall_hours.mean == pytest.approx(hours / 2)
    tokens = (prompt - cached) * 1.0 + cached * 0.5 + generated * 4.0
    assert mode.cost.mean == pytest.approx(2 * hours * 3 + tokens / 1e6)
    assert mode.cost.low < mode.cost.mean < mode.cost.high


def test_no_gpu_of_this_cluster_is_counted_for_other_engines() -> None:
    assert gpus_of(ExtractConfig()) == 0
    assert gpus_of(ExtractConfig(engine=ScriptedEngine())) == 0


def test_cached_tokens_are_whole_blocks_of_the_shared_prefix(tiny_config: TinyConfig) -> None:
    def cached(**kwargs: Any) -> int:
        engine = {**SMOLLM2, "engine_kwargs": kwargs}
        config = tiny_config(extract={"engine": engine})
        found = plan(config, None, users=10, items=10)
        assert ("is off" in said(found)) == (kinds(found)["user"].cached_tokens == 0)
        return kinds(found)["user"].cached_tokens

    fine = cached(block_size=1)
    assert cached() == fine // 32 * 32 > 0
    assert cached(block_size=128) == fine // 128 * 128
    assert cached(enable_prefix_caching=False) == 0


def test_prompts_beyond_the_context_are_announced(tiny_config: TinyConfig) -> None:
    engine = {**SMOLLM2, "max_model_len": 128}
    found = plan(tiny_config(extract={"engine": engine}), None, users=10, items=10)
    assert "user prompts do not fit extract.engine.max_model_len" in said(found)


def test_a_substitute_tokenizer_is_an_assumption(
    tiny_config: TinyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert "SmolLM2-135M-Instruct: engine scripted" in said(
        plan(tiny_config(), None, users=10, items=10)
    )
    for missing in (str(tmp_path), str(tmp_path / "none"), "someone/model"):
        engine = {"kind": "vllm", "model": missing}
        found = plan(tiny_config(extract={"engine": engine}), None, users=10, items=10)
        assert f"the tokenizer of {missing} cannot be loaded" in said(found)


def test_answers_measured_here_count_more_than_worked_ones(
    ingested: RekiConfig, workspace: Workspace
) -> None:
    before = kinds(plan(ingested, workspace))
    rows = {
        "subject_kind": ["item"] * 40 + ["user"] * 40,
        "subject_id": [str(row) for row in range(80)],
        "factor": ["*"] * 80,
        "text": ["text"] * 80,
        "prompt_hash": ["0" * 64] * 80,
        "model": [ingested.extract.engine.model] * 40 + ["another"] * 40,
        "revision": ["main"] * 80,
        "engine": ["vllm"] * 80,
        "prompt_tokens": [1] * 80,
        "generated_tokens": [10, 30] * 40,
        "finish_reason": ["stop"] * 80,
        "created_at": [0] * 80,
    }
    workspace.write_table(schema.KNOWLEDGE, pa.table(rows))
    found = plan(ingested, workspace)
    measured = kinds(found)["item"].generated_tokens
    assert measured.mean == 20
    assert 10 < measured.low < 20 < measured.high < 30
    assert kinds(found)["user"].generated_tokens == before["user"].generated_tokens
    assert "Answers about user, item_cluster, user_cluster are" in said(found)


def test_the_number_of_distinct_prompts_is_estimated_from_a_sample() -> None:
    def distinct(bodies: list[str], subjects: int) -> float:
        return PromptSample(subjects, bodies, drawn=True).distinct

    assert distinct([f"{row}" for row in range(200)], 10**8) == 10**8
    assert distinct(["a"] * 200, 10**8) == 1
    assert distinct(["a", "a", "b"], 3) == 2
    assert distinct([], 0) == 0
    generator = np.random.default_rng(0)
    drawn = [str(value) for value in generator.integers(0, 300, 1000)]
    assert distinct(drawn, 10**6) == pytest.approx(300, rel=0.1)


def test_intervals_widen_with_spread_and_narrow_with_size() -> None:
    assert Interval.of_mean([5.0]) == Interval(mean=5, low=5, high=5)
    few, many = Interval.of_mean([1, 3] * 5), Interval.of_mean([1, 3] * 500)
    assert few.mean == many.mean == 2
    assert few.low < many.low < 2 < many.high < few.high


def test_storage_grows_with_what_is_kept(tiny_config: TinyConfig) -> None:
    def storage(**prompts: Any) -> tuple[int, int]:
        config = tiny_config(prompts=prompts, extract={"engine": SMOLLM2})
        kept = plan(config, None, users=10**6, items=10**6).modes[0].storage
        assert kept.total == sum(
            (kept.plan, kept.ledger, kept.knowledge, kept.representations, kept.published)
        )
        return kept.plan, kept.ledger

    short, long = storage(max_history=1), storage(max_history=30)
    assert short[0] < long[0]
    # An answer takes its hash and some words: more than 64 bytes, less than a kibibyte.
    assert 64 * 10**6 < short[1] < 2 * 1024 * 10**6


def test_the_encoders_dimension_is_known_or_assumed(
    tiny_config: TinyConfig, workspace: Workspace
) -> None:
    assumed: list[str] = []
    assert encoder_dimension(tiny_config(), workspace, assumed) == 384
    assert assumed == []
    other = tiny_config(encode={"model": "someone/encoder"})
    assert encoder_dimension(other, None, assumed) == 768
    assert "someone/encoder" in assumed[0]


# --- output ----------------------------------------------------------------------------------
def test_the_table_shows_both_modes_and_every_assumption(tiny_config: TinyConfig) -> None:
    found = plan(tiny_config(), None, users=100_000_000, items=10_000_000)
    console = Console(width=300, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(render(found))
    text = console.export_text()
    assert "individual" in text
    assert "collective (configured)" in text
    assert "110,000,000" in text
    for sentence in found.assumptions:
        assert sentence in text


def test_the_command_speaks_json(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "name: a\ndata: {source: {kind: movielens_100k}}\nextract: {engine: {kind: scripted}}\n"
    )
    command = [str(Path(sys.executable).parent / "reki"), "plan", "-c", "c.yaml", "--json"]
    done = subprocess.run(
        [*command, "--users=1000", "--items=100", "--engines=3", "--requests-per-second=9"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["engines"] == 3
    assert [mode["mode"] for mode in content["modes"]] == ["individual", "collective"]
    assert content["modes"][0]["storage"]["total"] > 0
    assert content["capacity"]["serving_cores"] == 1
    assert not list(tmp_path.glob("runs*"))  # asking leaves nothing behind
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--users and --items" in done.stderr


def test_tokens_are_those_of_the_models_own_template(tiny_config: TinyConfig) -> None:
    config = tiny_config(extract={"engine": SMOLLM2})
    messages = renderer_of(config).template.messages("item", "<data>\nmovie: Heat\n</data>")
    chat = ChatRenderer(resolve_model(config.extract.engine.model), "main")
    expected = chat._tokenizer(chat.text(messages))["input_ids"]
    assert token_counter(config.extract, []).token_ids(messages) == expected


# --- speed of the engine ---------------------------------------------------------------------
RUN = Snapshot(prompt_tokens=30_000, cached_tokens=10_000, generated_tokens=10_000, seconds=100.0)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache without speeds but with the models, which take half a minute to convert."""
    known, own = cache_folder(), tmp_path / "cache"
    own.mkdir()
    for entry in known.glob("[!s]*"):
        (own / entry.name).symlink_to(entry)
    monkeypatch.setenv("REKI_CACHE", str(own))
    return own


def extract(**engine: Any) -> ExtractConfig:
    return ExtractConfig.model_validate({"engine": {"kind": "vllm", **engine}})


def measured(prefill: float = 1000.0, generation: float = 100.0) -> EngineSpeed:
    return EngineSpeed(
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


@pytest.mark.usefixtures("cache")
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


@pytest.mark.usefixtures("cache")
def test_a_run_at_work_corrects_the_plan(workspace: Workspace) -> None:
    remember(extract(), measured())
    beat = {"figures": RUN.model_dump(), "finished": False}
    workspace.write_json(HEARTBEAT, beat)
    found = known_speed(extract(), workspace)
    assert found is not None
    assert found.generation == pytest.approx(120)
    workspace.write_json(HEARTBEAT, {**beat, "finished": True})
    assert known_speed(extract(), workspace) == measured()


@pytest.mark.usefixtures("cache")
def test_an_estimate_says_where_its_speed_is_from(tiny_config: TinyConfig) -> None:
    config = tiny_config()
    guessed = estimate(config, None, users=1000, items=100)
    assert guessed.speed_source == "configured"
    assert any("not measured" in sentence for sentence in guessed.assumptions)
    assert all("time not measured yet" in line for line in guessed.summary())
    remember(config.extract, measured())
    known = estimate(config, None, users=1000, items=100)
    assert (known.speed_source, known.tokens_per_second) == ("measured", 100.0)
    assert any("measured with a few prompts: here" in said for said in known.assumptions)
    assert all(" with 1 engine" in line for line in known.summary())
    given = estimate(config, None, users=1000, items=100, tokens_per_second=7)
    assert (given.speed_source, given.tokens_per_second) == ("given", 7)
    assert given.prefill_tokens_per_second == 1000.0


def test_only_an_engine_of_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_speed.can_measure(extract())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert not engine_speed.can_measure(extract(device="gpu"))
    for other in (
        {"kind": "scripted"},
        {"kind": "openai", "base_url": "http://h/v1", "model": "m"},
    ):
        assert not engine_speed.can_measure(ExtractConfig.model_validate({"engine": other}))


def test_a_remembered_speed_is_plain_json(cache: Path) -> None:
    remember(extract(), measured())
    (kept,) = (cache / "speeds").iterdir()
    assert json.loads(kept.read_text()) == measured().model_dump()


def test_a_service_is_sized_from_measured_costs(tiny_config: TinyConfig) -> None:
    config = tiny_config(
        extract={
            "engine": {"kind": "vllm", "model": SMOLLM2["model"], "device": "gpu"},
            "prices": {"gpu_hour": 2.0, "cpu_hour": 0.05},
        }
    )
    found = plan(
        config,
        users=100_000_000,
        items=10_000_000,
        tokens_per_second=2500.0,
        prefill_tokens_per_second=20_000.0,
        requests_per_second=50_000.0,
        refresh_days=3.0,
    )
    needs, mode = found.capacity, found.modes[1]
    assert needs is not None
    assert found.configured == mode.mode
    assert needs.engines == math.ceil(mode.engine_hours.mean / 72) > 1
    assert needs.refresh_days_as_configured == pytest.approx(mode.engine_hours.mean / 48)
    assert needs.gpu_hours == pytest.approx(10 * mode.gpu_hours.mean)
    assert needs.extraction_cost == pytest.approx(20 * mode.gpu_hours.mean)
    assert needs.serving_cores == math.ceil(50_000 / (191 / 2 * 0.7)) == 748
    assert needs.serving_nodes == math.ceil(748 / 8)
    assert needs.serving_cost == pytest.approx(748 * 720 * 0.05)
    assert needs.node_memory == mode.storage.published
    assert needs.clustering_memory == pytest.approx(338 * 2**30)
    assert "HDBSCAN" in needs.breaks_first[0]
    assert any("the driver of extract notes 49" in text for text in needs.breaks_first)
    assert f"{needs.engines} engines" in "".join(needs.breaks_first)
    console = Console(width=120, record=True)
    console.print(render(found))
    assert "service for 50,000 requests/s" in console.export_text()
    small = plan(config, users=1000, items=100, requests_per_second=10.0).capacity
    assert small is not None
    assert (small.serving_cores, small.engines, small.breaks_first) == (1, 1, [])
    assert plan(config, users=1000, items=100).capacity is None


def test_the_unit_costs_are_those_of_the_benchmarks_page() -> None:
    page = (Path(__file__).parents[2] / "docs/results/benchmarks.md").read_text("utf-8")
    for figure, value in MEASURED.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{figure}` |")]
        assert float(row.split("|")[2].replace(",", "")) == value
