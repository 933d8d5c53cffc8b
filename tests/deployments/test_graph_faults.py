"""Faults of a served graph under load, through HAProxy: callers notice little, and it recovers.

One graph for all tests: its start takes most of their time.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from reki_ray.store.promotions import CURRENT
from reki_ray.store.versions import VersionStore
from tests.support import store_factory
from tests.support.live_graph import LiveGraph, make_config, running, wait_until
from tests.support.live_load import BODY, Load, Truth, ask

pytestmark = [pytest.mark.serve, pytest.mark.chaos]

TWO_OF_EACH = {"gateway_replicas": 2, "lookup_replicas": 2, "scorer_replicas": 2}
IN_WORK = 8
"""Requests that a gateway works on at once."""

FAR_MORE = 60
GROWTH_MIB = 64
"""Memory that all replicas together may gain by an overload; a leak of bodies would be more."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    VersionStore(folder / "publish").publish(store_factory.fill)
    return folder


@pytest.fixture(scope="module")
def truth(root: Path) -> Truth:
    return Truth(root, 1)


@pytest.fixture(scope="module")
def graph(root: Path) -> Iterator[LiveGraph]:
    limits = {"max_ongoing_requests": IN_WORK}
    with running(make_config(root, ingress="haproxy", **TWO_OF_EACH, **limits)) as graph:
        yield graph


def test_requests_come_in_through_haproxy(graph: LiveGraph, truth: Truth) -> None:
    (proxy, *_) = [process for process in graph.processes() if process.name() == "haproxy"]
    command = proxy.cmdline()
    settings = Path(command[command.index("-f") + 1])
    logs = re.findall(r"^\s+log (\S+)", settings.read_text(), re.MULTILINE)
    # Nobody but this user comes near its sockets, and no request is told to syslog.
    assert {Path(to).parent for to in logs if to != "global"} <= {
        settings.parent,
        settings.parent.parent,
    }
    assert settings.parent.parent.stat().st_mode & 0o077 == 0
    with graph.client() as client:
        truth.check([ask(client)])


def test_one_scrape_of_ray_has_the_requests_of_all_gateways(graph: LiveGraph) -> None:
    sent = 40

    def counts() -> dict[str, float]:
        text = httpx.get(graph.metrics_url, timeout=30, trust_env=False).text
        samples = (
            sample
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "ray_reki_requests_total"
        )
        return {
            sample.labels["replica"]: sample.value
            for sample in samples
            if (sample.labels["route"], sample.labels["status"]) == ("/v1/score", "200")
        }

    before = sum(counts().values())
    for _ in range(sent):  # connections of their own, which HAProxy spreads over the gateways
        with graph.client() as client:
            assert client.post("/v1/score", json=BODY).status_code == 200
    wait_until(lambda: sum(counts().values()) >= before + sent, 60)
    assert len(counts()) == len(graph.replicas("Gateway")) == 2
    text = httpx.get(graph.metrics_url, timeout=30, trust_env=False).text
    assert "ray_reki_request_seconds_bucket{" in text
    assert "ray_reki_served_version{" in text


def test_without_the_store_answers_come_in_time_and_say_that_they_are_degraded(
    graph: LiveGraph, truth: Truth
) -> None:
    # The client's own patience is the budget's bound: 10 s in the graph, 30 s here.
    with graph.client() as client:
        with graph.stopped("Lookup"):
            held = [ask(client)]
        truth.check(held)
        assert [(answer.body["degraded"], answer.repeated) for answer in held] == [(True, False)]
        assert held[0].body["user"] == {"source": "fallback"}
        wait_until(lambda: not ask(client).body["degraded"])


def test_overload_is_refused_at_once_with_the_time_to_ask_again(
    graph: LiveGraph, truth: Truth
) -> None:
    with graph.stopped("Lookup"):  # what is taken in stays in work for seconds
        answers = asyncio.run(_all_at_once(graph.url, FAR_MORE))
    refused = [answer for answer in answers if answer.status_code == 503]
    taken = [answer for answer in answers if answer.status_code == 200]
    assert len(refused) + len(taken) == FAR_MORE
    assert len(taken) <= IN_WORK * TWO_OF_EACH["gateway_replicas"]
    assert all(answer.json()["degraded"] for answer in taken)
    # In the order of their coming: nobody was refused only after a wait.
    assert answers[: len(refused)] == refused
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    with graph.client() as client:
        wait_until(lambda: not ask(client).body["degraded"])


@pytest.mark.slow
def test_after_an_overload_memory_is_what_it_was(graph: LiveGraph, truth: Truth) -> None:
    codes = asyncio.run(_bursts(graph.url))
    before = _memory_mib(graph)
    for _ in range(4):
        codes |= asyncio.run(_bursts(graph.url))
    assert codes == {200, 503}
    assert _memory_mib(graph) < before + GROWTH_MIB
    with Load(graph).running() as load:
        pass
    truth.check(load.answers)
    assert not any(answer.body["degraded"] for answer in load.answers)


@pytest.mark.parametrize("part", ["Gateway", "Lookup", "Scorer"])
def test_a_killed_replica_costs_no_caller_an_answer(
    graph: LiveGraph, truth: Truth, part: str
) -> None:
    with Load(graph).running() as load:
        wait_for_others = graph.kill(part)
        wait_for_others()
    truth.check(load.answers)


@pytest.mark.slow
def test_a_damaged_version_that_current_names_leaves_the_old_one_serving(
    graph: LiveGraph, root: Path, truth: Truth
) -> None:
    store = VersionStore(root / "publish")
    damaged = store.publish(partial(store_factory.fill, seed=1), promote=False)
    vectors = store_factory.writable(store.folder(damaged) / "users.arrow")
    with vectors.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"damaged!")
    with Load(graph).running() as load:
        (store.root / CURRENT).write_text(f"{damaged}\n", encoding="ascii")
        _wait_until_all_refuse(graph)
        wait_for_others = graph.kill("Gateway")
        wait_for_others()
        store.promote(1)
    assert {answer.body["store_version"] for answer in load.answers} == {"v1"}
    truth.check(load.answers)


@pytest.mark.slow
def test_a_version_whose_folder_is_gone_is_answered_degraded_until_it_is_back(
    graph: LiveGraph, root: Path, truth: Truth
) -> None:
    store = VersionStore(root / "publish")
    number = store.publish(partial(store_factory.fill, seed=1))
    folder, away = store.folder(number), root / "away"
    with graph.client() as client, Load(graph).running() as load:
        wait_until(lambda: ask(client).body["store_version"] == f"v{number}")
        folder.rename(away)
        wait_for_others = graph.kill("Lookup", 2)
        wait_for_others()  # with the version before, which still opens
        wait_until(lambda: ask(client).body["degraded"])
        away.rename(folder)
        wait_until(lambda: not ask(client).body["degraded"])
    Truth(root, 1, number).check(load.answers)


def _wait_until_all_refuse(graph: LiveGraph) -> None:
    """Go on when every gateway has met a version that it cannot serve."""
    refusing: set[str] = set()

    def all_refuse() -> bool:
        answer = client.get("/metrics").text
        refusing.update(re.findall(r'reki_versions_refused_total\{replica="(.*)"\} 1', answer))
        return len(refusing) == TWO_OF_EACH["gateway_replicas"]

    with graph.client() as client:
        wait_until(all_refuse)


async def _all_at_once(url: str, count: int) -> list[httpx.Response]:
    """Answers to concurrent requests, in the order of their coming."""
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(
        base_url=url, limits=limits, timeout=60, trust_env=False
    ) as client:
        asked = [client.post("/v1/score", json=BODY) for _ in range(count)]
        return [await answer for answer in asyncio.as_completed(asked)]


async def _bursts(url: str) -> set[int]:
    return {answer.status_code for _ in range(3) for answer in await _all_at_once(url, FAR_MORE)}


def _memory_mib(graph: LiveGraph) -> float:
    return sum(process.memory_info().rss for process in graph.replicas()) / 2**20
