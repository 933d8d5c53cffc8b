"""Versions in replicas and gateways: opened once, kept, followed, refused."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.errors import ApiError
from deployments.flows import version_router as served_versions
from deployments.flows.version_router import Route, VersionRouter
from deployments.graph_args import StoreAccess
from deployments.middleware.metrics import GatewayMetrics
from deployments.parts.version_cache import VersionCache
from reki_ray.config import Arm
from reki_ray.errors import ConfigError, StoreError
from reki_ray.experiments.experiment import Experiment, Variant
from reki_ray.store.promotions import CURRENT
from reki_ray.store.version import StoreVersion
from reki_ray.store.versions import VersionStore
from tests.support import store_factory

WAIT_SECONDS = 20.0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 to 4; the last one is damaged."""
    folder = tmp_path_factory.mktemp("publish")
    store = VersionStore(folder)
    for seed in range(4):
        store.publish(functools.partial(store_factory.fill, seed=seed))
    store_factory.writable(store.folder(4) / "users.arrow").write_bytes(b"damaged")
    return folder


def point_to(root: Path, number: int) -> None:
    """As somebody does by hand, who verifies nothing."""
    written = root / "by-hand"
    written.write_text(f"{number}\n")
    written.replace(root / CURRENT)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


class Opened:
    """Counts how often each version is opened."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, version: StoreVersion) -> str:
        self.names.append(version.name)
        return version.name


def started(access: StoreAccess, load: Callable[[StoreVersion], str]) -> VersionCache[str]:
    cache = VersionCache(access, load)
    cache.start()
    return cache


def test_a_version_is_opened_once_for_all_who_ask_meanwhile(root: Path) -> None:
    opened = Opened()
    cache = VersionCache(StoreAccess(publish_root=str(root)), opened)

    async def ask() -> list[str]:
        return await asyncio.gather(*(cache.get(2) for _ in range(10)))

    assert asyncio.run(ask()) == ["v2"] * 10
    assert opened.names == ["v2"]
    cache.close()


def test_the_longest_unused_version_goes(root: Path) -> None:
    cache = VersionCache(StoreAccess(publish_root=str(root), kept_versions=2), Opened())

    async def ask() -> None:
        for number in (1, 2, 1, 3):
            await cache.get(number)

    asyncio.run(ask())
    assert cache.numbers() == [1, 3]
    cache.close()


def test_a_damaged_version_is_an_error_and_the_others_stay(root: Path) -> None:
    cache = VersionCache(StoreAccess(publish_root=str(root)), Opened())

    async def ask() -> None:
        await cache.get(1)
        with pytest.raises(StoreError, match="damaged"):
            await cache.get(4)
        assert await cache.get(1) == "v1"

    asyncio.run(ask())
    assert cache.numbers() == [1]
    cache.close()


def test_a_replica_starts_with_an_older_version_where_the_promoted_one_is_damaged(
    root: Path,
) -> None:
    point_to(root, 4)
    cache = started(StoreAccess(publish_root=str(root)), Opened())
    assert cache.numbers() == [3]
    cache.close()
    with pytest.raises(StoreError, match="damaged"):
        started(StoreAccess(publish_root=str(root), version=4), Opened())


def test_a_promoted_version_is_opened_before_anybody_asks(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    point_to(root, 1)
    cache = started(StoreAccess(publish_root=str(root), poll_seconds=0.01), Opened())
    point_to(root, 2)
    wait_until(lambda: 2 in cache.numbers())
    point_to(root, 4)
    wait_until(lambda: "does not open" in caplog.text)
    time.sleep(0.2)  # many more looks at CURRENT
    assert caplog.text.count("does not open") == 1
    assert cache.numbers() == [1, 2]
    cache.close()


class Flaky:
    """Opens versions; fails as it is told first."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.asked: list[str] = []

    def __call__(self, version: StoreVersion) -> str:
        self.asked.append(version.name)
        if self.failures:
            raise self.failures.pop(0)
        return version.name


FAILURES_TO_OPEN = [
    OSError(116, "Stale file handle"),
    PermissionError(13, "Permission denied"),
    RuntimeError("the model does not load"),
    StoreError("the server is away", where="v2", todo="Start it."),
]


@pytest.mark.parametrize("failure", FAILURES_TO_OPEN, ids=lambda error: type(error).__name__)
def test_following_goes_on_after_any_failure_to_open(root: Path, failure: Exception) -> None:
    point_to(root, 1)
    load = Flaky()
    cache = started(StoreAccess(publish_root=str(root), poll_seconds=0.01), load)
    load.failures = [failure]
    point_to(root, 2)
    wait_until(lambda: "v2" in load.asked)
    point_to(root, 3)
    wait_until(lambda: 3 in cache.numbers())
    cache.close()


@pytest.mark.parametrize("failure", FAILURES_TO_OPEN, ids=lambda error: type(error).__name__)
def test_every_failure_to_open_is_a_refusal_of_that_version(root: Path, failure: Exception) -> None:
    cache = VersionCache(StoreAccess(publish_root=str(root)), Flaky(failure))

    async def ask() -> None:
        with pytest.raises(StoreError):
            await cache.get(2)
        await cache.prepare(2)  # an operator's question is no guess: it is tried
        assert await cache.get(2) == "v2"

    asyncio.run(ask())
    cache.close()


def test_a_damaged_version_is_read_once_and_not_again_before_it_is_written_to(
    root: Path, compared: list[str], tmp_path: Path
) -> None:
    store = VersionStore(tmp_path)
    store.publish(store_factory.fill)
    whole = (store.folder(1) / "users.arrow").read_bytes()
    (store.folder(1) / "users.arrow").write_bytes(b"damaged")
    cache = VersionCache(StoreAccess(publish_root=str(tmp_path)), Opened())

    async def ask() -> None:
        for _ in range(20):
            for question in (cache.get, cache.prepare):
                with pytest.raises(StoreError, match="damaged"):
                    await question(1)
        assert compared == ["v1"]
        (store.folder(1) / "users.arrow").write_bytes(whole)
        await cache.prepare(1)
        assert await cache.get(1) == "v1"

    asyncio.run(ask())
    cache.close()


def test_requests_for_a_refused_version_wait_ever_longer_for_another_look(root: Path) -> None:
    now = 1000.0
    load = Flaky(*[OSError("away") for _ in range(100)])
    cache = VersionCache(StoreAccess(publish_root=str(root)), load, clock=lambda: now)
    looks = []

    async def ask() -> None:
        nonlocal now
        for second in range(120):
            now = 1000.0 + second
            with pytest.raises(StoreError, match="away"):
                await cache.get(2)
            looks.append(len(load.asked))

    asyncio.run(ask())
    assert looks[0] == 1
    assert looks[-1] == 8  # after 1, 2, 4, 8, 16, 30 and 30 seconds
    cache.close()


class Hanging:
    """Opens versions; some of them hang until they are let go."""

    def __init__(self, *held: str) -> None:
        self.held = held
        self.go_on = threading.Event()
        self.asked: list[str] = []

    def __call__(self, version: StoreVersion) -> str:
        self.asked.append(version.name)
        if version.name in self.held:
            self.go_on.wait(60)
        return version.name


def test_a_version_that_hangs_while_it_opens_holds_up_no_promoted_one(root: Path) -> None:
    point_to(root, 1)
    load = Hanging("v2")
    cache = started(StoreAccess(publish_root=str(root), poll_seconds=0.01), load)

    async def follow() -> None:
        held = asyncio.create_task(cache.get(2))
        while "v2" not in load.asked:
            await asyncio.sleep(0.01)
        waiting = asyncio.create_task(cache.get(3))
        await asyncio.sleep(0.1)
        assert load.asked == ["v1", "v2"]  # others are opened one at a time
        point_to(root, 3)
        async with asyncio.timeout(WAIT_SECONDS):
            assert await waiting == "v3"
        load.go_on.set()
        assert await held == "v2"

    try:
        asyncio.run(follow())
    finally:
        load.go_on.set()
        cache.close()


def test_a_promoted_version_that_hangs_while_it_opens_holds_up_no_later_one(root: Path) -> None:
    point_to(root, 1)
    load = Hanging("v2")
    cache = started(StoreAccess(publish_root=str(root), poll_seconds=0.01), load)
    try:
        point_to(root, 2)
        wait_until(lambda: "v2" in load.asked)
        point_to(root, 3)
        wait_until(lambda: 3 in cache.numbers())
    finally:
        load.go_on.set()
        cache.close()


def halves(*versions: tuple[str, int]) -> Experiment:
    """An experiment whose first variant gets user a and whose second gets user z."""
    variants = [Variant(name=name, version=number, share=0.5) for name, number in versions]
    return Experiment(name="halves", salt="s0", variants=tuple(variants))


class Rest:
    """The rest of a graph that refuses a damaged version."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.asked: list[int] = []
        self.metrics = GatewayMetrics("replica")

    @property
    def refusals(self) -> float | None:
        return self.metrics.registry.get_sample_value(
            "reki_versions_refused_total", {"replica": "replica"}
        )

    async def prepare(self, number: int) -> None:
        self.asked.append(number)
        if self.failures:
            raise self.failures.pop(0)
        if number == 4:
            raise StoreError("damaged", where="v4", todo="Publish again.")

    def served(
        self,
        root: Path,
        experiment: Callable[[], Experiment | None] = lambda: None,
        compare: Arm | None = None,
    ) -> VersionRouter:
        access = StoreAccess(publish_root=str(root), poll_seconds=0.01, compare=compare)
        return VersionRouter(access, self.prepare, self.metrics, experiment)


def test_a_gateway_follows_the_pointer(root: Path) -> None:
    point_to(root, 1)

    async def follow() -> None:
        served = Rest().served(root)
        with pytest.raises(ApiError, match="starting"):
            served.of("u")
        await served.start()
        assert served.of("u") == Route(None, 1)
        point_to(root, 2)
        async with asyncio.timeout(WAIT_SECONDS):
            while served.number == 1:
                await asyncio.sleep(0.01)
        assert served.of("u") == Route(None, 2)
        await served.stop()

    asyncio.run(follow())


def test_a_refused_version_is_told_once_and_the_old_one_stays(root: Path) -> None:
    point_to(root, 2)

    async def follow() -> None:
        rest = Rest()
        served = rest.served(root)
        await served.refresh()
        point_to(root, 4)
        for _ in range(5):
            await served.refresh()
        assert served.number == 2
        assert rest.asked == [2, 4]
        assert rest.refusals == 1

    asyncio.run(follow())


def test_a_refused_version_is_tried_again_later(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_versions, "RETRY_SECONDS", 0.0)
    point_to(root, 2)

    async def follow() -> None:
        rest = Rest(StoreError("the server is away", where="v2", todo="Start it."))
        served = rest.served(root)
        for _ in range(2):
            await served.refresh()
        assert served.number == 2
        assert rest.refusals == 1

    asyncio.run(follow())


def test_a_graph_that_is_not_up_yet_is_asked_again(root: Path) -> None:
    point_to(root, 2)

    async def follow() -> None:
        rest = Rest(TimeoutError(), TimeoutError())
        served = rest.served(root)
        await served.start()
        await served.stop()
        assert served.number == 2
        assert set(rest.asked) == {2}
        assert rest.refusals == 0

    asyncio.run(follow())


def test_a_gateway_starts_with_an_older_version_where_the_promoted_one_is_refused(
    root: Path,
) -> None:
    point_to(root, 4)

    async def follow() -> None:
        served = Rest().served(root)
        await served.refresh()
        assert served.number == 3

    asyncio.run(follow())


def test_an_experiment_gives_each_user_a_variant_and_its_version(root: Path) -> None:
    point_to(root, 1)
    running: list[Experiment | None] = [halves(("base", 1), ("reki", 3))]

    async def follow() -> None:
        rest = Rest()
        served = rest.served(root, lambda: running[0])
        await served.refresh()
        await served.follow_experiment()
        assert served.of("a") == Route("base", 1, "halves")
        assert served.of("z") == Route("reki", 3, "halves")
        assert rest.asked == [1, 3]
        running[0] = halves(("base", 1), ("broken", 4))
        await served.refresh()
        await served.follow_experiment()
        assert served.of("z") == Route("reki", 3, "halves")
        running[0] = None
        await served.refresh()
        await served.follow_experiment()
        assert served.of("z") == Route(None, 1)

    asyncio.run(follow())


def unreadable() -> Experiment | None:
    raise StoreError("the experiment cannot be read", where="EXPERIMENT.json", todo="Restore it.")


def rights() -> Experiment | None:
    raise PermissionError(13, "Permission denied")


def defect() -> Experiment | None:
    raise KeyError("variants")


@pytest.mark.parametrize("broken", [unreadable, rights, defect])
def test_an_experiment_that_cannot_be_read_stays_and_promotions_are_followed(
    root: Path, broken: Callable[[], Experiment | None]
) -> None:
    point_to(root, 1)
    reads: list[Callable[[], Experiment | None]] = [broken]

    def read() -> Experiment | None:
        return reads[0]()

    async def follow() -> None:
        served = Rest().served(root, read)
        await served.start()
        assert served.of("z") == Route(None, 1)  # also a gateway that starts with it serves
        reads[0] = lambda: halves(("base", 1), ("reki", 3))
        async with asyncio.timeout(WAIT_SECONDS):
            while not served.variants:
                await asyncio.sleep(0.01)
            reads[0] = broken
            point_to(root, 2)
            while served.number != 2:
                await asyncio.sleep(0.01)
        assert served.of("z") == Route("reki", 3, "halves")
        await served.stop()

    asyncio.run(follow())


def test_an_experiment_on_a_disk_that_hangs_keeps_no_promotion_waiting(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_versions, "READ_SECONDS", 0.5)
    point_to(root, 1)
    go_on = threading.Event()

    def hang() -> None:
        go_on.wait()

    async def follow() -> None:
        served = Rest().served(root, hang)
        starting = asyncio.create_task(served.start())
        async with asyncio.timeout(WAIT_SECONDS):
            await starting
            point_to(root, 2)
            while served.number != 2:
                await asyncio.sleep(0.01)
        assert served.follows
        await served.stop()

    try:
        asyncio.run(follow())
    finally:
        go_on.set()


def test_a_variant_that_hangs_while_it_opens_keeps_nobody_waiting(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_versions, "DIVIDE_SECONDS", 0.01)
    point_to(root, 1)

    class Slow(Rest):
        async def prepare(self, number: int) -> None:
            await super().prepare(number)
            if number == 3:
                await asyncio.Event().wait()

    async def follow() -> None:
        rest = Slow()
        served = rest.served(root, lambda: halves(("base", 1), ("reki", 3)))
        async with asyncio.timeout(WAIT_SECONDS):
            await served.start()
            while 3 not in rest.asked:
                await asyncio.sleep(0.01)
            point_to(root, 2)
            await served.refresh()
        assert (served.number, served.variants) == (2, ())
        await served.stop()

    asyncio.run(follow())


def test_a_gateway_that_starts_knows_its_experiment(root: Path) -> None:
    point_to(root, 1)

    async def follow() -> None:
        served = Rest().served(root, lambda: halves(("base", 1), ("reki", 3)))
        await served.start()
        assert served.of("z") == Route("reki", 3, "halves")
        await served.stop()

    asyncio.run(follow())


def test_a_pointer_on_a_disk_that_hangs_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_to(root, 1)
    go_on = threading.Event()
    monkeypatch.setattr(served_versions, "STALL_SECONDS", 0.05)

    async def follow() -> None:
        served = Rest().served(root)
        await served.refresh()
        assert served.follows
        with monkeypatch.context() as patch:
            patch.setattr(StoreAccess, "wanted", lambda _: go_on.wait() and 1)
            waiting = asyncio.create_task(served.refresh())
            async with asyncio.timeout(WAIT_SECONDS):
                while served.follows:
                    await asyncio.sleep(0.01)
            assert served.of("u") == Route(None, 1)
            go_on.set()
            await waiting
        assert served.follows

    try:
        asyncio.run(follow())
    finally:
        go_on.set()


def test_any_failure_of_the_graph_to_prepare_leaves_following_alive(root: Path) -> None:
    point_to(root, 1)

    async def follow() -> None:
        rest = Rest()
        served = rest.served(root)
        await served.start()
        rest.failures = [OSError(5, "I/O error"), RuntimeError("a defect"), TimeoutError()]
        point_to(root, 2)
        async with asyncio.timeout(WAIT_SECONDS):
            while served.number != 2:
                await asyncio.sleep(0.01)
        assert rest.failures == []
        await served.stop()

    asyncio.run(follow())


def test_more_versions_than_replicas_keep_are_not_served_together(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    point_to(root, 1)
    running: list[Experiment | None] = [None]

    async def follow() -> None:
        access = StoreAccess(publish_root=str(root), kept_versions=2, poll_seconds=0.01)
        rest = Rest()
        served = VersionRouter(access, rest.prepare, rest.metrics, lambda: running[0])
        await served.follow_current()
        running[0] = halves(("base", 2), ("reki", 3))
        with pytest.raises(ConfigError, match="3 versions would have to be open") as caught:
            await served.follow_experiment()
        assert "kept_versions" in caught.value.where
        assert served.variants == ()
        assert rest.asked == [1]  # none of them was opened to no avail
        running[0] = halves(("base", 1), ("reki", 3))
        await served.follow_experiment()
        point_to(root, 2)
        with pytest.raises(ConfigError, match="3 versions"):
            await served.follow_current()
        assert served.number == 1

    asyncio.run(follow())


# --- the version to compare with -----------------------------------------------------------------


@pytest.fixture
def arms(tmp_path: Path) -> Path:
    """Versions 2 and 3 are of fair_base, the others of reki_c; the first one is promoted."""
    store = VersionStore(tmp_path)
    for number, knowledge in enumerate((True, False, False, True, True)):
        store.publish(
            functools.partial(store_factory.fill, knowledge=knowledge, seed=number),
            promote=not number,
        )
    return tmp_path


async def settled(served: VersionRouter) -> int | None:
    """The version to compare with after a look at what is promoted."""
    await served.refresh()
    await served.follow_experiment()
    await served.follow_compared()
    return served.compared


def test_the_newest_version_of_the_other_arm_is_kept_to_compare_with(arms: Path) -> None:
    running: list[Experiment | None] = [None]

    async def follow() -> None:
        rest = Rest()
        served = rest.served(arms, lambda: running[0], "fair_base")
        assert await settled(served) == 3
        assert rest.asked == [1, 3]
        assert await settled(served) == 3
        assert rest.asked == [1, 3]  # once
        assert served.of("u", store_version="v3") == Route(None, 3)
        assert served.of("u", store_version="v1") == Route(None, 1)
        with pytest.raises(ApiError, match="not open") as refused:
            served.of("u", store_version="v2")
        assert refused.value.details == {"versions": ["v1", "v3"]}
        point_to(arms, 3)  # now the other side is the newest one with knowledge
        assert await settled(served) == 5
        point_to(arms, 1)
        await settled(served)
        running[0] = halves(("base", 2), ("reki", 1))
        await settled(served)
        assert await settled(served) is None  # an experiment has versions of its own
        assert served.of("u", store_version="v2") == Route(None, 2)

    asyncio.run(follow())


def test_nothing_is_kept_where_nothing_is_to_be_compared(arms: Path, root: Path) -> None:
    async def follow() -> None:
        rest = Rest()
        assert await settled(rest.served(arms)) is None
        assert rest.asked == [1]
        point_to(root, 1)
        assert await settled(rest.served(root, compare="fair_base")) is None

    asyncio.run(follow())


def test_a_version_that_cannot_be_compared_with_stops_nothing(
    arms: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refuses(Rest):
        async def prepare(self, number: int) -> None:
            await super().prepare(number)
            if number == 3:
                raise RuntimeError("whatever it is")

    async def follow() -> None:
        rest = Refuses()
        served = rest.served(arms, compare="fair_base")
        for _ in range(3):
            assert await settled(served) is None
        assert rest.asked == [1, 3]  # not again and again
        assert caplog.text.count("no version to compare v1 with: whatever it is") == 1
        point_to(arms, 5)
        await served.refresh()
        assert served.number == 5
        monkeypatch.setattr(served, "_compare_after", 0.0)
        assert await settled(served) is None
        assert rest.asked == [1, 3, 5, 3]

    asyncio.run(follow())


def test_a_slow_version_to_compare_with_holds_up_no_promotion(arms: Path) -> None:
    class Slow(Rest):
        async def prepare(self, number: int) -> None:
            await super().prepare(number)
            if number == 3:
                await asyncio.Event().wait()

    async def follow() -> None:
        served = Slow().served(arms, compare="fair_base")
        await served.start()
        await asyncio.sleep(0.05)
        point_to(arms, 5)
        await asyncio.wait_for(served.refresh(), WAIT_SECONDS)
        assert (served.number, served.compared) == (5, None)
        await served.stop()

    asyncio.run(follow())


def test_a_damaged_version_is_not_compared_with(arms: Path) -> None:
    (VersionStore(arms).folder(3) / "manifest.json").write_text("{}")
    access = StoreAccess(publish_root=str(arms), compare="fair_base")
    assert access.compared(1) == 2
