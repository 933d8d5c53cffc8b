"""Gateways on nodes without a shared folder: what one acknowledges, readers of all nodes find."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from reki_ray.config import DataConfig, RefreshConfig
from reki_ray.core.storage import Storage
from reki_ray.errors import EngineError
from reki_ray.events import shipping
from reki_ray.events.batches import EventBatches
from reki_ray.events.event_mapping import EventRules
from reki_ray.events.log import Event, EventLog, EventReader
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.recent import RecentEvents
from reki_ray.events.refresher import Refresher
from reki_ray.events.shipping import Shipping, prune_log, share_key, writer_name
from reki_ray.experiments.user_hash import open_hasher
from tests.support.s3_server import BUCKET, Fault, FaultProxy

DAYS = 10 * 86_400


Nodes = Callable[[str], OnlineFolders]


@pytest.fixture
def node(proxy: FaultProxy, tmp_path: Path) -> Nodes:
    """Folders of a node by its name, over one workspace."""
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}/online"
    return lambda name: OnlineFolders(tmp_path / name, Storage(url))


@pytest.fixture
def ship() -> Iterator[Callable[..., Shipping]]:
    """Makes shippings, which are stopped at the end."""
    with ExitStack() as stack:

        def make(folders: OnlineFolders, seconds: float = 0.05) -> Shipping:
            made = Shipping(folders, seconds)
            stack.callback(made.stop, 10.0)
            return made

        yield make


Ship = Callable[..., Shipping]


def log_of(folders: OnlineFolders, process: str = "gateway", **limits: Any) -> EventLog:
    return EventLog(folders.events, writer_name(folders, process), **limits)


def clicks(*items: str) -> list[Event]:
    return [Event("u0", item, "click", 1) for item in items]


def items(folders: OnlineFolders) -> list[str]:
    return [event.item_id for event in EventReader(folders.events).read()]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_event_of_one_node_is_seen_at_another(node: Nodes, ship: Ship) -> None:
    a, b = node("a"), node("b")
    for folders in (a, b):
        ship(folders).start()
    recent = RecentEvents(b.events)
    with closing(log_of(a)) as log:
        for number in range(3):
            log.append(clicks(f"m{number}"))

            def seen(wanted: int = number + 1) -> bool:
                recent.refresh()
                return len(recent.of("u0")) == wanted

            wait_for(seen)
    with closing(log_of(b)) as log:
        log.append(clicks("back"))
    wait_for(lambda: "back" in items(a))
    # The same segments with the same content: a reader's place holds on every node.
    assert {p.name: p.read_bytes() for p in a.events.iterdir()} == {
        p.name: p.read_bytes() for p in b.events.iterdir()
    }


def test_an_idle_node_lists_and_writes_nothing(node: Nodes, ship: Ship, proxy: FaultProxy) -> None:
    shipped = ship(node("a"))
    shipped.step()
    proxy.requests.clear()
    for _ in range(3):
        shipped.step()
    assert [method for method, _, _ in proxy.requests] == ["GET"] * 3  # the notes of other nodes


def test_one_process_of_a_node_ships_and_the_next_goes_on(node: Nodes, ship: Ship) -> None:
    a, b = node("a"), node("b")
    first, second, other = ship(a), ship(a), ship(b)
    log_of(a, "one").append(clicks("m1"))
    assert first.step()
    assert not second.step()
    first.stop()
    log_of(a, "two").append(clicks("m2"))
    assert second.step()
    other.step()
    assert sorted(items(b)) == ["m1", "m2"]


def test_nothing_acknowledged_is_lost_with_a_process_and_nothing_comes_twice(
    node: Nodes, ship: Ship
) -> None:
    a, b = node("a"), node("b")
    acknowledged: list[str] = []
    for number in range(2):
        script = (
            "import sys; from tests.support import append_events as a;"
            "from reki_ray.events.log import EventLog;"
            f"name = {writer_name(a, 'gateway')!r};"
            "a.EventLog = lambda folder, _, **more: EventLog(folder, name, **more);"
            "a.main(*sys.argv[1:])"
        )
        command = [sys.executable, "-c", script, str(a.events), f"round{number}"]
        shipped = ship(a)
        with subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            first = child.stdout.readline()
            shipped.step()
            child.send_signal(signal.SIGKILL)
            lines = [first, *child.stdout.readlines()]
        shipped.stop()  # another process ships the rest
        acknowledged += [line.strip() for line in lines if line.endswith("\n")]
    ship(a).step()
    ship(b).step()
    found = items(b)
    assert set(acknowledged) <= set(found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize("fault", ["slow", "503", "torn", "cut"])
def test_a_passing_fault_loses_and_repeats_nothing(
    node: Nodes, ship: Ship, proxy: FaultProxy, fault: Fault
) -> None:
    a, b = node("a"), node("b")
    here, there = ship(a), ship(b)
    log = log_of(a)
    for number in range(3):
        log.append(clicks(f"m{number}"))
        proxy.fail(2, fault, "PUT")
        here.step()
        proxy.fail(2, "503" if fault == "torn" else fault, "GET")
        there.step()
    assert items(b) == ["m0", "m1", "m2"]


@pytest.mark.parametrize("fault", ["503", "torn", "cut"])
def test_what_a_storage_refuses_is_shipped_when_it_is_back(
    node: Nodes, ship: Ship, proxy: FaultProxy, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    a, b = node("a"), node("b")
    here = ship(a)
    log = log_of(a)
    log.append(clicks("m0"))
    here.step()
    proxy.fail(10_000, fault, "PUT")
    log.append(clicks("m1"))
    with pytest.raises(EngineError):
        here.step()
    log.append(clicks("m2"))  # behind what `cut` has stored all the same
    proxy.fail(0, "none")
    here.step()
    ship(b).step()
    assert items(b) == ["m0", "m1", "m2"]
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_process_that_died_before_it_noted_a_chunk_ships_it_once(
    node: Nodes, ship: Ship, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = node("a"), node("b")
    dying = ship(a)
    log = log_of(a)
    log.append(clicks("m0"))
    with monkeypatch.context() as patch:
        patch.setattr(Shipping, "_note", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dying.step()
    dying.stop()
    log.append(clicks("m1"))
    ship(a).step()
    ship(b).step()
    assert items(b) == ["m0", "m1"]


def test_a_copy_that_a_death_cut_off_becomes_whole(node: Nodes, ship: Ship) -> None:
    a, b = node("a"), node("b")
    here, there = ship(a), ship(b)
    log = log_of(a)
    for number in range(3):
        log.append(clicks(f"m{number}"))
        here.step()
        there.step()
    there.stop()
    (copy,) = b.events.glob("*.jsonl")
    whole = copy.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        os.truncate(copy, size)
        again = ship(b)
        again.step()
        again.stop()
        assert copy.read_bytes() == whole


def test_chunks_are_bounded_and_hold_whole_lines(
    node: Nodes, ship: Ship, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "CHUNK_BYTES", 1_000)
    a, b = node("a"), node("b")
    names = [f"m{number}" for number in range(100)]
    log_of(a).append(clicks(*names))
    torn = next(a.events.glob("*.jsonl"))
    with torn.open("ab") as file:
        file.write(b"half of a li")
    ship(a).step()
    ship(b).step()
    assert items(b) == names
    storage = a.storage
    assert storage is not None
    sizes = [
        info["size"]
        for info in storage.filesystem.find(storage.path("events"), detail=True).values()
    ]
    assert len(sizes) > 5
    assert max(sizes) <= 1_000


def test_pruned_segments_go_everywhere(
    node: Nodes, ship: Ship, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = node("a"), node("b")
    here, there = ship(a), ship(b)
    log_of(a).append(clicks("old"))
    here.step()
    there.step()
    reader = EventReader(b.events)
    assert len(list(reader.read())) == 1
    later = time.time() + DAYS
    monkeypatch.setattr(time, "time", lambda: later)
    monkeypatch.setattr(shipping, "_TIDY_SECONDS", 0.0)
    assert prune_log(b, "events", {}, 3 * 86_400) == 0  # not read
    assert prune_log(b, "events", reader.place, 3 * 86_400) == 1
    for step in (here.step, there.step, here.step):
        step()
    assert a.storage is not None
    assert not a.storage.exists("events")
    assert [list(folders.events.iterdir()) for folders in (a, b)] == [[], []]
    ship(node("c")).step()
    assert items(node("c")) == []


def test_all_nodes_share_the_key_of_the_hashes(node: Nodes) -> None:
    hashes = set()
    for name in "abc":
        share_key(node(name))
        hashes.add(open_hasher(node(name).key)("u0"))
        assert node(name).key.stat().st_mode & 0o777 == 0o600
    assert len(hashes) == 1


def test_a_refresher_goes_on_where_one_of_another_node_ended(node: Nodes, ship: Ship) -> None:
    a, b = node("a"), node("b")
    batches: list[int] = []

    def refresher(folders: OnlineFolders, fail: bool = False) -> Refresher:
        def apply(file: Path) -> int:
            if fail:
                raise EngineError("no engine", where="test", todo="Wait.")
            batches.append(len(pq.read_table(file)))
            return len(batches)

        settings = RefreshConfig(min_events=1, backoff_seconds=0.001)
        data = DataConfig.model_validate({"source": {"kind": "movielens_100k"}})
        known = pa.chunked_array([[f"m{number}" for number in range(9)]])
        rules = EventRules(settings.events, data)
        return Refresher(folders, settings, EventBatches(rules, data, lambda: known), apply)

    log = log_of(a)
    here = ship(a)
    log.append([Event("u0", "m1", "click", 1)])
    first, second = refresher(a), refresher(b)
    assert first.step() == "refreshed"
    here.step()
    assert second.step() == "standby"
    first.close()
    log.append([Event("u0", "m2", "click", 2)])
    here.step()
    failing = refresher(a, fail=True)
    assert failing.step() == "failed"  # its batch stays on its node
    failing.close()
    time.sleep(0.01)
    assert second.step() == "refreshed"
    assert second.state is not None
    assert (batches, second.state.events) == ([1, 1], 2)
    second.close()
