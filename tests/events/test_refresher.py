"""The refresher: when it takes events in, what it remembers, what failures do."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reki_ray.config import DataConfig, RefreshConfig
from reki_ray.core import atomic
from reki_ray.core.atomic import replace_file
from reki_ray.errors import DataError, EngineError
from reki_ray.events.batches import EventBatches
from reki_ray.events.event_mapping import EventRules
from reki_ray.events.log import Event, EventLog
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.refresher import Refresher, RefreshState

DATA = DataConfig.model_validate({"source": {"kind": "movielens_100k"}})
CONFIG: dict[str, Any] = {"every_seconds": 100, "min_events": 3, "backoff_seconds": 10}
KNOWN = pa.chunked_array([pa.array([f"m{number}" for number in range(100)])])

Rows = list[tuple[str, str, int, float]]


class Bench:
    """A workspace with a log, a clock that a test moves, and an update that it may break."""

    def __init__(self, folder: Path) -> None:
        self.folders = OnlineFolders(folder / "online")
        self.log = EventLog(self.folders.events, "gateway")
        self.now = 1_000.0
        self.failure: BaseException | None = None
        self.batches: list[Rows] = []
        self.files: list[Path] = []

    def refresher(self, **config: Any) -> Refresher:
        settings = RefreshConfig.model_validate({**CONFIG, **config})
        rules = EventRules(settings.events, DATA)
        batches = EventBatches(rules, DATA, lambda: KNOWN)
        return Refresher(self.folders, settings, batches, self._apply, lambda: self.now)

    def click(self, *numbers: int) -> None:
        self.log.append([Event("u0", f"m{number}", "click", number) for number in numbers])

    def _apply(self, file: Path) -> int:
        self.files.append(file)
        if self.failure is not None:
            raise self.failure
        self.batches.append(rows(file))
        return len(self.batches)


def rows(file: Path) -> Rows:
    table = pq.read_table(file)
    seconds = table["timestamp"].cast(pa.timestamp("s")).cast(pa.int64())
    columns = [table["user_id"], table["item_id"], seconds, table["rating"]]
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


def state(refresher: Refresher) -> RefreshState:
    assert refresher.state is not None
    return refresher.state


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def clicked(*numbers: int) -> Rows:
    return [("u0", f"m{number}", number, 4.0) for number in numbers]


def test_nothing_happens_without_events(bench: Bench) -> None:
    refresher = bench.refresher()
    for _ in range(3):
        assert refresher.step() == "idle"
        bench.now += 1_000
    assert bench.files == []


def test_enough_events_are_taken_in_at_once(bench: Bench) -> None:
    refresher = bench.refresher()
    bench.click(1, 2)
    assert refresher.step() == "idle"
    assert refresher.waiting == 2
    bench.click(3)
    assert refresher.step() == "refreshed"
    assert bench.batches == [clicked(1, 2, 3)]
    assert refresher.step() == "idle"
    found = state(refresher)
    assert (found.events, found.refreshes, found.last_version) == (3, 1, 1)
    assert set(os.listdir(bench.folders.refresh)) == {".lock", "state.json"}


def test_a_single_event_is_taken_in_when_its_time_has_come(bench: Bench) -> None:
    refresher = bench.refresher()
    bench.click(1)
    assert refresher.step() == "idle"
    bench.now += 99
    assert refresher.step() == "idle"
    bench.now += 1
    assert refresher.step() == "refreshed"
    bench.click(2)
    bench.now += 99
    assert refresher.step() == "idle"
    bench.now += 1
    assert refresher.step() == "refreshed"
    assert bench.batches == [clicked(1), clicked(2)]


def test_a_large_backlog_is_taken_in_batches(bench: Bench) -> None:
    refresher = bench.refresher(max_events=4)
    bench.click(*range(10))
    while refresher.step() == "refreshed":
        pass
    bench.now += 100
    assert refresher.step() == "refreshed"
    assert bench.batches == [clicked(*range(4)), clicked(*range(4, 8)), clicked(8, 9)]


def test_a_restart_goes_on_where_it_was(bench: Bench) -> None:
    first = bench.refresher()
    bench.click(1, 2, 3)
    assert first.step() == "refreshed"
    bench.click(4, 5)
    first.step()
    first.close()
    second = bench.refresher()
    bench.click(6)
    assert second.step() == "refreshed"
    assert bench.batches == [clicked(1, 2, 3), clicked(4, 5, 6)]


def test_a_failure_is_counted_and_tried_again_with_growing_waits(bench: Bench) -> None:
    refresher = bench.refresher(max_backoff_seconds=35)
    bench.failure = EngineError("no engine", where="there", todo="start it")
    bench.click(1, 2, 3)
    for number, wait in enumerate((10, 20, 35, 35), 1):
        assert refresher.step() == "failed"
        found = state(refresher)
        assert (found.failures, found.failures_in_row, found.last_error) == (
            number,
            number,
            "no engine",
        )
        bench.now += wait - 1
        bench.click(10 + number)
        assert refresher.step() == "idle"
        bench.now += 1
    bench.failure = None
    assert refresher.step() == "refreshed"
    assert bench.batches == [clicked(1, 2, 3)]
    assert len(set(bench.files)) == 1  # the same file, which an update knows again
    found = state(refresher)
    assert (found.failures, found.failures_in_row, found.last_error) == (4, 0, None)
    assert refresher.step() == "refreshed"
    assert bench.batches[1] == clicked(11, 12, 13, 14)


def test_a_process_that_died_in_an_update_does_it_again_with_the_same_file(bench: Bench) -> None:
    first = bench.refresher()
    bench.click(1, 2, 3)
    bench.failure = KeyboardInterrupt()  # as good as a kill: nothing is caught, nothing kept
    with pytest.raises(KeyboardInterrupt):
        first.step()
    first.close()
    bench.failure = None
    bench.click(4)
    second = bench.refresher()
    assert second.step() == "idle"  # what killed a process is not repeated at once
    bench.now += 10
    assert second.step() == "refreshed"
    assert bench.files[0] == bench.files[1]
    assert bench.batches == [clicked(1, 2, 3)]
    assert state(second).failures == 1


def test_a_process_that_died_after_the_update_repeats_it_with_the_same_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.refresher()
    bench.click(1, 2, 3)
    first.step()
    bench.click(4, 5, 6)

    def die(path: Path, content: bytes) -> None:
        if len(bench.batches) == 2:  # the update is done, and is now to be remembered
            raise KeyboardInterrupt
        replace_file(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "replace_file", die)
        with pytest.raises(KeyboardInterrupt):
            first.step()
    first.close()
    bench.now += 10
    assert bench.refresher().step() == "refreshed"
    assert bench.batches == [clicked(1, 2, 3), clicked(4, 5, 6), clicked(4, 5, 6)]
    assert bench.files[1] == bench.files[2]


def test_a_batch_that_somebody_deleted_is_written_anew(bench: Bench) -> None:
    first = bench.refresher()
    bench.failure = DataError("refused", where="batch", todo="mend it")
    bench.click(1, 2, 3)
    assert first.step() == "failed"
    first.close()
    bench.files[0].unlink()
    bench.failure = None
    bench.now += 10
    assert bench.refresher().step() == "refreshed"
    assert bench.batches == [clicked(1, 2, 3)]


def test_a_batch_that_was_deleted_is_written_anew_without_a_restart(bench: Bench) -> None:
    refresher = bench.refresher()
    bench.failure = DataError("refused", where="batch", todo="mend it")
    bench.click(1, 2, 3)
    assert refresher.step() == "failed"
    bench.click(4)
    assert refresher.step() == "idle"
    bench.files[0].unlink()
    bench.failure = None
    bench.now += 10
    assert refresher.step() == "refreshed"
    assert bench.batches == [clicked(1, 2, 3, 4)]
    bench.click(5, 6, 7)
    assert refresher.step() == "refreshed"
    assert bench.batches[1] == clicked(5, 6, 7)


def test_a_refresher_restarted_from_an_old_state_skips_no_event(bench: Bench) -> None:
    first = bench.refresher()
    bench.click(1, 2, 3)
    assert first.step() == "refreshed"
    first.close()
    bench.log.close()
    for path in bench.folders.events.iterdir():
        path.unlink()  # pruned, while the state still knows its name
    bench.click(4, 5, 6)
    assert bench.refresher().step() == "refreshed"
    assert bench.batches == [clicked(1, 2, 3), clicked(4, 5, 6)]


def test_what_a_killed_refresher_left_half_written_is_removed(bench: Bench) -> None:
    bench.folders.refresh.mkdir(parents=True)
    (bench.folders.refresh / ".tmp-1234").write_bytes(b"half")
    assert bench.refresher().step() == "idle"
    assert os.listdir(bench.folders.refresh) == [".lock"]


def test_two_refreshers_do_not_work_at_once(bench: Bench) -> None:
    first, second = bench.refresher(), bench.refresher()
    bench.click(1, 2, 3)
    assert first.step() == "refreshed"
    assert second.step() == "standby"
    assert second.state is None
    first.close()
    bench.click(4, 5, 6)
    assert second.step() == "refreshed"
    assert bench.batches == [clicked(1, 2, 3), clicked(4, 5, 6)]
    assert first.step() == "standby"


def test_what_an_update_would_refuse_is_left_out(bench: Bench) -> None:
    bench.log.append(
        [
            Event("u0", "m1", "click", 1),
            Event("u0", "m1", "click", 1),
            Event("u0", " m1 ", "rating", 1, 5.0),  # an update trims ids
            Event("u0", "unknown", "click", 2),
            Event("", "m1", "click", 2),
            Event("u0", "m1", "click", DATA.latest + 1),
            Event("u0", "m2", "rating", 3, 2.0),
        ]
    )
    assert bench.refresher().step() == "refreshed"
    assert [row[1:] for row in bench.batches[0]] == [("m1", 1, 5.0), ("m2", 3, 2.0)]


def test_events_of_which_none_is_usable_are_passed_over(bench: Bench) -> None:
    refresher = bench.refresher()
    bench.log.append([Event("u0", "unknown", "click", number) for number in range(3)])
    assert refresher.step() == "idle"
    assert refresher.waiting == 0
    bench.click(1, 2, 3)
    assert refresher.step() == "refreshed"
    assert bench.batches == [clicked(1, 2, 3)]


def test_a_full_disk_is_a_failure_like_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresher = bench.refresher()
    bench.click(1, 2, 3)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "replace_file", full)
        assert refresher.step() == "failed"
        assert "No space left" in str(state(refresher).last_error)
    bench.now += 10
    assert refresher.step() == "refreshed"
    assert bench.batches == [clicked(1, 2, 3)]


def test_a_damaged_state_is_told_of_and_stops_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    path = bench.folders.refresh / "state.json"
    refresher = bench.refresher()
    path.write_text("{")
    assert refresher.step() == "failed"
    assert "the refresher's state is damaged" in caplog.text
    path.unlink()
    bench.click(1, 2, 3)
    assert refresher.step() == "refreshed"


def test_old_events_leave_the_log_when_they_were_taken_in(bench: Bench) -> None:
    bench.click(1, 2, 3)
    [old] = bench.folders.events.iterdir()
    os.utime(old, (1_000, 1_000))
    EventLog(bench.folders.events, "other").append([Event("u0", "m4", "click", 4)])
    assert bench.refresher().step() == "refreshed"
    assert not old.exists()
    assert len(list(bench.folders.events.iterdir())) == 1


def test_it_runs_until_it_is_stopped(bench: Bench) -> None:
    refresher = bench.refresher(poll_seconds=0.001)
    stop = threading.Event()
    thread = threading.Thread(target=refresher.run, args=(stop,))
    thread.start()
    bench.click(1, 2, 3)
    while not bench.batches:
        assert thread.is_alive()
    stop.set()
    thread.join()
    assert bench.batches == [clicked(1, 2, 3)]
    assert bench.refresher().step() == "idle"  # the lock is free


@pytest.mark.parametrize("fails", [True, False])
def test_a_clock_that_was_far_ahead_keeps_nothing_waiting(bench: Bench, fails: bool) -> None:
    refresher = bench.refresher()
    bench.now = 4e9
    bench.click(1, 2, 3)
    if fails:
        bench.failure = EngineError("no engine", where="there", todo="start it")
    assert refresher.step() == ("failed" if fails else "refreshed")
    bench.now, bench.failure = 1_000.0, None
    bench.click(4)
    found = refresher.step()
    bench.now += 100
    assert "refreshed" in {found, refresher.step()}
    assert state(refresher).last_at <= bench.now
    assert state(refresher).next_attempt_at == 0


@pytest.mark.parametrize("content", [b"", b"PAR1", None])
def test_a_pending_batch_that_is_damaged_is_written_again(
    bench: Bench, content: bytes | None
) -> None:
    refresher = bench.refresher()
    bench.failure = DataError("refused", where="batch", todo="mend it")
    bench.click(1, 2, 3)
    assert refresher.step() == "failed"
    whole = bench.files[0].read_bytes()
    bench.files[0].write_bytes(whole[: len(whole) // 2] if content is None else content)
    bench.failure = None
    bench.now += 10
    assert refresher.step() == "refreshed"
    assert bench.batches == [clicked(1, 2, 3)]


@pytest.mark.parametrize(
    "error", [pa.ArrowInvalid("x"), KeyError("u"), MemoryError(), ValueError()]
)
@pytest.mark.parametrize("where", ["items", "apply", "read"])
def test_no_failure_ends_the_refresher(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    refresher = bench.refresher()
    bench.click(1, 2, 3)

    def fail(*_: object) -> Any:
        raise error

    with monkeypatch.context() as patch:
        if where == "items":
            patch.setattr(refresher._batches, "_known_items", fail)
        elif where == "read":
            patch.setattr(refresher._batches, "counts", fail)
        else:
            patch.setattr(refresher, "_apply", fail)
        assert refresher.step() == "failed"
        assert state(refresher).last_error
        if where != "read":
            assert refresher.step() == "idle"  # until its time has come
    bench.now += 10
    assert refresher.step() == "refreshed"
    assert bench.batches == [clicked(1, 2, 3)]
