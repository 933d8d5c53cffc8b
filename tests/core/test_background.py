"""Loops in the background go on whatever their steps raise, and there are no others."""

from __future__ import annotations

import ast
import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.util import metrics

from reki_ray.core import background
from reki_ray.core.background import BackgroundLoop, BackgroundTask, BackgroundThread, loop_failures
from reki_ray.errors import StoreError

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 20.0
FAILURES = [
    OSError(116, "Stale file handle"),
    StoreError("damaged", where="v1", todo="Publish again."),
    RuntimeError("cannot schedule new futures"),
    KeyError("u17"),
    MemoryError(),
    UnicodeError("surrogates"),
    TimeoutError(),
]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "LONGEST_PAUSE", 0.02)


class Steps:
    """Fails in every way, then counts the steps that succeed."""

    def __init__(self) -> None:
        self.left = list(FAILURES)
        self.succeeded = threading.Event()

    def step(self) -> None:
        if self.left:
            raise self.left.pop()
        self.succeeded.set()

    async def awaited(self) -> None:
        self.step()


def test_a_thread_outlives_all_that_its_steps_raise(caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps()
    thread = BackgroundThread("a-thread", steps.step, 0.001)
    thread.start()
    assert steps.succeeded.wait(WAIT_SECONDS)
    thread.stop(WAIT_SECONDS)
    assert loop_failures()["a-thread"] == len(FAILURES)
    assert caplog.text.count("a-thread failed") == len(FAILURES)


def test_a_task_outlives_all_that_its_steps_raise() -> None:
    async def run() -> None:
        steps = Steps()
        task = BackgroundTask("a-task", steps.awaited, 0.001)
        task.start()
        async with asyncio.timeout(WAIT_SECONDS):
            while not steps.succeeded.is_set():
                await asyncio.sleep(0.01)
        task.stop()
        await asyncio.sleep(0.01)
        assert task._task is not None
        assert task._task.cancelled()

    asyncio.run(run())
    assert loop_failures()["a-task"] == len(FAILURES)


def test_a_failure_that_stays_is_told_once_and_comes_ever_later(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "LONGEST_PAUSE", 30.0)
    loop = BackgroundLoop("patient", 0.5)
    pauses = [loop.pause]
    for _ in range(200):
        with loop._guarded():
            raise OSError("gone")
        pauses.append(loop.pause)
    assert pauses[:5] == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert max(pauses) == pauses[-1] == 30.0
    assert caplog.text.count("patient failed") == 1
    with loop._guarded():
        pass
    assert loop.pause == 0.5


def test_a_loop_of_seldom_steps_does_not_hurry_because_it_fails() -> None:
    loop = BackgroundLoop("seldom", 3600.0)
    with loop._guarded():
        raise OSError("gone")
    assert loop.pause == 3600.0


def test_a_stopped_thread_takes_no_further_step() -> None:
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    thread = BackgroundThread("stopped", step, 0.001)
    thread.start()
    thread.stop(WAIT_SECONDS)
    before = count
    time.sleep(0.05)
    assert count == before


def test_a_step_may_be_the_last_one() -> None:
    def step() -> None:
        thread.stop()

    thread = BackgroundThread("once", step, 0.001)
    thread.start()
    thread._thread.join(WAIT_SECONDS)
    assert not thread._thread.is_alive()
    assert loop_failures()["once"] == 0


@pytest.mark.parametrize("broken", [False, True])
def test_where_ray_collects_metrics_it_is_told_of_failures(
    broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, str]] = []

    def inc(_: object, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        told.append(tags or {})
        if broken:
            raise RuntimeError("Ray is gone")

    monkeypatch.setattr(metrics.Counter, "inc", inc)
    name = f"far-loop-{broken}"
    loop = BackgroundLoop(name, 0.5)
    for running in (False, True):
        monkeypatch.setattr(ray, "is_initialized", lambda running=running: running)
        with loop._guarded():
            raise OSError("gone")
    assert told == [{"loop": name}]
    assert loop_failures()[name] == 2


STARTERS = {
    *("Thread", "Timer", "Process", "ThreadPoolExecutor", "ProcessPoolExecutor", "TaskGroup"),
    *("create_task", "ensure_future", "start_new_thread", "run_coroutine_threadsafe"),
    *("submit", "run_in_executor", "to_thread"),
    *("call_soon", "call_soon_threadsafe", "call_later", "call_at"),
}
NO_LOOPS: dict[str, str] = {
    "reki_ray/core/background.py": "the two loops themselves",
    "deployments/parts/batcher.py": "each question is settled with what its answer meets",
    "deployments/bulkhead.py": "whoever asks waits for the call",
    "deployments/parts/version_cache.py": "whoever asks for a version waits for it, or is told",
    "reki_ray/core/content_store.py": "the results are read, and with them what was raised",
    "reki_ray/store/remote.py": "as above",
    "reki_ray/data/remote_files.py": "as above",
    "reki_ray/events/shipping.py": "as above",
    "reki_ray/cli/launch.py": "as above",
    "reki_ray/stages/extract_runner.py": "as above",
    "reki_ray/stages/train.py": "as above",
    "reki_ray/tuning/search.py": "as above",
    "reki_ray/training/prefetch.py": "gives what it meets to the one who reads its elements",
    "actors/refresher.py": "its step is the last catch; a death in it ends its process",
    "actors/chat.py": "a task group, whose errors reach whoever waits for it",
}
"""Who else starts threads or tasks, and why no failure of theirs is lost."""


def starts(source: str) -> Iterator[str]:
    """Calls that start a thread or a task."""
    nodes = list(ast.walk(ast.parse(source)))
    awaited = {id(node.value) for node in nodes if isinstance(node, ast.Await)}
    for node in nodes:
        # What is awaited where it is started fails whoever awaits it.
        if isinstance(node, ast.Call) and id(node) not in awaited:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = node.func.id if isinstance(node.func, ast.Name) else name
            if name in STARTERS:
                yield f"line {node.lineno}: {name}"


def test_nothing_repeats_itself_without_the_last_catch() -> None:
    found: dict[str, list[str]] = {}
    for folder in ("deployments", "actors", "reki_ray"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            calls = list(starts(path.read_text(encoding="utf-8")))
            if calls:
                found[path.relative_to(ROOT).as_posix()] = calls
    assert found.keys() == NO_LOOPS.keys(), "use reki_ray.core.background: " + str(found)


@pytest.mark.parametrize(
    "source",
    [
        "threading.Thread(target=f)",
        "Thread(target=f)",
        "t = threading.Timer(1, f)",
        "asyncio.create_task(f())",
        "loop.create_task(f())",
        "asyncio.ensure_future(f())",
        "asyncio.run_coroutine_threadsafe(f(), loop)",
        "pool.submit(f)",
        "ThreadPoolExecutor(1)",
        "futures.ProcessPoolExecutor(1)",
        "loop.run_in_executor(None, f)",
        "later = asyncio.to_thread(f)",
        "loop.call_soon(f)",
        "loop.call_later(1, f)",
        "loop.call_at(1, f)",
    ],
)
def test_every_way_to_start_one_is_found(source: str) -> None:
    assert list(starts(source))
    assert not list(starts("async def g():\n    await asyncio.to_thread(f)"))
