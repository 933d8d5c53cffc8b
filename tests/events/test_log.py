"""The event log: durable, shared by processes, readable whatever lies in it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reki_ray.errors import ConfigError, DataError, StoreError
from reki_ray.events.log import Event, EventLog, EventReader
from reki_ray.events.segments import (
    MAX_LINE_BYTES,
    SegmentWriter,
    decode_line,
    encode_line,
    number_of,
    prune,
)

LONG_AGO = 1_000_000
TEXT = st.text(max_size=20)


def event(number: int, user: str = "u0") -> Event:
    return Event(user, f"m{number}", "click", number)


def items(reader: EventReader) -> list[str]:
    return [one.item_id for one in reader.read()]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_events_come_back_as_they_were_appended(tmp_path: Path) -> None:
    events = [
        Event("ü\n1", "m/1", "rating", 5, 4.5, "request", received_at=6),
        Event("u\ud800", "m\r2", "click", 6),
        Event("", "", "", 0, -0.0, ""),
    ]
    EventLog(tmp_path, "a").append(events)
    found = list(EventReader(tmp_path).read())
    assert found == events
    assert [one.received_at for one in found] == [6, None, None]


def test_ids_take_the_room_of_their_utf8() -> None:
    text = "電影" * 1_000
    assert len(encode_line({"item_id": text})) < len(text.encode()) + 100


@pytest.mark.parametrize("name", ["timestamp", "rating", "received_at"])
@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), [1], {"a": 1}, "x"])
def test_a_record_that_no_table_can_hold_is_no_event(
    tmp_path: Path, name: str, value: object
) -> None:
    line = json.dumps({**vars_of(event(1)), name: value}).encode()
    (tmp_path / "a-1.jsonl").write_bytes(b"%08x %b\n" % (zlib.crc32(line), line))
    reader = EventReader(tmp_path)
    assert list(reader.read()) == []
    assert reader.damaged == 1


def test_a_name_is_never_used_again(tmp_path: Path) -> None:
    names = set()
    for number in range(5):
        log = EventLog(tmp_path, "a")
        log.append([event(number)])
        log.close()
        [path] = segments(tmp_path)
        names.add(path.name)
        path.unlink()  # as `prune` does
    assert len(names) == 5


def test_segments_of_older_releases_and_clocks_that_go_back_are_followed_by_higher_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (7, 2 * 10**15):
        (tmp_path / f"a-{number:08d}.jsonl").touch()
        monkeypatch.setattr(time, "time_ns", lambda: 10**18)
        EventLog(tmp_path, "a").append([event(1)])
        assert number_of(max(segments(tmp_path), key=number_of)) == max(10**15, number + 1)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(TEXT, TEXT | st.floats(allow_nan=False, allow_infinity=False)))
def test_a_line_holds_any_record_and_tells_any_changed_byte(record: dict[str, object]) -> None:
    line = encode_line(record)
    assert line.count(b"\n") == 1
    assert decode_line(line[:-1]) == record
    changed = bytearray(line[:-1])
    changed[len(changed) // 2] ^= 1
    assert decode_line(bytes(changed)) is None


def test_a_reader_goes_on_where_it_was(tmp_path: Path) -> None:
    log, reader = EventLog(tmp_path, "a"), EventReader(tmp_path)
    assert items(reader) == []
    log.append([event(1), event(2)])
    assert items(reader) == ["m1", "m2"]
    log.append([event(3)])
    assert items(EventReader(tmp_path, reader.place)) == ["m3"]
    assert items(reader) == ["m3"]
    assert items(reader) == []


def test_a_loop_that_was_left_early_is_gone_on_with(tmp_path: Path) -> None:
    EventLog(tmp_path, "a").append([event(number) for number in range(5)])
    reader = EventReader(tmp_path)
    for found in reader.read():
        if found.item_id == "m2":
            break
    assert items(EventReader(tmp_path, reader.place)) == ["m3", "m4"]
    assert items(reader) == ["m3", "m4"]


def test_a_reader_of_a_folder_that_is_not_there_yet_waits_for_it(tmp_path: Path) -> None:
    reader = EventReader(tmp_path / "later")
    assert items(reader) == []
    EventLog(tmp_path / "later", "a").append([event(1)])
    assert items(reader) == ["m1"]


def test_processes_write_segments_of_their_own(tmp_path: Path) -> None:
    first, again, other = (EventLog(tmp_path, name) for name in ("app#1", "app#1", "../b"))
    for number, log in enumerate((first, again, other)):
        log.append([event(number)])
    assert len(segments(tmp_path)) == 3
    assert sorted(items(EventReader(tmp_path))) == ["m0", "m1", "m2"]


def test_a_full_segment_is_followed_by_a_new_one(tmp_path: Path) -> None:
    log = EventLog(tmp_path, "a", segment_bytes=300)
    for number in range(20):
        log.append([event(number)])
    assert len(segments(tmp_path)) > 3
    assert all(path.stat().st_size < 500 for path in segments(tmp_path))
    assert items(EventReader(tmp_path)) == [f"m{number}" for number in range(20)]


def test_an_old_segment_is_followed_by_a_new_one(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "a", segment_seconds=0)
    writer.append([{"n": 1}])
    writer.append([{"n": 2}])
    assert len(segments(tmp_path)) == 2


def test_concurrent_appends_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path, "a")
    log.append([event(0)])
    syncs: list[int] = []
    others_wait, sync = threading.Event(), os.fsync

    def slow_sync(descriptor: int) -> None:
        syncs.append(descriptor)
        others_wait.wait(10)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow_sync)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(log.append, [event(number)]) for number in range(1, 9)]
        while len(log._writer._queue) < 7:
            assert not any(one.done() for one in waiting)
        others_wait.set()
        for one in waiting:
            one.result()
    assert len(syncs) == 2
    assert sorted(items(EventReader(tmp_path))) == [f"m{number}" for number in range(9)]


@pytest.mark.parametrize("damage", ["flipped", "cut", "joined", "garbage"])
def test_a_damaged_line_is_told_of_and_passed_over(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    EventLog(tmp_path, "a").append([event(number) for number in range(5)])
    [path] = segments(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    line = lines[2]
    lines[2] = {
        "flipped": line[:20] + bytes([line[20] ^ 1]) + line[21:],
        "cut": line[:10] + b"\n",
        "joined": line[:10],
        "garbage": b"\0\xff\r\x85\n",
    }[damage]
    path.write_bytes(b"".join(lines))
    reader = EventReader(tmp_path)
    expected = ["m0", "m1", "m3", "m4"] if damage != "joined" else ["m0", "m1", "m4"]
    assert items(reader) == expected
    assert reader.damaged == 1
    [record] = caplog.records
    assert "damaged" in record.message
    assert "m2" not in record.message


def test_a_torn_last_line_is_told_of_once_and_hides_nothing(tmp_path: Path) -> None:
    EventLog(tmp_path, "a").append([event(1), event(2)])
    [path] = segments(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    reader = EventReader(tmp_path)
    assert items(reader) == ["m1"]
    assert reader.damaged == 0  # its writer may be at it this very moment
    os.utime(path, (LONG_AGO, LONG_AGO))
    EventLog(tmp_path, "a").append([event(3)])
    assert items(reader) == ["m3"]
    assert items(reader) == []
    assert reader.damaged == 1


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    EventLog(tmp_path, "a").append([event(1), event(2)])
    [path] = segments(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    reader = EventReader(tmp_path)
    assert items(reader) == ["m1"]
    path.write_bytes(content)
    assert items(reader) == ["m2"]


def test_megabytes_without_a_line_feed_do_not_stop_a_reader(tmp_path: Path) -> None:
    (tmp_path / "a-00000001.jsonl").write_bytes(
        b"x" * (5 * 2**20) + b"\n" + encode_line(vars_of(event(1)))
    )
    reader = EventReader(tmp_path)
    assert items(reader) == ["m1"]
    assert reader.damaged == 2


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5_000, b"null"])
def test_a_line_with_a_right_checksum_and_no_record_is_passed_over(body: bytes) -> None:
    assert decode_line(b"%08x %b" % (zlib.crc32(body), body)) is None


def test_a_record_that_is_no_event_is_passed_over(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "a").append([{"user_id": "u"}, {**vars_of(event(1)), "new": [1]}])
    reader = EventReader(tmp_path)
    assert items(reader) == ["m1"]
    assert reader.damaged == 1


def vars_of(one: Event) -> dict[str, object]:
    return {name: getattr(one, name) for name in ("user_id", "item_id", "event", "timestamp")}


def test_an_unreadable_segment_does_not_stop_the_others(tmp_path: Path) -> None:
    EventLog(tmp_path, "b").append([event(1)])
    (tmp_path / "a-00000001.jsonl").mkdir()
    assert items(EventReader(tmp_path)) == ["m1"]


@pytest.mark.parametrize("rating", [float("nan"), float("inf")])
def test_a_rating_that_is_not_finite_is_refused_with_all_events(
    tmp_path: Path, rating: float
) -> None:
    log = EventLog(tmp_path, "a")
    with pytest.raises(DataError, match="finite"):
        log.append([event(1), Event("u", "m", "rating", 1, rating)])
    assert items(EventReader(tmp_path)) == []


def test_an_event_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than 2097152"):
        EventLog(tmp_path, "a").append([Event("u" * MAX_LINE_BYTES, "m", "click", 1)])


def test_a_writer_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name"):
        EventLog(tmp_path, "")


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_is_an_error_and_acknowledges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    log = EventLog(tmp_path, "a")
    log.append([event(1)])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StoreError, match="No space left on device; nothing is acknowledged"):
            log.append([event(2)])
    log.append([event(3)])
    assert items(EventReader(tmp_path)) == ["m1", "m3"]
    assert len(segments(tmp_path)) == 2


LIMITED = """
import resource, signal, sys
from reki_ray.errors import StoreError
from reki_ray.events.log import Event, EventLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
log = EventLog(sys.argv[1], "a")
log.append([Event("u", "before", "click", 1)])
try:
    log.append([Event("u", f"refused{n}", "click", n) for n in range(100)])
except StoreError as error:
    sys.stdout.write(error.what)
log.append([Event("u", "after", "click", 2)])
"""


def test_a_write_that_the_system_cuts_off_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "the log cannot be written: File too large; nothing is acknowledged"
    assert items(EventReader(tmp_path)) == ["before", "after"]


def test_pruning_takes_old_segments_that_were_read_to_their_end(tmp_path: Path) -> None:
    log = EventLog(tmp_path, "a", segment_bytes=1)
    for number in range(3):
        log.append([event(number)])
    reader = EventReader(tmp_path)
    assert len(items(reader)) == 3
    paths = segments(tmp_path)
    for path in paths[:2]:
        os.utime(path, (LONG_AGO, LONG_AGO))
    place = {**reader.place, paths[1].name: 1}  # not read to its end
    assert prune(tmp_path, place, older_than=0) == 1
    assert segments(tmp_path) == paths[1:]
    assert items(reader) == []
    assert set(reader.place) == {path.name for path in paths[1:]}
    assert prune(tmp_path, None, older_than=0) == 1  # no reader must miss nothing
    assert segments(tmp_path) == paths[2:]
    assert prune(tmp_path / "nowhere", None, older_than=0) == 0


def test_a_torn_segment_is_pruned(tmp_path: Path) -> None:
    EventLog(tmp_path, "a").append([event(1), event(2)])
    [path] = segments(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    os.utime(path, (LONG_AGO, LONG_AGO))
    reader = EventReader(tmp_path)
    assert prune(tmp_path, reader.place, older_than=0) == 0  # nothing was read yet
    assert items(reader) == ["m1"]
    assert prune(tmp_path, reader.place, older_than=0) == 1


def test_a_follower_waits_for_a_line_whose_pages_are_not_all_there(tmp_path: Path) -> None:
    """As network filesystems show what another machine writes."""
    EventLog(tmp_path, "a").append([event(1), event(2), event(3)])
    [path] = segments(tmp_path)
    whole = path.read_bytes()
    hole = bytearray(whole)
    start = whole.index(b"\n") + 5
    hole[start : start + 20] = bytes(20)
    path.write_bytes(hole)
    EventLog(tmp_path, "b").append([event(4)])
    reader = EventReader(tmp_path, patience=60)
    assert sorted(items(reader)) == ["m1", "m4"]
    assert items(reader) == []
    assert reader.damaged == 0
    path.write_bytes(whole)
    assert items(reader) == ["m2", "m3"]


@pytest.mark.parametrize("patience", [0.0, 60.0])
def test_a_follower_waits_no_longer_for_what_has_long_been_damaged(
    tmp_path: Path, patience: float
) -> None:
    EventLog(tmp_path, "a").append([event(1), event(2)])
    [path] = segments(tmp_path)
    path.write_bytes(b"?" + path.read_bytes()[1:])
    os.utime(path, (LONG_AGO, LONG_AGO))
    reader = EventReader(tmp_path, patience=patience)
    assert items(reader) == ["m2"]
    assert reader.damaged == 1


def test_a_line_that_stays_damaged_holds_up_a_busy_segment_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    EventLog(tmp_path, "a").append([event(1), event(2)])
    [path] = segments(tmp_path)
    path.write_bytes(b"?" + path.read_bytes()[1:])
    reader = EventReader(tmp_path, patience=60)
    assert items(reader) == []
    now[0] += 59
    assert items(reader) == []
    now[0] += 2
    assert items(reader) == ["m2"]


def test_the_oldest_segment_is_read_first(tmp_path: Path) -> None:
    for number, name in enumerate(("c", "a", "b")):
        EventLog(tmp_path, name).append([event(number)])
        [path] = tmp_path.glob(f"{name}-*")
        os.utime(path, (LONG_AGO + number, LONG_AGO + number))
    assert items(EventReader(tmp_path)) == ["m0", "m1", "m2"]
    assert items(EventReader(tmp_path, since=LONG_AGO + 1)) == ["m1", "m2"]


@pytest.mark.parametrize("name", ["aa-1.jsonl", "w2-9.jsonl", "zz-1.jsonl"])
@pytest.mark.parametrize("kind", ["dangling", "folder", "unreadable"])
def test_a_segment_that_cannot_be_read_hides_no_other_and_is_told_of_once(
    tmp_path: Path,
    name: str,
    kind: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(6):
        EventLog(tmp_path, f"w{number}").append([event(number)])
    bad, state = tmp_path / name, Path.stat
    if kind == "dangling":
        bad.symlink_to(tmp_path / "nowhere")
    elif kind == "folder":
        bad.mkdir()
    else:
        bad.write_bytes(b"")

        def stat(self: Path, **kwargs: Any) -> os.stat_result:
            if self == bad:
                raise OSError(116, "Stale file handle")
            return state(self, **kwargs)

        monkeypatch.setattr(Path, "stat", stat)
    reader = EventReader(tmp_path)
    assert len(items(reader)) == 6
    for _ in range(3):
        assert items(reader) == []
    assert caplog.text.count(f"{name} cannot be read") == 1
    place = reader.place
    assert prune(tmp_path, place, older_than=0) == 0
    EventLog(tmp_path, "w9").append([event(9)])
    assert items(reader) == ["m9"]
    assert place.items() <= reader.place.items()


def test_a_segment_or_a_folder_that_is_away_for_a_while_keeps_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "events"
    EventLog(folder, "w0").append([event(0)])
    reader, state = EventReader(folder), Path.stat
    assert items(reader) == ["m0"]
    (segment,) = segments(folder)

    def stat(self: Path, **kwargs: Any) -> os.stat_result:
        if self == segment:
            raise FileNotFoundError(2, "No such file", str(self))
        return state(self, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        assert items(reader) == []
    folder.rename(tmp_path / "away")
    assert items(reader) == []
    (tmp_path / "away").rename(folder)
    assert items(reader) == []  # not again


def test_what_cannot_be_pruned_keeps_no_other_segment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "aa-1.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "bb-1.jsonl").mkdir()
    EventLog(tmp_path, "w0").append([event(0)])
    for path in (tmp_path / "bb-1.jsonl", *segments(tmp_path)):
        if path.exists():
            os.utime(path, (1_000, 1_000))
    assert prune(tmp_path, None, older_than=0) == 1
    assert "aa-1.jsonl cannot be pruned" in caplog.text
