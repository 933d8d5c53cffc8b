"""Live figures of extraction: counts, rates, cost and end; in status and as Prometheus metrics."""

from __future__ import annotations

import io
import json
import socket
import time
import urllib.request
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from reki_ray.cli import status
from reki_ray.cli.views.health import status_view
from reki_ray.config import ExtractConfig, PriceConfig, VllmEngine
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError
from reki_ray.extraction.metrics import exported
from reki_ray.extraction.run_stats import RunStats, Snapshot

UNIT = {
    "answered": 9,
    "dead": 1,
    "prompt_tokens": 1000,
    "cached_tokens": 750,
    "generated_tokens": 200,
    "asked_again": 2,
    "calls": 11,
}


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def make(clock: Callable[[], float] = time.time, **fields: object) -> RunStats:
    tokens = PriceConfig(
        currency="EUR", prompt_tokens=1000.0, cached_tokens=100.0, generated_tokens=5000.0
    )
    return RunStats(ExtractConfig.model_validate({"prices": tokens, **fields}), clock)


def read(figures: RunStats) -> Snapshot:
    return Snapshot(**json.loads(json.dumps(figures.snapshot())))


def test_before_anything_is_done_nothing_is_promised() -> None:
    figures = make(Clock())
    figures.start(total=100, hits=7)
    found = read(figures)
    assert (found.prompts, found.left, found.done, found.cache_hits) == (100, 100, 0, 7)
    assert found.cached_share is None
    assert found.expected_cost is None
    assert found.seconds_left is None
    assert found.cost == 0


def test_counts_share_and_cost_of_tokens_add_up() -> None:
    clock = Clock()
    figures = make(clock)
    figures.start(total=100)
    clock.now += 10
    for _ in range(2):
        figures.add(UNIT)
    found = read(figures)
    assert (found.done, found.left, found.answered, found.dead, found.calls) == (20, 80, 18, 2, 22)
    assert found.cached_share == 0.75
    assert found.cost == pytest.approx(2 * (250 * 1000 + 750 * 100 + 200 * 5000) / 1e6)
    assert found.expected_cost == pytest.approx(5 * found.cost)
    assert found.currency == "EUR"


def test_rates_follow_the_last_minute_and_the_end_the_last_ten() -> None:
    clock = Clock()
    figures = make(clock)
    figures.start(total=1000)
    clock.now += 100  # the model loads
    figures.add(UNIT)
    clock.now += 60.5
    for _ in range(3):
        figures.add(UNIT)
    found = read(figures)
    assert found.tokens_per_second_now == pytest.approx(600 / 60)
    assert found.tokens_per_second == pytest.approx(800 / 160.5)
    assert found.seconds_left == pytest.approx(960 / (40 / 160.5))
    assert found.ends_at == pytest.approx(clock.now + (found.seconds_left or 0))
    clock.now += 3600
    assert read(figures).seconds_left is None
    figures.add(UNIT)
    assert read(figures).seconds_left == pytest.approx(950 / (10 / 600))


def test_gpu_hours_follow_the_replicas() -> None:
    clock = Clock()
    engine = VllmEngine(device="gpu", engine_kwargs={"tensor_parallel_size": 4})
    prices = PriceConfig(gpu_hour=2.0)
    figures = RunStats(ExtractConfig(engine=engine, prices=prices), clock)
    figures.start(total=20)
    clock.now += 1800
    figures.resize(3)
    clock.now += 1800
    figures.add(UNIT)
    found = read(figures)
    assert found.replicas == 3
    assert found.gpu_hours == pytest.approx(4 * (0.5 + 1.5))
    assert found.cost == pytest.approx(16)
    # The last ten minutes did ten prompts, and ten are left.
    assert found.expected_cost == pytest.approx(16 + 2 * 4 * 3 * 600 / 3600)


def test_nothing_left_ends_now() -> None:
    figures = make()
    figures.start(total=10)
    figures.add(UNIT)
    found = read(figures)
    assert found.seconds_left == 0
    assert found.expected_cost == found.cost


# --- status --------------------------------------------------------------------------------------


def test_status_shows_the_figures_of_a_running_extract(workspace: Workspace) -> None:
    clock = Clock()
    figures = make(clock)
    figures.start(total=100, hits=7)
    clock.now += 10
    figures.add(UNIT)
    reporter = Reporter(workspace, quiet=True)
    with reporter.task("extract: asking", 100, "prompts") as task:
        task.snapshot = figures.snapshot
        task.advance(10, generated_tokens=200)
        for _ in range(2):  # the first beat of the thread may have been on its way
            reporter._beat(task, finished=False)
            time.sleep(0.1)
        found = status.read(workspace)
    activity = found.activity
    assert activity is not None
    assert activity.figures == read(figures)
    assert activity.seconds_left == 90
    tree = found.model_dump(mode="json")["activity"]
    assert tree["figures"]["dead"] == 1
    assert {"label", "done", "total", "unit", "rates", "seconds", "seconds_left", "alive"} <= set(
        tree
    )
    console = Console(file=io.StringIO(), width=200)
    with console.capture() as capture:
        console.print(status_view(found))
    shown = capture.get()
    assert "9 answered, 1 dead, 90 left, 7 from the ledger" in shown
    assert "20 generated/s in the last minute" in shown
    assert "75% of them cached" in shown
    assert "1.32 EUR so far, about 13.25 EUR at the end" in shown
    assert f"ends about {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(1_000_100))}" in shown


def test_status_of_other_work_has_no_figures(workspace: Workspace) -> None:
    with Reporter(workspace, quiet=True).task("encode", 10):
        activity = status.read(workspace).activity
    assert activity is not None
    assert activity.figures is None


# --- Prometheus ----------------------------------------------------------------------------------


def scrape(port: int | None) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_reads_the_figures_of_the_moment() -> None:
    clock = Clock()
    figures = make(clock)
    figures.start(total=100, hits=7)
    with exported(figures, 0) as port:
        assert ("reki_extract_seconds_left", "") not in scrape(port)
        clock.now += 10
        figures.add(UNIT, {"loop": 1})
        found = scrape(port)
    assert found == {
        ("reki_extract_prompts_total", "answered"): 9,
        ("reki_extract_prompts_total", "dead"): 1,
        ("reki_extract_tokens_total", "prompt"): 1000,
        ("reki_extract_tokens_total", "cached"): 750,
        ("reki_extract_tokens_total", "generated"): 200,
        ("reki_extract_asked_again_total", ""): 2,
        ("reki_extract_quarantined_total", "loop"): 1,
        ("reki_extract_calls_total", ""): 11,
        ("reki_extract_prompts_left", ""): 90,
        ("reki_extract_cache_hits", ""): 7,
        ("reki_extract_cached_share", ""): 0.75,
        ("reki_extract_tokens_per_second", ""): 20,
        ("reki_extract_replicas", ""): 1,
        ("reki_extract_seconds_left", ""): 90,
        ("reki_extract_cost", "EUR"): pytest.approx(1.325),
        ("reki_extract_expected_cost", "EUR"): pytest.approx(13.25),
    }


def test_the_port_is_free_again_after_an_error() -> None:
    ports: list[int | None] = []

    def fail() -> None:
        with exported(make(), 0) as port:
            ports.append(port)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with exported(make(), ports[0]) as port:
        assert scrape(port)


def test_a_taken_port_fails_before_the_first_call() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"extract.metrics_port = {port}"),
            exported(make(), port),
        ):
            pass


def test_no_port_serves_nothing() -> None:
    with exported(make(), None) as port:
        assert port is None
