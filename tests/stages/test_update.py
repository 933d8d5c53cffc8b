"""`reki update` on a real Ray: new events become a new version, asking only about what drifted."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reki_ray import schema
from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import StageEntry, Workspace
from reki_ray.data.inbox import LIVE, BatchFiles, Inbox
from reki_ray.errors import ConfigError
from reki_ray.extraction.answer_cache import LEDGER
from reki_ray.extraction.plan_table import PLAN
from reki_ray.models import artifact as bundles
from reki_ray.retrieval.load import open_candidates
from reki_ray.stages import update as updates
from reki_ray.stages.pipeline import fingerprints, run_stages, select
from reki_ray.stages.update import Update, publish_arm, update
from reki_ray.store.version import StoreVersion
from reki_ray.store.versions import VersionStore
from tests.conftest import TinyConfig
from tests.support import store_factory

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

QUIET = Reporter(quiet=True)
LATER = 2_000_000
MINILM = 384

Configured = Callable[..., RekiConfig]


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one run that all tests start from is kept."""
    return tmp_path_factory.mktemp("update") / "encoded"


@pytest.fixture
def trained(
    tiny_config: TinyConfig, encoded: Path, workspace: Workspace, ray_local: None
) -> Configured:
    """Configuration of a run up to encode, with a random model in place of a trained one."""
    config = tiny_config()
    if not encoded.exists():
        run_stages(config, select(until="encode"), QUIET)
        shutil.copytree(workspace.local_path(), encoded)
    else:
        shutil.copytree(encoded, workspace.local_path())
    folder = "train/din-reki_c-0"
    bundle = store_factory.make_bundle(representation=MINILM)
    bundles.save(workspace.local_path(folder), bundle)
    workspace.write_json(f"{folder}/metrics.json", {"valid": {"auc": 0.7}})

    def configured(**drift: Any) -> RekiConfig:
        changed = tiny_config(cluster={**config.cluster.model_dump(mode="json"), "drift": drift})
        workspace.record("train", StageEntry(fingerprint=fingerprints(changed)["train"]))
        return changed

    return configured


def batch(folder: Path, name: str = "new") -> BatchFiles:
    """An old user who turns to horror, a new one, and a new item that both have seen."""
    rows = [["u0", "m999", 5, LATER]]
    rows += [["u0", f"m{item}", 5, LATER + item] for item in range(3, 60, 4)]
    rows += [[name, "m999", 5, LATER], [name, "m3", 5, LATER + 1]]
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["user_id", "item_id", "rating", "timestamp"], *rows])
    items = folder / f"{name}-items.csv"
    items.write_text("item_id,title,genre\nm999,Horror film 999,Horror\n")
    return BatchFiles(folder / f"{name}.csv", items)


def current(workspace: Workspace) -> StoreVersion:
    return VersionStore(workspace.local_path("publish")).open()


@pytest.mark.slow
def test_new_events_become_a_new_version_without_touching_the_run(
    trained: Configured, workspace: Workspace, tmp_path: Path
) -> None:
    config = trained()
    tables = [schema.INTERACTIONS, schema.CUTS, *schema.CLUSTERS.values(), PLAN, schema.KNOWLEDGE]
    before = [workspace.identify(table) for table in tables]
    asked = len(workspace.read_table(LEDGER))
    done = update(config, batch(tmp_path), QUIET)
    assert (done.users.new, done.items.new, done.events) == (1, 1, 18)
    assert [workspace.identify(table) for table in tables] == before
    assert len(workspace.read_table(LEDGER)) == asked + done.prompts_asked
    assert done.prompts_asked <= len(done.users.asked_again) + len(done.items.asked_again)
    version = current(workspace)
    assert version.manifest.version == done.version
    assert version.users is not None
    assert version.items is not None
    assert version.users.lookup(["new"])[1] == ["cluster"]
    assert version.items.lookup(["m999"])[1] == ["cluster"]
    assert "m999" in open_candidates(version).of("nobody", [("m0", 5.0)], 1000)
    [entry] = version.knowledge("items", "m999")
    assert entry.subject_kind == "item_cluster"
    profile = version.profile("u0")
    assert profile is not None
    assert profile.item_ids[-1] == "m59"
    again = update(config, batch(tmp_path), QUIET)
    assert (again.changed, again.version) == (False, done.version)
    beside = publish_arm(config, workspace, QUIET, None, promote=False)
    assert (beside.current, len(beside.versions)) == (done.version, 2)
    assert current(workspace).profile("u0") == profile
    other = VersionStore(workspace.local_path("publish")).open(beside.versions[-1].version)
    assert other.profile("u0") == profile
    Inbox(workspace, Workspace(workspace.local_path(LIVE))).add(
        batch(tmp_path, "later"), config.data
    )
    with pytest.raises(ConfigError, match="events were kept"):
        publish_arm(config, workspace, QUIET, None, promote=False)


@pytest.mark.slow
def test_only_clusters_that_drifted_are_asked_about_again(
    trained: Configured, workspace: Workspace, tmp_path: Path
) -> None:
    done = update(trained(moved_share=0, centre_shift=2), batch(tmp_path), QUIET)
    live = Workspace(workspace.local_path("live", f"{done.number:06d}"))
    kinds = {"user_cluster": done.users, "item_cluster": done.items}
    drifted = {
        (kind, one["cluster_id"]) for kind, side in kinds.items() for one in side.asked_again
    }
    assert drifted
    earlier, now = prompts(workspace), prompts(live)
    changed = {subject for subject, address in now.items() if earlier.get(subject) != address}
    assert changed == drifted
    for side in schema.SIDES:
        moved = changes(workspace, live, side)
        named = {name for kind, name in drifted if kind == schema.OF_CLUSTER[side]}
        assert moved == named


@pytest.mark.slow
def test_a_round_goes_on_from_the_one_before(
    trained: Configured, workspace: Workspace, tmp_path: Path
) -> None:
    config = trained()
    first = update(config, batch(tmp_path), QUIET)
    second = update(config, batch(tmp_path, "second"), QUIET)
    assert (second.number, second.users.new, second.items.new) == (2, 1, 0)
    assert second.version == first.version + 1
    folders = {path.name for path in workspace.local_path("live").iterdir()}
    assert folders == {"inbox", "000002", "round.json"}
    assert second.prompts_asked <= len(second.users.asked_again) + len(second.items.asked_again)


@pytest.mark.slow
def test_a_round_that_was_cut_off_is_done_anew_without_asking_again(
    trained: Configured, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trained(moved_share=0)

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(updates, "publish_version", killed)
        with pytest.raises(KeyboardInterrupt):
            update(config, batch(tmp_path), QUIET)
    asked = len(workspace.read_table(LEDGER))
    done: Update = update(config, None, QUIET)
    assert done.users.new == 1
    assert done.prompts_asked == 0
    assert len(workspace.read_table(LEDGER)) == asked
    assert current(workspace).manifest.version == done.version


def test_a_run_that_is_not_trained_is_not_updated(tiny_config: TinyConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an update needs stage ingest, which is not done"):
        update(tiny_config(), batch(tmp_path), QUIET)


def prompts(workspace: Workspace) -> dict[tuple[str, str], str]:
    """Address of the prompt of each subject."""
    return {
        (row[schema.SUBJECT_KIND], row[schema.SUBJECT_ID]): row[schema.PROMPT_HASH]
        for row in workspace.read_table(PLAN).to_pylist()
    }


def changes(before: Workspace, after: Workspace, side: schema.Side) -> set[str]:
    """Clusters that an id left or joined, and that still are there."""
    was, now = (
        {row[schema.ID]: row[schema.CLUSTER_ID] for row in one.read_table(table).to_pylist()}
        for one, table in ((before, schema.CLUSTERS[side]), (after, schema.CLUSTERS[side]))
    )
    found = {
        name
        for key, cluster in now.items()
        if was.get(key) != cluster
        for name in (cluster, was.get(key))
    }
    return {name for name in now.values() if name in found}
