"""Recent events: bounded, of all processes, merged into profiles without doubles."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from reki_ray.online.event_log import Event, EventLog
from reki_ray.online.recent import RecentEvents, merge
from reki_ray.store.contents import Profile

PROFILE = Profile({"gender": ["F"]}, ("m1", "m2", "m3"), (4.0, None, 2.0), (10, 20, 30))


def event(item: str, timestamp: int, user: str = "u0") -> Event:
    return Event(user, item, "click", timestamp)


def test_events_of_all_processes_come_by_time(tmp_path: Path) -> None:
    recent = RecentEvents(tmp_path)
    first, second = EventLog(tmp_path, "a"), EventLog(tmp_path, "b")
    first.append([event("m1", 10), event("m9", 5, "u1"), event("m3", 30)])
    second.append([event("m2", 20)])
    assert recent.refresh() == 4
    assert [one.item_id for one in recent.of("u0")] == ["m1", "m2", "m3"]
    assert list(recent.of("u1")) == [event("m9", 5, "u1")]
    assert list(recent.of("nobody")) == []
    second.append([event("m4", 15)])
    assert recent.refresh() == 1
    assert [one.item_id for one in recent.of("u0")] == ["m1", "m4", "m2", "m3"]
    assert recent.refresh() == 0


def test_an_event_that_was_sent_twice_is_there_once(tmp_path: Path) -> None:
    recent, log = RecentEvents(tmp_path), EventLog(tmp_path, "a")
    log.append([event("m1", 10), event("m1", 10)])
    recent.refresh()
    log.append([event("m1", 10)])
    recent.refresh()
    assert list(recent.of("u0")) == [event("m1", 10)]


def test_a_user_keeps_the_latest_events(tmp_path: Path) -> None:
    recent = RecentEvents(tmp_path, events_per_user=3)
    EventLog(tmp_path, "a").append([event(f"m{time}", time) for time in (5, 1, 9, 7, 3)])
    recent.refresh()
    assert [one.timestamp for one in recent.of("u0")] == [5, 7, 9]


def test_users_heard_of_last_are_kept(tmp_path: Path) -> None:
    recent, log = RecentEvents(tmp_path, users=2), EventLog(tmp_path, "a")
    for user in ("u0", "u1", "u0", "u2"):
        log.append([event("m1", 1, user), event("m2", 2, user)])
        recent.refresh()
    assert len(recent) == 2
    assert list(recent.of("u1")) == []
    assert len(recent.of("u0")) == 2
    assert len(recent.of("u2")) == 2


def test_only_interactions_are_kept_where_a_rule_says_so(tmp_path: Path) -> None:
    def clicks(one: Event) -> Event | None:
        return one if one.event == "click" else None

    recent = RecentEvents(tmp_path, interaction=clicks)
    EventLog(tmp_path, "a").append([event("m1", 1), Event("u0", "m2", "impression", 2)])
    assert recent.refresh() == 2
    assert [one.item_id for one in recent.of("u0")] == ["m1"]


def test_readers_see_whole_histories_while_events_come(tmp_path: Path) -> None:
    recent, log = RecentEvents(tmp_path), EventLog(tmp_path, "a")
    seen: list[list[int]] = []
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            seen.append([one.timestamp for one in recent.of("u0")])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for time in range(40):
            log.append([event("m1", time), event("m2", time, "u1")])
            recent.refresh()
    finally:
        ended.set()
        reader.join()
    assert all(times == list(range(len(times))) for times in seen)
    assert [one.timestamp for one in recent.of("u0")] == list(range(40))


@pytest.mark.parametrize(
    ("recent", "expected"),
    [
        ([], ["m1", "m2", "m3"]),
        ([event("m4", 40), event("m5", 50)], ["m1", "m2", "m3", "m4", "m5"]),
        ([event("m4", 15)], ["m1", "m4", "m2", "m3"]),
        ([event("m2", 20), event("m3", 30)], ["m1", "m2", "m3"]),
        ([event("m2", 60)], ["m1", "m2", "m3", "m2"]),
        ([event("m4", 40), event("m4", 40)], ["m1", "m2", "m3", "m4"]),
    ],
)
def test_merging_keeps_the_order_of_time_and_no_doubles(
    recent: list[Event], expected: list[str]
) -> None:
    merged = merge(PROFILE, recent, limit=10)
    assert list(merged.item_ids) == expected
    assert merged.attributes == PROFILE.attributes
    assert PROFILE.item_ids == ("m1", "m2", "m3")


def test_merging_keeps_the_latest_with_their_ratings() -> None:
    merged = merge(PROFILE, [Event("u0", "m4", "rating", 40, 5.0)], limit=2)
    assert merged == Profile({"gender": ["F"]}, ("m3", "m4"), (2.0, 5.0), (30, 40))
    assert merge(PROFILE, [event("m4", 40)], limit=0).item_ids == ()


def test_what_has_no_time_keeps_its_place() -> None:
    profile = Profile(None, ("m1", "m2", "m3"), (None,) * 3, (None, 20, None))
    merged = merge(profile, [event("m4", 15), event("m5", 25)], limit=10)
    assert merged.item_ids == ("m1", "m4", "m2", "m3", "m5")
