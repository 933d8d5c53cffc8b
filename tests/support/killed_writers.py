"""Writers that are killed at random moments, and what has to hold afterwards.

    python -m tests.support.killed_writers WRITER FOLDER ROUNDS SEED

Every round forks a process that writes until it is killed, then one that checks what is there.
What a writer acknowledges it tells through a pipe.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa

from reki_ray import schema
from reki_ray.config import DataConfig, RefreshConfig
from reki_ray.core import atomic
from reki_ray.core.workspace import Workspace
from reki_ray.data.inbox import BatchFiles, Inbox
from reki_ray.errors import StoreError
from reki_ray.events.batches import EventBatches
from reki_ray.events.event_mapping import EventRules
from reki_ray.events.log import Event, EventLog
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.refresher import Refresher
from reki_ray.store.manifest import VersionWriter
from reki_ray.store.versions import VersionStore

Tell = Callable[[int], None]
"""Acknowledges what is on the disk now, by its number."""

SECONDS: Final = {"file": 0.02, "refresher": 0.2, "store": 0.3}
"""Longest time from an acknowledgement to the kill."""
LATER: Final = 1_000_000
DATA: Final = DataConfig.model_validate({"source": {"kind": "movielens_100k"}})


# --- a file that is replaced again and again -----------------------------------------------------


def write_file(folder: Path, acknowledged: list[int], tell: Tell) -> None:
    number = max(acknowledged, default=0)
    while True:
        number += 1
        atomic.replace_file(folder / "file", (f"{number:09d}\n" * 20_000).encode())
        tell(number)


def check_file(folder: Path, acknowledged: list[int]) -> None:
    if not acknowledged and not (folder / "file").exists():
        return
    lines = (folder / "file").read_text().splitlines()
    assert len(lines) == 20_000
    assert len(set(lines)) == 1
    assert int(lines[0]) >= max(acknowledged, default=0)


# --- the refresher, from the event log to the inbox ----------------------------------------------


def begin_refresher(folder: Path) -> None:
    """A run of two items and nobody."""
    run = Workspace(folder)
    items = [{schema.ITEM_ID: f"m{number}", schema.TITLE: "Film"} for number in range(2)]
    run.write_table(schema.ITEMS, pa.Table.from_pylist(items, schema=schema.ITEMS_SCHEMA))
    for table in (schema.USERS, schema.INTERACTIONS, schema.CUTS):
        assert table.schema is not None
        run.write_table(table, table.schema.empty_table())


def refresher_of(folder: Path) -> tuple[Refresher, Inbox]:
    inbox = Inbox(Workspace(folder), Workspace(folder / "live"))
    config = RefreshConfig(
        every_seconds=0.001, min_events=1, max_events=7, backoff_seconds=0.001, keep_days=2
    )
    rules = EventRules(config.events, DATA)
    batches = EventBatches(rules, DATA, inbox.known_items, inbox.holds)

    def apply(file: Path) -> int:
        inbox.add(BatchFiles(file), DATA)
        return len(inbox.batches())

    return Refresher(OnlineFolders(folder / "online"), config, batches, apply), inbox


def write_refresher(folder: Path, acknowledged: list[int], tell: Tell) -> None:
    refresher, _ = refresher_of(folder)
    log = EventLog(refresher._folders.events, "gateway")
    number = max(acknowledged, default=0)
    while True:
        for _ in range(3):
            number += 1
            log.append([Event("killed", "m1", "click", LATER + number)])
            tell(number)
        refresher.step()


def check_refresher(folder: Path, acknowledged: list[int]) -> None:
    refresher, inbox = refresher_of(folder)
    deadline = time.monotonic() + 60
    while (outcome := refresher.step()) != "idle" or refresher.waiting:
        assert outcome != "failed", refresher.state
        assert time.monotonic() < deadline
    refresher.close()
    history = inbox.merged().history.to_pylist()
    times = [row["timestamp"] - LATER for row in history if row["user_id"] == "killed"]
    assert len(times) == len(set(times))
    assert set(acknowledged) <= set(times)
    left = [path.name for path in (folder / "online" / "refresh").iterdir()]
    assert set(left) <= {".lock", "state.json"}


# --- published versions and the pointer ----------------------------------------------------------


def fill_of(seed: int) -> VersionWriter:
    from tests.support import store_factory

    return partial(store_factory.fill, seed=seed)


def write_store(folder: Path, acknowledged: list[int], tell: Tell) -> None:
    store = VersionStore(folder)
    seed = len(store.versions())
    while True:
        seed += 1
        tell(store.publish(fill_of(seed)))
        with suppress(StoreError):  # a single version has none before it
            store.rollback()
            store.promote(store.versions()[-1])


def check_store(folder: Path, acknowledged: list[int]) -> None:
    store = VersionStore(folder)
    if not acknowledged and not store.versions():
        return
    assert set(acknowledged) <= set(store.versions())
    for number in store.versions()[-3:]:
        store.open(number).load_model()
    if (folder / "CURRENT").exists():
        assert store.current() in store.versions()
    promoted = {one.version for one in store.history()}
    assert promoted <= set(store.versions())
    if len(store.versions()) > 1:
        present = store.publish(fill_of(0))
        assert store.rollback() != present
        assert not list(folder.glob(".scratch-*"))


WRITE: Final = {"file": write_file, "refresher": write_refresher, "store": write_store}
CHECK: Final = {"file": check_file, "refresher": check_refresher, "store": check_store}


def main(name: str, folder: str, rounds: str, seed: str) -> None:
    generator, place = random.Random(int(seed)), Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    acknowledged: list[int] = []
    if name == "refresher":
        run_to_its_end(partial(begin_refresher, place))
    if name == "store":
        fill_of(0)  # imports what every fork needs
    for _ in range(int(rounds)):
        write = partial(WRITE[name], place, list(acknowledged))
        seconds = generator.uniform(0.0, SECONDS[name])
        acknowledged += killed(write, generator.randrange(3), seconds)
        run_to_its_end(partial(CHECK[name], place, acknowledged))
    sys.stdout.write(f"{len(acknowledged)} acknowledged\n")


def killed(write: Callable[[Tell], None], after: int, seconds: float) -> list[int]:
    """What a writer had acknowledged when it was killed, a while after some of it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:

        def tell(number: int) -> None:
            os.write(writing, b"%d\n" % number)

        write(tell)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        lines = [pipe.readline() for _ in range(after)]
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the writer ended by itself"
        return [int(line) for line in (*lines, *pipe)]


def run_to_its_end(work: Callable[[], None]) -> None:
    """In a process of its own: libraries with threads are not forked after they were used."""
    pid = os.fork()
    if not pid:
        work()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
