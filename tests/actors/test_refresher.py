"""The refresher actor on a real Ray: events of users become a new version."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from actors import refresher as refreshers
from actors.refresher import RefreshStatus
from reki_ray import schema
from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import StageEntry, Workspace
from reki_ray.events.log import Event, EventLog
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.refresher import Refresher
from reki_ray.models import artifact as bundles
from reki_ray.stages import update as updates
from reki_ray.stages.pipeline import fingerprints, run_stages, select
from reki_ray.store.versions import VersionStore
from tests.conftest import TinyConfig
from tests.support import store_factory

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local"), pytest.mark.slow]

LATER = 2_000_000
MINILM = 384


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one run that all tests start from is kept."""
    return tmp_path_factory.mktemp("refresher") / "encoded"


@pytest.fixture
def config(
    tiny_config: TinyConfig, encoded: Path, workspace: Workspace, ray_local: None
) -> RekiConfig:
    """A run up to encode, with a random model in place of a trained one."""
    del ray_local
    config = tiny_config(refresh={"min_events": 12, "poll_seconds": 0.1, "backoff_seconds": 0.1})
    if not encoded.exists():
        run_stages(config, select(until="encode"), Reporter(quiet=True))
        shutil.copytree(workspace.local_path(), encoded)
    else:
        shutil.copytree(encoded, workspace.local_path())
    folder = "train/din-reki_c-0"
    bundles.save(workspace.local_path(folder), store_factory.make_bundle(representation=MINILM))
    workspace.write_json(f"{folder}/metrics.json", {"valid": {"auc": 0.7}})
    workspace.record("train", StageEntry(fingerprint=fingerprints(config)["train"]))
    return config


@pytest.fixture
def start() -> Iterator[Callable[[RekiConfig], Any]]:
    """Starts the actor of a run, and ends it after the test."""
    started: list[Any] = []

    def begin(config: RekiConfig) -> Any:
        started.append(refreshers.start(config, updates.update))
        return started[-1]

    yield begin
    for actor in started:
        ray.kill(actor)


def log_of(workspace: Workspace) -> EventLog:
    return EventLog(OnlineFolders(workspace.local_path("online")).events, "gateway")


def likes(first: int, last: int) -> list[Event]:
    """A user whom the run does not know clicks on films, and on one that nobody knows."""
    known = [Event("new", f"m{n}", "click", LATER + n) for n in range(first, last)]
    return [*known, Event("new", "nobody knows", "click", LATER)]


def wait_for(actor: Any, refreshes: int) -> RefreshStatus:
    while True:  # the test's own time limit ends it
        status: RefreshStatus = ray.get(actor.status.remote())
        if status.state is not None and status.state.refreshes >= refreshes:
            return status
        time.sleep(0.1)


def test_events_become_versions_also_after_a_kill(
    config: RekiConfig, workspace: Workspace, start: Callable[[RekiConfig], Any]
) -> None:
    log = log_of(workspace)
    actor = start(config)
    log.append(likes(0, 12))
    status = wait_for(actor, 1)
    assert status.state is not None
    assert (status.state.events, status.state.failures) == (12, 0)
    version = VersionStore(workspace.local_path("publish")).open()
    assert version.manifest.version == status.state.last_version == 1
    profile = version.profile("new")
    assert profile is not None
    assert profile.item_ids == tuple(f"m{n}" for n in range(12))
    assert set(profile.ratings) == {4.0}
    ray.kill(actor, no_restart=False)
    log.append(likes(12, 30))
    status = wait_for(actor, 2)
    assert status.state is not None
    assert status.state.events == 30
    profile = VersionStore(workspace.local_path("publish")).open().profile("new")
    assert profile is not None
    assert profile.item_ids == tuple(f"m{n}" for n in range(30))


def test_an_update_that_failed_after_its_batch_was_kept_takes_no_event_in_twice(
    config: RekiConfig, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_of(workspace).append(likes(0, 12))
    refresher: Refresher = refreshers.build(config, updates.update)

    def broken(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(updates, "publish_version", broken)
        assert refresher.step() == "failed"
    while refresher.step() != "refreshed":
        time.sleep(0.05)
    live = workspace.local_path("live", "inbox", "interactions")
    assert len(list(live.iterdir())) == 1
    assert refresher.state is not None
    assert (refresher.state.failures, refresher.state.last_version) == (1, 1)
    assert updates.update(config, None, Reporter(quiet=True)).events == 12


def test_starting_twice_finds_the_one_that_runs(
    tiny_config: TinyConfig, start: Callable[[RekiConfig], Any]
) -> None:
    first, second = start(tiny_config()), start(tiny_config())
    assert first == second


def test_a_run_that_is_not_trained_is_a_failure_that_is_tried_again(
    tiny_config: TinyConfig, workspace: Workspace, start: Callable[[RekiConfig], Any]
) -> None:
    refresh = {"min_events": 1, "poll_seconds": 0.05, "backoff_seconds": 0.05}
    workspace.write_table(schema.ITEMS, store_factory.ITEMS_TABLE)
    log_of(workspace).append([Event("u0", "m1", "click", LATER)])
    actor = start(tiny_config(refresh=refresh))
    while True:
        state = ray.get(actor.status.remote()).state
        if state is not None and state.failures_in_row > 2:
            break
        time.sleep(0.05)
    assert "needs stage ingest" in state.last_error
    assert state.refreshes == 0
