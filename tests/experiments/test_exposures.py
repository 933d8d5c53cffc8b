"""Exposures: logged in the background, without user ids, dropped rather than waited for."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reki_ray.errors import StoreError
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.segments import MAX_LINE_BYTES, SegmentWriter
from reki_ray.experiments.exposures import Exposure, ExposureLog, ExposureReader
from reki_ray.experiments.user_hash import UserHasher, open_hasher

HASHER = UserHasher(b"k" * 32)


def show(log: ExposureLog, request: str, user: str = "somebody") -> None:
    log.append(
        request_id=request,
        experiment="test",
        variant="reki",
        user_id=user,
        item_ids=["m1", "m2"],
        timestamp=7,
    )


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writes wait until the event is set."""
    free, append = threading.Event(), SegmentWriter.append_lines

    def slow(self: SegmentWriter, lines: list[bytes]) -> None:
        free.wait(10)
        append(self, lines)

    monkeypatch.setattr(SegmentWriter, "append_lines", slow)
    yield free
    free.set()


def test_exposures_are_on_the_disk_after_close(tmp_path: Path) -> None:
    log = ExposureLog(tmp_path, "a", HASHER, seconds=60)
    for number in range(2_500):
        show(log, f"r{number}")
    log.close()
    found = list(ExposureReader(tmp_path).read())
    assert found[0] == Exposure("r0", "test", "reki", HASHER("somebody"), ("m1", "m2"), 7)
    assert [one.request_id for one in found] == [f"r{number}" for number in range(2_500)]
    assert (log.written, log.dropped) == (2_500, 0)


def test_exposures_are_written_without_close(tmp_path: Path) -> None:
    log = ExposureLog(tmp_path, "a", HASHER, seconds=0.01)
    show(log, "r0")
    reader, found = ExposureReader(tmp_path), list[Exposure]()
    while not found:  # the test's own time limit ends it
        found = list(reader.read())
    assert found[0].request_id == "r0"
    log.close()


def test_the_log_holds_no_user_id(tmp_path: Path) -> None:
    log = ExposureLog(tmp_path, "a", HASHER)
    show(log, "r0")
    log.close()
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"somebody" not in content
    assert HASHER("somebody").encode() in content


def test_what_does_not_fit_into_the_queue_is_dropped_and_counted(
    tmp_path: Path, blocked: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    log = ExposureLog(tmp_path, "a", HASHER, capacity=5, seconds=60)
    for number in range(12):
        show(log, f"r{number}")
    assert log.dropped == 7
    assert len(caplog.records) == 1
    blocked.set()
    log.close()
    assert [one.request_id for one in ExposureReader(tmp_path).read()] == [
        f"r{number}" for number in range(5)
    ]


def test_an_answer_does_not_wait_for_the_disk(tmp_path: Path, blocked: threading.Event) -> None:
    log = ExposureLog(tmp_path, "a", HASHER, seconds=0.001)
    for number in range(100):
        show(log, f"r{number}")
    assert log.written == 0  # all came back, and nothing could be written yet
    blocked.set()
    log.close()
    assert log.written == 100


@pytest.mark.parametrize(
    "error",
    [StoreError("no space", where="here", todo="make room"), RuntimeError("a defect")],
    ids=["full disk", "defect"],
)
def test_what_cannot_be_written_is_dropped_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object) -> None:
        raise error

    log = ExposureLog(tmp_path, "a", HASHER, seconds=0.001)
    with monkeypatch.context() as patch:
        patch.setattr(SegmentWriter, "append_lines", full)
        show(log, "lost")
        while not log.dropped:
            assert log.written == 0
    show(log, "kept")
    log.close()
    assert [one.request_id for one in ExposureReader(tmp_path).read()] == ["kept"]
    assert (log.written, log.dropped) == (1, 1)


def test_what_comes_after_close_is_dropped(tmp_path: Path) -> None:
    log = ExposureLog(tmp_path, "a", HASHER)
    log.close()
    show(log, "late")
    assert log.dropped == 1
    assert list(ExposureReader(tmp_path).read()) == []


def test_a_line_that_is_no_exposure_is_passed_over(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "a").append([{"request_id": "r"}])
    reader = ExposureReader(tmp_path)
    assert list(reader.read()) == []
    assert reader.damaged == 1


def test_the_first_process_draws_the_key_of_all(tmp_path: Path) -> None:
    path = OnlineFolders.beside(tmp_path / "publish").key
    assert path == tmp_path / "online" / "key"
    with ThreadPoolExecutor(8) as pool:
        hashers = list(pool.map(open_hasher, [path] * 8))
    assert len({hasher("u0") for hasher in hashers}) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["key"]


def test_hashes_differ_between_users_and_keys(tmp_path: Path) -> None:
    hasher = open_hasher(tmp_path / "one")
    other = open_hasher(tmp_path / "two")
    assert len({hasher("u0"), hasher("u1"), hasher(""), other("u0")}) == 4
    assert len(hasher("u\ud800")) == 32


def test_a_damaged_key_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("abc")
    with pytest.raises(StoreError, match="does not contain a key"):
        open_hasher(tmp_path / "key")


def test_one_exposure_that_cannot_be_kept_costs_no_other(tmp_path: Path) -> None:
    log = ExposureLog(tmp_path, "a", HASHER, seconds=60)
    for number in range(51):
        ids = ["電影" * MAX_LINE_BYTES] if number == 20 else ["m1"]
        log.append(
            request_id=f"r{number}", experiment="test", variant="reki", user_id="u", item_ids=ids
        )
    log.close()
    kept = [one.request_id for one in ExposureReader(tmp_path).read()]
    assert kept == [f"r{number}" for number in range(51) if number != 20]
    assert (log.written, log.dropped) == (50, 1)


def test_what_a_body_of_a_mebibyte_names_is_kept(tmp_path: Path) -> None:
    ids = tuple("電" * 512 for _ in range(2**20 // (512 * 3)))
    log = ExposureLog(tmp_path, "a", HASHER)
    log.append(request_id="r", experiment="e", variant="v", user_id="u", item_ids=ids)
    log.close()
    [one] = ExposureReader(tmp_path).read()
    assert one.item_ids == ids
