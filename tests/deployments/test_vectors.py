"""The graph over vectors in LMDB or on a real server: the same scores, and what happens without."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import redis
from fastapi.testclient import TestClient

from deployments.extensions import Extensions
from deployments.flows.graph_client import GraphClient
from deployments.graph import build_app, build_fused_app
from deployments.graph_args import GraphArgs, StoreAccess
from deployments.parts.lookup import Lookup
from deployments.parts.records import UserRecord
from deployments.parts.scorer import Scorer
from deployments.parts.vector_server import THREADS, CircuitBreaker, VectorServer
from reki_ray.config import AdapterSettings
from reki_ray.config.serve import GraphSettings
from reki_ray.core.progress import Reporter
from reki_ray.errors import ConfigError, StoreError
from reki_ray.experiments.experiment import load_experiment, start_experiment
from reki_ray.models.candidate_scorer import HistoryEvent, UserInput
from reki_ray.store import admin as versions
from reki_ray.store.kv import VectorsLostError
from reki_ray.store.redis import RedisVectors
from reki_ray.store.versions import VersionStore
from tests.support import gateway_app, store_factory
from tests.support.redis_server import RedisServer, redis_server
from tests.support.store_factory import ITEM_IDS, USER_IDS

QUIET = Reporter(quiet=True)
SLOW_SECONDS = 2.0
"""Of a call that a stopped server never answers; well within a hop's share of BUDGET_SECONDS."""
BUDGET_SECONDS = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


def on(server: RedisServer, folder: Path, seconds: float = 20.0) -> AdapterSettings:
    return AdapterSettings(
        kind="redis", url=server.url, namespace=folder.name, timeout_seconds=seconds
    )


@contextmanager
def graph(root: Path, vectors: AdapterSettings | None = None) -> Iterator[TestClient]:
    """The whole graph in this process, behind its real HTTP interface."""
    access = StoreAccess(
        publish_root=str(root), vectors=vectors or AdapterSettings(), poll_seconds=3600
    )
    lookup, scorer = Lookup(access), Scorer(access, 4)
    app = gateway_app.make(
        GraphClient(lookup, scorer),
        access,
        Extensions(experiment=partial(load_experiment, root)),
        timeout_seconds=BUDGET_SECONDS,
    )
    with ExitStack() as stack:
        stack.callback(lookup.close)
        stack.callback(scorer.close)
        yield stack.enter_context(gateway_app.client(app))


def score(client: TestClient, user: str = "u0") -> Any:
    answer = client.post("/v1/score", json={"user_id": user, "candidates": [*ITEM_IDS, "unknown"]})
    assert answer.status_code == 200, answer.text
    return answer.json()


def promote(client: TestClient, version: int) -> Any:
    operator = {"Authorization": f"Bearer {os.environ['REKI_ADMIN_TOKEN']}"}
    return client.post("/v1/admin/promote", json={"version": version}, headers=operator)


@pytest.mark.parametrize("kind", ["lmdb", "redis"])
def test_what_is_published_is_scored_as_with_the_versions_own_files(
    tmp_path: Path, server: RedisServer, kind: str
) -> None:
    settings = on(server, tmp_path)
    if kind == "lmdb":
        settings = AdapterSettings(kind="lmdb", url=str(tmp_path / "lmdb"))
    root = tmp_path / "publish"
    VersionStore(root, settings).publish(store_factory.fill)
    with graph(root) as own, graph(root, settings) as served:
        for user in [*USER_IDS, "nobody"]:
            expected, found = score(own, user), score(served, user)
            assert found["degraded"] is False
            del expected["request_id"], found["request_id"]
            assert found == expected
        path = "/v1/users/u0/knowledge"
        assert served.get(path).json() == own.get(path).json()
        assert served.get("/readyz").status_code == 200


def test_without_the_server_the_profile_still_counts_and_the_answer_is_degraded(
    tmp_path: Path,
) -> None:
    with redis_server(tmp_path) as server:
        settings, root = on(server, tmp_path), tmp_path / "publish"
        store = VersionStore(root, settings)
        store.publish(store_factory.fill)
        store.publish(store_factory.fill, promote=False)
        with graph(root, settings) as client:
            assert score(client)["degraded"] is False
            server.process.kill()
            server.process.wait()
            answer = score(client)
            assert (answer["degraded"], answer["user"]) == (True, {"source": "fallback"})
            found = [entry["score"] for entry in answer["scores"]]
            np.testing.assert_allclose(found, without_vector(root, "u0"), atol=1e-6)
            assert client.get("/v1/users/u0/knowledge").status_code == 503
            assert client.get("/v1/sample").status_code == 200
            refused = promote(client, 2)
            assert refused.status_code == 409
            assert "does not answer" in refused.json()["error"]["message"]
            assert score(client)["store_version"] == "v1"
        with pytest.raises(StoreError, match="does not answer"), graph(root, settings):
            pass


def without_vector(root: Path, user: str) -> np.ndarray:
    """Scores of a user's stored profile with the fallback vector."""
    version = VersionStore(root).open()
    profile = version.profile(user)
    assert profile is not None
    assert version.users is not None
    events = zip(profile.item_ids, profile.ratings, profile.timestamps, strict=True)
    known = UserInput(
        profile.attributes, [HistoryEvent(*event) for event in events], version.users.fallback
    )
    return version.load_scorer().score(known, [*ITEM_IDS, "unknown"])


def test_a_server_that_hangs_is_given_up_within_the_budget(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        root, settings = tmp_path / "publish", on(server, tmp_path, SLOW_SECONDS)
        VersionStore(root, settings).publish(store_factory.fill)
        with graph(root, settings) as client:
            server.process.send_signal(signal.SIGSTOP)
            assert score(client)["degraded"] is True
            server.process.send_signal(signal.SIGCONT)
            assert score(client)["degraded"] is False


def test_a_version_that_was_not_exported_is_refused_and_the_old_one_stays(
    tmp_path: Path, server: RedisServer
) -> None:
    root, settings = tmp_path / "publish", on(server, tmp_path)
    VersionStore(root, settings).publish(store_factory.fill)
    VersionStore(root).publish(partial(store_factory.fill, seed=1), promote=False)
    with graph(root, settings) as client:
        refused = promote(client, 2)
        assert refused.status_code == 409
        assert "reki export" in refused.json()["error"]["message"]
        assert score(client)["store_version"] == "v1"
        first = versions.export(VersionStore(root, settings), 2, QUIET)
        assert first.vectors == first.written == len(USER_IDS) + len(ITEM_IDS)
        again = versions.export(VersionStore(root, settings), 2, QUIET)
        assert (again.vectors, again.written) == (first.vectors, 0)
        assert promote(client, 2).json() == {"current": 2, "served": 2}
        assert score(client)["store_version"] == "v2"


def test_a_version_that_cannot_be_exported_is_kept_and_not_promoted(tmp_path: Path) -> None:
    root = tmp_path / "publish"
    with redis_server(tmp_path) as server:
        settings = on(server, tmp_path)
        store = VersionStore(root, settings)
        store.publish(store_factory.fill)
    with pytest.raises(StoreError, match="version 2 is built, but not exported") as caught:
        store.publish(store_factory.fill)
    assert "reki export --version 2" in caught.value.todo
    assert (store.current(), store.versions()) == (1, [1, 2])
    with redis_server(tmp_path) as back:
        store = VersionStore(root, on(back, tmp_path))
        assert versions.export(store, 2, QUIET).written
        store.promote(2)
        assert store.current() == 2


def test_variants_are_told_with_the_arms_of_their_models(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    for knowledge in (False, True):
        store.publish(partial(store_factory.fill, knowledge=knowledge))
    start_experiment(tmp_path, "first", {"base": (1, 0.5), "reki": (2, 0.5)})
    with graph(tmp_path) as client:
        assert client.get("/v1/versions").json() == {
            "current": 2,
            "arm": "reki_c",
            "variants": [
                {"name": "base", "version": 1, "arm": "fair_base"},
                {"name": "reki", "version": 2, "arm": "reki_c"},
            ],
            "compared": None,
        }
        (store.folder(1) / "manifest.json").unlink()
        assert client.get("/v1/versions").json()["variants"][0]["arm"] is None


def counted(client: TestClient, lack: str) -> float:
    """Answers that had to do without something."""
    found = re.search(
        f'reki_degraded_total{{lack="{lack}",replica="replica"}} (.*)', client.get("/metrics").text
    )
    return 0.0 if found is None else float(found[1])


def flush(server: redis.Redis, prefix: str) -> None:
    server.flushall()


def evict_all(server: redis.Redis, prefix: str) -> None:
    """As a server that runs out of memory does: it evicts what it likes, also all."""
    server.config_set("maxmemory-policy", "allkeys-random")
    server.config_set("maxmemory", "1")
    with contextlib.suppress(redis.ResponseError):
        server.set("further", "x")
    server.config_set("maxmemory", "0")
    server.config_set("maxmemory-policy", "noeviction")


def evict_one(server: redis.Redis, prefix: str) -> None:
    assert server.delete(f"{prefix}/v1/users/=u0") == 1


def lose_the_mark(server: redis.Redis, prefix: str) -> None:
    assert server.delete(f"{prefix}/v1/users/@meta") == 1


def hold_another_export(server: redis.Redis, prefix: str) -> None:
    mark = json.loads(cast(bytes, server.get(f"{prefix}/v1/users/@meta")))
    server.set(f"{prefix}/v1/users/@meta", json.dumps({**mark, "manifest": "another"}))


@pytest.mark.parametrize("lose", [flush, evict_all, evict_one, lose_the_mark, hold_another_export])
def test_a_server_that_has_lost_vectors_is_noticed_and_mended_by_an_export(
    tmp_path: Path, lose: Callable[[redis.Redis, str], None]
) -> None:
    with redis_server(tmp_path) as running, redis.Redis.from_url(running.url) as server:
        settings, root = on(running, tmp_path), tmp_path / "publish"
        VersionStore(root, settings).publish(store_factory.fill)
        with graph(root, settings) as client:
            whole = score(client)
            assert (whole["degraded"], counted(client, "vectors_lost")) == (False, 0)
            lose(server, settings.namespace)
            for _ in range(5):  # never taken for a server that does not answer
                answer = score(client)
                assert (answer["degraded"], answer["user"]) == (True, {"source": "fallback"})
            assert counted(client, "vectors_lost") == 5
            found = [entry["score"] for entry in answer["scores"]]
            np.testing.assert_allclose(found, without_vector(root, "u0"), atol=1e-6)
            assert client.get("/v1/users/u0/knowledge").status_code == 503
            assert client.get("/readyz").status_code == 200
            if lose is evict_one:
                assert score(client, "u1")["degraded"] is False
                assert score(client, "nobody")["degraded"] is False
            if lose is not hold_another_export:
                assert versions.export(VersionStore(root, settings), 1, QUIET).written
                mended = score(client)
                assert (mended["degraded"], mended["scores"]) == (False, whole["scores"])
                assert versions.export(VersionStore(root, settings), 1, QUIET).written == 0


def test_a_version_with_lost_item_vectors_is_not_opened(
    tmp_path: Path, server: RedisServer
) -> None:
    settings, root = on(server, tmp_path), tmp_path / "publish"
    VersionStore(root, settings).publish(store_factory.fill)
    with redis.Redis.from_url(server.url) as client:
        assert client.delete(f"{settings.namespace}/v1/items/=m3") == 1
    with pytest.raises(StoreError, match="no longer holds some of the vectors"):
        Scorer(StoreAccess(publish_root=str(root), vectors=settings), 4)


def test_a_server_that_hangs_costs_no_profile_and_after_a_while_nobody_waits(
    tmp_path: Path,
) -> None:
    with redis_server(tmp_path) as running:
        root, settings = tmp_path / "publish", on(running, tmp_path, 0.5)
        VersionStore(root, settings).publish(store_factory.fill)
        asked: list[str] = []

        async def many(lookup: Lookup) -> list[UserRecord]:
            return await asyncio.gather(*(lookup.user("u0", 1) for _ in range(100)))

        lookup = Lookup(StoreAccess(publish_root=str(root), vectors=settings))
        whole = asyncio.run(lookup.user("u0", 1))
        fetch = RedisVectors.fetch

        def counting(vectors: RedisVectors, keys: Sequence[bytes]) -> list[bytes | None]:
            asked.append("once")
            return fetch(vectors, keys)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RedisVectors, "fetch", counting)
            running.process.send_signal(signal.SIGSTOP)
            try:
                found = [record for _ in range(2) for record in asyncio.run(many(lookup))]
            finally:
                running.process.send_signal(signal.SIGCONT)
        assert len(asked) <= 3 * THREADS  # of 200
        assert {record.lack for record in found} == {"vectors_unavailable"}
        assert all(record.profile == whole.profile for record in found)
        for _ in range(600):
            record = asyncio.run(lookup.user("u0", 1))
            if record.vector is not None:
                break
            time.sleep(0.1)
        assert record.store_version == "v1"
        lookup.close()


def test_a_breaker_lets_one_call_through_until_one_succeeds() -> None:
    now = 0.0
    breaker = CircuitBreaker(failures=3, seconds=1.0, clock=lambda: now)
    for _ in range(3):
        assert breaker.allows()
        breaker.failed()
    assert not breaker.allows()
    for second in range(1, 4):
        now = float(second)
        assert [breaker.allows() for _ in range(3)] == [True, False, False]
        if second < 3:
            breaker.failed()
    breaker.succeeded()
    assert all(breaker.allows() for _ in range(10))


@pytest.mark.parametrize(("seconds", "budget", "fits"), [(0.2, 2.0, True), (0.4, 2.0, False)])
def test_a_server_may_not_take_longer_than_the_lookup(
    tmp_path: Path, seconds: float, budget: float, fits: bool
) -> None:
    VersionStore(tmp_path / "publish").publish(store_factory.fill)
    vectors = {"kind": "redis", "url": "redis://127.0.0.1:1/0", "timeout_seconds": seconds}
    args = GraphArgs.model_validate(
        {"publish_root": str(tmp_path / "publish"), "vectors": vectors, "timeout_seconds": budget}
    )
    if fits:
        build_app(args)
        build_fused_app(args)
        return
    for build in (build_app, build_fused_app):
        with pytest.raises(ConfigError, match=r"0\.4 s") as caught:
            build(args)
        assert "serve.timeout_seconds" in caught.value.todo


def test_the_defaults_of_server_and_graph_fit_together() -> None:
    AdapterSettings(kind="redis", url="redis://host").require_in_time(GraphSettings())


LOST = VectorsLostError("lost", where="there", todo="Export again.")


@pytest.mark.parametrize("kind", ["arrow", "lmdb"])
@pytest.mark.parametrize(
    "error", [LOST, StoreError("away", where="there", todo="Mend it."), IndexError(), OSError(5)]
)
def test_vectors_that_cannot_be_looked_up_cost_no_profile(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Literal["arrow", "lmdb"],
    error: Exception,
) -> None:
    vectors = AdapterSettings(kind=kind, url=str(tmp_path / "lmdb"))
    VersionStore(tmp_path / "publish", vectors).publish(store_factory.fill)
    lookup = Lookup(StoreAccess(publish_root=str(tmp_path / "publish"), vectors=vectors))
    before = asyncio.run(lookup.user("u0", 1))

    def fail(*_: object) -> None:
        raise error

    (version,) = lookup._opened.values()
    monkeypatch.setattr(version.users, "lookup", fail)
    after = asyncio.run(lookup.user("u0", 1))
    lookup.close()
    assert len(before.profile.item_ids) > 0
    assert after.profile == before.profile
    assert (after.vector, after.store_version) == (None, UserRecord().store_version)
    assert after.lack == ("vectors_lost" if error is LOST else "vectors_unavailable")


def test_damaged_vectors_of_one_user_keep_nobody_else_from_the_server() -> None:
    def damaged() -> None:
        raise LOST

    async def ask() -> int:
        server = VectorServer(AdapterSettings(kind="redis", url="redis://nowhere"))
        for _ in range(10):
            with pytest.raises(VectorsLostError):
                await server.run(damaged)
        return await server.run(lambda: 7)

    assert asyncio.run(ask()) == 7
