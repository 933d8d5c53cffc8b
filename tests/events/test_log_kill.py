"""A process that is killed while it logs events loses none that it acknowledged."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reki_ray.events.event_mapping import as_it_is
from reki_ray.events.log import Event, EventLog, EventReader
from reki_ray.events.recent import RecentEvents

pytestmark = pytest.mark.chaos

ROUNDS = 6


def acknowledged_before_a_kill(folder: Path, name: str, seconds: float) -> list[str]:
    """Ids that a child had acknowledged when it was killed, some time after its first."""
    command = [sys.executable, "-m", "tests.support.append_events", str(folder), name]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        lines = [first, *child.stdout.readlines()]
    assert child.returncode == -signal.SIGKILL
    return [line.strip() for line in lines if line.endswith("\n")]


def test_every_acknowledged_event_survives_kills_at_random_moments(tmp_path: Path) -> None:
    generator = random.Random(3)
    acknowledged: list[str] = []
    for number in range(ROUNDS):
        seconds = generator.uniform(0.0, 0.2)
        acknowledged += acknowledged_before_a_kill(tmp_path, f"round{number}", seconds)
    # A process of the same name goes on after all of them, torn lines or not.
    EventLog(tmp_path, "replica").append([Event("u", "after", "click", 0)])
    logged = [event.item_id for event in EventReader(tmp_path).read()]
    assert len(acknowledged) >= ROUNDS * 3
    assert set(acknowledged) <= set(logged)
    assert logged.count("after") == 1
    assert len(logged) == len(set(logged))
    rounds = {item.partition("-")[0] for item in acknowledged}
    assert rounds == {f"round{number}" for number in range(ROUNDS)}


def test_another_process_sees_an_event_as_soon_as_it_was_acknowledged(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.append_events", str(tmp_path), "other"]
    recent = RecentEvents(tmp_path, events_per_user=100_000)
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for _ in range(10):
            acknowledged = {child.stdout.readline().strip() for _ in range(9)}
            recent.refresh()  # one look is enough: the answer came after the event was kept
            assert acknowledged <= {event.item_id for event in recent.of("u")}
        child.send_signal(signal.SIGKILL)
        child.stdout.read()
    recent.refresh()
    times = [event.time for event in recent.of("u")]
    assert times == sorted(times)
    assert set(recent.of("u")) == {as_it_is(event) for event in EventReader(tmp_path).read()}
