"""Recent events: bounded, of all processes, merged into profiles without doubles."""

from __future__ import annotations

import gc
import os
import sys
import threading
import tracemalloc
from itertools import permutations
from pathlib import Path

import pytest

from reki_ray.config import DataConfig, RefreshConfig
from reki_ray.events.event_mapping import EventRules, Interaction, as_it_is
from reki_ray.events.log import Event, EventLog
from reki_ray.events.recent import RecentEvents, merge
from reki_ray.store.tables import Profile

PROFILE = Profile({"gender": ["F"]}, ("m1", "m2", "m3"), (4.0, None, 2.0), (10, 20, 30))
RULES = EventRules(
    RefreshConfig().events, DataConfig.model_validate({"source": {"kind": "movielens_100k"}})
)


def event(item: str, timestamp: int, user: str = "u0") -> Event:
    return Event(user, item, "click", timestamp)


def interaction(item: str, time: int, rating: float | None = None) -> Interaction:
    return as_it_is(Event("u0", item, "click", time, rating))


def items(recent: RecentEvents, user: str = "u0") -> list[str]:
    return [one.item_id for one in recent.of(user)]


def test_events_of_all_processes_come_by_time(tmp_path: Path) -> None:
    recent = RecentEvents(tmp_path)
    first, second = EventLog(tmp_path, "a"), EventLog(tmp_path, "b")
    first.append([event("m1", 10), event("m9", 5, "u1"), event("m3", 30)])
    second.append([event("m2", 20)])
    assert recent.refresh() == 4
    assert items(recent) == ["m1", "m2", "m3"]
    assert recent.of("u1") == [interaction("m9", 5)]
    assert recent.of("nobody") == []
    assert recent.met("nobody") == ()
    second.append([event("m4", 15)])
    assert recent.refresh() == 1
    assert items(recent) == ["m1", "m4", "m2", "m3"]
    assert recent.refresh() == 0


def test_an_event_that_was_sent_twice_is_there_once(tmp_path: Path) -> None:
    recent, log = RecentEvents(tmp_path), EventLog(tmp_path, "a")
    log.append([event("m1", 10), event("m1", 10)])
    recent.refresh()
    log.append([event("m1", 10)])
    recent.refresh()
    assert recent.of("u0") == [interaction("m1", 10)]


@pytest.mark.parametrize("ahead", [0, 60, 10**6])
def test_a_retry_of_a_sender_whose_clock_is_ahead_counts_once(tmp_path: Path, ahead: int) -> None:
    recent, sent = RecentEvents(tmp_path), 1_000 + ahead
    for number, received in enumerate((1_000, 1_001, 1_007)):
        log = EventLog(tmp_path, f"gateway{number}")
        log.append([Event("u0", "m1", "click", sent, received_at=received)])
        recent.refresh()
    [one] = recent.of("u0")
    assert one.time == (1_000 if ahead > 3_600 else sent)


def test_a_sender_far_ahead_does_not_stay_the_latest(tmp_path: Path) -> None:
    recent = RecentEvents(tmp_path)
    far = Event("u0", "far", "click", 10**9, received_at=1_000)
    EventLog(tmp_path, "a").append([far, Event("u0", "next", "click", 1_005, received_at=1_006)])
    recent.refresh()
    assert items(recent) == ["far", "next"]


def test_of_several_in_one_second_the_same_one_counts_in_any_order(tmp_path: Path) -> None:
    several = [
        Event("u0", "m1", "click", 10, received_at=11),
        Event("u0", "m1", "rating", 10, 2.0, received_at=12),
        Event("u0", " m1", "rating", 10, 1.0, received_at=10),
        Event("u0", "m1", "rating", 10, None, received_at=10),
    ]
    for number, order in enumerate(permutations(several)):
        folder = tmp_path / str(number)
        recent, log = RecentEvents(folder, interaction=RULES.interaction), EventLog(folder, "a")
        for one in order:
            log.append([one])
            recent.refresh()
        assert [(one.item_id, one.rating) for one in recent.of("u0")] == [("m1", 2.0)]


def test_a_user_keeps_the_latest_events(tmp_path: Path) -> None:
    recent = RecentEvents(tmp_path, events_per_user=3)
    EventLog(tmp_path, "a").append([event(f"m{time}", time) for time in (5, 1, 9, 7, 3)])
    recent.refresh()
    assert [one.time for one in recent.of("u0")] == [5, 7, 9]


def test_what_a_user_met_is_known_for_longer_than_when(tmp_path: Path) -> None:
    recent, log = RecentEvents(tmp_path, items_per_user=80), EventLog(tmp_path, "a")
    for time in range(60):
        log.append([event(f"m{time}", time)])
        if not time % 7:
            recent.refresh()
    recent.refresh()
    assert len(recent.of("u0")) == 50
    assert recent.met("u0") == tuple(f"m{number}" for number in range(60))
    log.append([event("m3", 60), *(event(f"m{time}", time) for time in range(61, 100))])
    recent.refresh()
    met = recent.met("u0")
    assert len(met) == 80
    assert set(met) >= {"m3", *(f"m{number}" for number in range(61, 100))}


def test_users_heard_of_last_are_kept(tmp_path: Path) -> None:
    recent, log = RecentEvents(tmp_path, most_bytes=2_000), EventLog(tmp_path, "a")
    for time, user in enumerate(("u0", "u1", "u0", "u2")):
        log.append([event("m1", time, user), event("m2", time, user)])
        recent.refresh()
    assert recent.of("u1") == []
    assert len(recent.of("u2")) == 2
    assert items(recent) == ["m1", "m2", "m1", "m2"]


def test_who_was_heard_of_last_is_told_by_time_and_not_by_the_order_of_segments(
    tmp_path: Path,
) -> None:
    fresh = [event("m1", 1_000, f"fresh{number}") for number in range(5)]
    EventLog(tmp_path, "a").append(fresh)
    EventLog(tmp_path, "b").append([event("m1", 10, f"old{number}") for number in range(1_000)])
    recent = RecentEvents(tmp_path, most_bytes=20_000)
    recent.refresh()
    assert all(recent.of(one.user_id) for one in fresh)


@pytest.mark.parametrize("length", [10, 500])
def test_memory_is_bounded_whatever_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Every event has a user and an item of its own: nothing is shared, nobody stays."""
    most, shared = 2**20, 2**18
    monkeypatch.setattr("reki_ray.events.recent._SHARED_BYTES", shared)
    recent, log = RecentEvents(tmp_path, most_bytes=most), EventLog(tmp_path, "a")
    log.append([event(f"{n:0{length}d}", n, f"user{n}") for n in range(5_000)])
    tracemalloc.start()
    try:
        recent.refresh()
        assert recent.size <= most
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.3 * most < used < most + 2 * shared


def test_texts_are_not_interned_for_good(tmp_path: Path) -> None:
    recent, item = RecentEvents(tmp_path), "an item that no other test names"
    EventLog(tmp_path, "a").append([event(item, 1), event(item, 2, "u1")])
    recent.refresh()
    [first], [second] = recent.of("u0"), recent.of("u1")
    assert first.item_id is second.item_id
    assert sys.intern(first.item_id[:1] + first.item_id[1:]) is not first.item_id


def test_segments_from_before_a_time_are_not_read(tmp_path: Path) -> None:
    EventLog(tmp_path, "old").append([event("m1", 1)])
    [old] = tmp_path.iterdir()
    os.utime(old, (1_000, 1_000))
    EventLog(tmp_path, "new").append([event("m2", 2)])
    recent = RecentEvents(tmp_path, since=2_000)
    assert recent.refresh() == 1
    assert items(recent) == ["m2"]


def test_only_interactions_are_kept_where_a_rule_says_so(tmp_path: Path) -> None:
    recent = RecentEvents(tmp_path, interaction=RULES.interaction)
    EventLog(tmp_path, "a").append([event("m1", 1), Event("u0", "m2", "impression", 2)])
    assert recent.refresh() == 2
    assert [(one.item_id, one.rating) for one in recent.of("u0")] == [("m1", 4.0)]


def test_readers_see_whole_histories_while_events_come(tmp_path: Path) -> None:
    recent, log = RecentEvents(tmp_path), EventLog(tmp_path, "a")
    seen: list[list[int]] = []
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            seen.append([one.time for one in recent.of("u0")])

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
    assert [one.time for one in recent.of("u0")] == list(range(40))


@pytest.mark.parametrize(
    ("recent", "expected"),
    [
        ([], ["m1", "m2", "m3"]),
        ([interaction("m4", 40), interaction("m5", 50)], ["m1", "m2", "m3", "m4", "m5"]),
        ([interaction("m4", 15)], ["m1", "m4", "m2", "m3"]),
        ([interaction("m2", 20), interaction("m3", 30)], ["m1", "m2", "m3"]),
        ([interaction("m2", 60)], ["m1", "m2", "m3", "m2"]),
        ([interaction("m4", 40), interaction("m4", 40)], ["m1", "m2", "m3", "m4"]),
    ],
)
def test_merging_keeps_the_order_of_time_and_no_doubles(
    recent: list[Interaction], expected: list[str]
) -> None:
    merged = merge(PROFILE, recent, limit=10)
    assert list(merged.item_ids) == expected
    assert merged.attributes == PROFILE.attributes
    assert PROFILE.item_ids == ("m1", "m2", "m3")


def test_merging_keeps_the_latest_with_their_ratings() -> None:
    merged = merge(PROFILE, [interaction("m4", 40, 5.0)], limit=2)
    assert merged == Profile({"gender": ["F"]}, ("m3", "m4"), (2.0, 5.0), (30, 40))
    assert merge(PROFILE, [interaction("m4", 40)], limit=0).item_ids == ()


def test_what_has_no_time_keeps_its_place() -> None:
    profile = Profile(None, ("m1", "m2", "m3"), (None,) * 3, (None, 20, None))
    merged = merge(profile, [interaction("m4", 15), interaction("m5", 25)], limit=10)
    assert merged.item_ids == ("m1", "m4", "m2", "m3", "m5")
