"""The graph with events, experiments and operators, in this process behind its real interface."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from deployments.extensions import open_extensions
from deployments.flows.graph_client import GraphClient
from deployments.gateway import build_api
from deployments.graph_args import GraphArgs, OnlineArgs, StoreAccess
from deployments.middleware.metrics import GatewayMetrics
from deployments.parts import recent_histories
from deployments.parts.item_lists import Retriever
from deployments.parts.lookup import Lookup
from deployments.parts.recent_histories import RecentHistories
from deployments.parts.records import NO_PROFILE, UserRecord
from deployments.parts.scorer import Scorer
from reki_ray.config.edge import EdgeSettings
from reki_ray.errors import StoreError
from reki_ray.events.log import Event, EventLog, EventReader
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.recent import RecentEvents
from reki_ray.events.segments import SegmentWriter
from reki_ray.experiments.experiment import start_experiment
from reki_ray.experiments.exposures import ExposureReader
from reki_ray.schema import TIMESTAMP
from reki_ray.store.versions import VersionStore
from tests.support import store_factory
from tests.support.store_factory import ITEM_IDS

EDGE = EdgeSettings(allow_anonymous=True, request_logs=False, rate_per_second=None)
OPERATOR = {"Authorization": f"Bearer {os.environ['REKI_ADMIN_TOKEN']}"}
LONG_AGO = 1_000_000


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    """Versions 1 to 3 were promoted in this order."""
    made = VersionStore(tmp_path / "publish")
    for seed in range(3):
        made.publish(partial(store_factory.fill, seed=seed))
    return made


@contextmanager
def graph(store: VersionStore, args: OnlineArgs | None = None) -> Iterator[TestClient]:
    args = args or OnlineArgs()
    access = StoreAccess(publish_root=str(store.root), poll_seconds=3600)
    with ExitStack() as stack:
        lookup = Lookup(access, args)
        parts = lookup, Scorer(access, 4), Retriever(access)
        for part in parts:
            stack.callback(part.close)
        app = build_api(
            GraphClient(*parts),
            GraphArgs(**access.model_dump(), timeout_seconds=60, edge=EDGE),
            GatewayMetrics("replica"),
            open_extensions(access, "replica"),
        )
        yield stack.enter_context(
            TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 4000))
        )


def folders(store: VersionStore) -> OnlineFolders:
    return OnlineFolders.beside(store.root)


def post(client: TestClient, path: str, body: Any = None, **headers: str) -> Any:
    answer = client.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def opened(store: VersionStore) -> Iterator[Callable[[], RecentHistories]]:
    """Opens recent histories as a lookup does; they are closed at the end."""
    with ExitStack() as stack:

        def open_() -> RecentHistories:
            access = StoreAccess(publish_root=str(store.root))
            return stack.enter_context(closing(RecentHistories(OnlineArgs(), access)))

        yield open_


@pytest.fixture
def slow_promotion(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Set when a promotion has begun, and to be set for it to go on."""
    begun, go_on, promote = threading.Event(), threading.Event(), VersionStore.promote

    def slow(self: VersionStore, *args: Any, **more: Any) -> None:
        begun.set()
        go_on.wait(60)
        promote(self, *args, **more)

    monkeypatch.setattr(VersionStore, "promote", slow)
    return begun, go_on


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- events --------------------------------------------------------------------------------------


def test_an_event_keeps_the_time_that_was_sent_and_gets_that_of_its_receipt(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = {"user_id": "u0", "item_id": "m1", "event": "click", "timestamp": 1_060}
    with graph(store) as client:
        for now in (1_000, 1_001):
            with monkeypatch.context() as patch:
                patch.setattr(time, "time", lambda now=now: float(now))
                post(client, "/v1/events", [event])
    first, second = EventReader(folders(store).events).read()
    assert first == second
    assert (first.timestamp, first.received_at, second.received_at) == (1_060, 1_000, 1_001)


@pytest.mark.parametrize("history", [None, [{"item_id": "m11"}]])
def test_what_was_met_recently_is_not_recommended_however_much_it_is(
    store: VersionStore, history: list[dict[str, str]] | None
) -> None:
    log = EventLog(folders(store).events, "another gateway")
    times = range(1, 70)
    log.append([Event("nobody", ITEM_IDS[min(t, 3 + t % 5)], "click", t) for t in times])
    with graph(store) as client:
        body = {"user_id": "nobody", "k": 12, "history": history}
        found = {item["item_id"] for item in post(client, "/v1/recommend", body)["items"]}
    met = {ITEM_IDS[min(t, 3 + t % 5)] for t in times} | {"m11" for _ in history or ()}
    assert found == set(ITEM_IDS) - met
    assert {ITEM_IDS[1], ITEM_IDS[2]} <= met


def test_a_lookup_answers_when_it_has_read_the_log(
    store: VersionStore, opened: Callable[[], RecentHistories]
) -> None:
    log = EventLog(folders(store).events, "a")
    log.append([Event(f"user{number}", "m1", "click", number) for number in range(5_000)])
    add = opened()
    assert add("user4999", UserRecord()).profile.item_ids == ("m1",)
    assert add("user0", UserRecord()).met == ("m1",)
    assert add("nobody", UserRecord()) == UserRecord(NO_PROFILE)


def test_a_log_that_hangs_or_fails_keeps_no_lookup_from_starting(
    store: VersionStore,
    opened: Callable[[], RecentHistories],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    EventLog(folders(store).events, "a").append([Event("u0", "m1", "click", 10**9)])
    held, refresh, calls = threading.Event(), RecentEvents.refresh, []

    def broken(self: RecentEvents) -> int:
        calls.append(self)
        if len(calls) < 3:
            raise RuntimeError("a defect")
        held.wait(60)
        return refresh(self)

    monkeypatch.setattr(RecentEvents, "refresh", broken)
    monkeypatch.setattr(recent_histories, "REPLAY_SECONDS", 0.01)
    add = opened()
    assert "the event log is long" in caplog.text
    assert add("u0", UserRecord()).profile == NO_PROFILE
    held.set()
    wait_until(lambda: add("u0", UserRecord()).profile.item_ids == ("m1",))
    assert caplog.text.count("failed and will be tried again") == 1


def test_a_file_that_hangs_keeps_no_lookup_from_starting(
    store: VersionStore, opened: Callable[[], RecentHistories], monkeypatch: pytest.MonkeyPatch
) -> None:
    EventLog(folders(store).events, "a").append([Event("u0", "m1", "click", 10**9)])
    monkeypatch.setattr(recent_histories, "REPLAY_SECONDS", 0.01)
    held = store.root / "EXPERIMENT.json"
    os.mkfifo(held)  # whoever opens it waits for a writer
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(opened)
        try:
            add = opening.result(20)
            assert add("u0", UserRecord()).profile == NO_PROFILE
        finally:
            held.write_bytes(b"no experiment")
    wait_until(lambda: add("u0", UserRecord()).profile.item_ids == ("m1",))


def dated(latest: int) -> Callable[[Path], Any]:
    """A version whose histories end at a time."""
    table = store_factory.INTERACTIONS_TABLE
    times = pa.array([latest - row for row in range(len(table))])

    def fill(folder: Path) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            place = table.column_names.index(TIMESTAMP)
            changed = table.set_column(place, table.schema.field(place), times)
            patch.setattr(store_factory, "INTERACTIONS_TABLE", changed)
            return store_factory.fill(folder)

    return fill


@pytest.mark.parametrize(
    ("latest", "expected"),
    [([LONG_AGO], 1), ([2 * 10**9], 0), ([2 * 10**9, LONG_AGO], 1)],
    ids=["old histories", "histories with it", "one of two variants has old histories"],
)
def test_the_log_is_read_from_where_the_histories_of_all_served_versions_end(
    tmp_path: Path, latest: list[int], expected: int
) -> None:
    store = VersionStore(tmp_path / "publish")
    numbers = [store.publish(dated(time)) for time in latest]
    if len(numbers) > 1:
        start_experiment(store.root, "test", {f"v{n}": (n, 1 / len(numbers)) for n in numbers})
    EventLog(folders(store).events, "a").append([Event("new", "m1", "click", LONG_AGO + 1)])
    [segment] = folders(store).events.iterdir()
    week_ago = time.time() - 7 * 86_400
    os.utime(segment, (week_ago, week_ago))
    with closing(RecentHistories(OnlineArgs(), StoreAccess(publish_root=str(store.root)))) as add:
        assert len(add("new", UserRecord()).met) == expected


# --- exposures -----------------------------------------------------------------------------------


def divided(store: VersionStore) -> None:
    start_experiment(store.root, "test", {"base": (1, 0.5), "reki": (2, 0.5)})


def test_exposures_that_wait_are_on_the_disk_after_the_end(store: VersionStore) -> None:
    divided(store)
    with graph(store) as client:
        for number in range(20):
            post(client, "/v1/score", {"user_id": f"u{number}", "candidates": ["m1"]})
    assert len(list(ExposureReader(folders(store).exposures).read())) == 20


def test_dropped_exposures_are_counted_in_the_metrics(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreError("no space", where="here", todo="make room")

    divided(store)
    with graph(store) as client:
        counter = 'reki_exposures_total{outcome="dropped",replica="replica"}'
        assert f"{counter} 0.0" in client.get("/metrics").text
        monkeypatch.setattr(SegmentWriter, "append_lines", full)
        post(client, "/v1/score", {"user_id": "u0", "candidates": ["m1"]})
        wait_until(lambda: f"{counter} 1.0" in client.get("/metrics").text)


# --- operators -----------------------------------------------------------------------------------


def refused(client: TestClient, path: str, body: Any = None) -> Any:
    answer = client.post(path, json=body, headers=OPERATOR)
    assert answer.status_code == 409, answer.text
    return answer.json()["error"]


def test_a_rollback_that_is_sent_twice_goes_back_once(store: VersionStore) -> None:
    with graph(store) as client:
        body = {"expected": 3}
        assert post(client, "/v1/admin/rollback", body, **OPERATOR)["current"] == 2
        again = refused(client, "/v1/admin/rollback", body)
        assert again["message"].startswith("version 2 is current, not 3. Nothing was changed")
        assert store.current() == 2
        assert refused(client, "/v1/admin/promote", {"version": 3, "expected": 1})
        assert store.current() == 2
        moved = post(client, "/v1/admin/promote", {"version": 3, "expected": 2}, **OPERATOR)
        assert moved == {"current": 3, "served": 3}
        assert post(client, "/v1/admin/rollback", **OPERATOR)["current"] == 2  # as before


def test_a_full_disk_says_what_is_served_and_moves_nothing(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with graph(store) as client, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        found = refused(client, "/v1/admin/rollback")
        assert "version 2 is not promoted, version 3 is still served: No space" in found["message"]
    assert store.current() == 3
    assert store.rollback() == 2


def test_a_promotion_that_lasts_is_not_joined_by_others(
    store: VersionStore, slow_promotion: tuple[threading.Event, threading.Event]
) -> None:
    begun, go_on = slow_promotion
    with graph(store) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, client, "/v1/admin/promote", {"version": 1}, **OPERATOR)
        assert begun.wait(20)
        try:
            assert refused(client, "/v1/admin/promote", {"version": 2})["code"] == "busy"
        finally:
            go_on.set()
        assert first.result() == {"current": 1, "served": 1}


def test_a_rollback_waits_for_no_promotion_and_is_the_last_word(
    store: VersionStore, slow_promotion: tuple[threading.Event, threading.Event]
) -> None:
    begun, go_on = slow_promotion
    with graph(store) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(refused, client, "/v1/admin/promote", {"version": 1})
        assert begun.wait(20)
        try:
            assert post(client, "/v1/admin/rollback", **OPERATOR) == {"current": 2, "served": 2}
        finally:
            go_on.set()
        assert "version 2 is current, not 3" in first.result()["message"]
        assert store.current() == 2


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", None]
)
def test_no_call_takes_a_body_that_is_no_json(store: VersionStore, kind: str | None) -> None:
    headers = OPERATOR | ({} if kind is None else {"Content-Type": kind})
    with graph(store) as client:
        found = [
            path
            for path, has in client.get("/openapi.json").json()["paths"].items()
            if "post" in has
        ]
        assert len(found) == 5
        for path in found:
            answer = client.post(path, content=b'{"expected": 3}', headers=headers)
            assert answer.status_code == 415, path
        assert store.current() == 3
        answer = client.post("/v1/admin/rollback", content=b"", headers=headers)
        assert answer.json() == {"current": 2, "served": 2}
