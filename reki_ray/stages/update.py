"""`reki update`: new events into a new published version, asking only about what has drifted.

    <workspace>/live/inbox/...             batches that came so far
    <workspace>/live/<number>/...          tables of the latest round, laid out as a run's
    <workspace>/live/round.json            that round; written last, so that a round is whole

The run itself, its samples and its model stay as they are: what comes after the training is never
seen by a measurement. An interrupted round starts over, with its answers
in the cache. Until it ends the old version is served.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import pyarrow as pa
from pydantic import BaseModel

from reki_ray.config import Arm, RekiConfig
from reki_ray.core.nodes import SharedWorkspace
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import ray_session
from reki_ray.core.workspace import CACHES, Workspace
from reki_ray.data.inbox import LIVE, BatchFiles, Inbox, write_round
from reki_ray.errors import ConfigError
from reki_ray.extraction.plan_table import keep
from reki_ray.schema import INTERACTIONS, OF_CLUSTER, SIDES
from reki_ray.stages import encode as encoding
from reki_ray.stages import extract as extraction
from reki_ray.stages.pipeline import fingerprints, require_done
from reki_ray.stages.publish import publish_compared, publish_version
from reki_ray.stages.recluster import SideUpdate, regroup
from reki_ray.store import admin as versions
from reki_ray.store.admin import Versions
from reki_ray.store.versions import store_of
from reki_ray.training.selection import choose_run, with_arm

_ROUND: Final = "round.json"
_NEEDED: Final = ("ingest", "cluster", "extract", "encode", "train")


class Update(BaseModel):
    """A finished round.

    Attributes:
        base: Fingerprint of the run that it builds on.
        batches: Names of all batches in it.
        events: Their events that the run did not begin with.
        quarantined: Unusable rows of the batch that began it.
        prompts: Prompts of its plan.
        prompts_asked: Those not answered before.
        dead: Subjects without an answer.
        changed: Whether this call did the round; false where it found it done.
    """

    number: int
    base: str
    batches: list[str]
    events: int
    quarantined: int
    users: SideUpdate
    items: SideUpdate
    prompts: int
    prompts_asked: int
    dead: int
    version: int
    changed: bool = True


def update(config: RekiConfig, files: BatchFiles | None, reporter: Reporter) -> Update:
    """Keep a batch, and bring the published version up to date.

    Args:
        files: Files of a batch; None takes up what was kept, as after a round that was cut off.

    Raises:
        ConfigError: The run is not trained, or another run holds its workspace.
        DataError: A file is missing or damaged, or too much of it is unusable; nothing is kept.
        EngineError: The engine is unavailable; the batch is kept, and the next call goes on.
        StoreError: What was built does not open; the served version is unchanged.
    """
    workspace = Workspace(config.root)
    live = Workspace(f"{workspace.location}/{LIVE}")
    with workspace.lock():
        wanted = fingerprints(config)
        require_done(_NEEDED, wanted, workspace, what="an update", until=_NEEDED[-1])
        inbox = Inbox(workspace, live)
        quarantined = 0
        if files is not None:
            batch = inbox.add(files, config.data)
            quarantined = batch.quarantined
            reporter.say(
                f"update: {batch.events} events kept, {batch.quarantined} rows quarantined"
                if batch.is_new
                else "update: the batch is there already"
            )
        base = wanted["train"]
        last = _last(live)
        if last is not None and (last.base, last.batches) == (base, inbox.batches()):
            reporter.say(f"update: nothing new since version v{last.version}")
            return last.model_copy(update={"changed": False})
        done = _round(config, workspace, live, last, base, quarantined, reporter)
        live.write_json(_ROUND, done.model_dump(mode="json"))
        for name in _names(live):
            if name.isdecimal() and int(name) != done.number:
                live.remove(name)
    return done


def latest_tables(workspace: Workspace, base: str) -> tuple[Workspace, pa.Table]:
    """Tables and interactions of the latest round over a run; of the run itself before the first.

    Args:
        base: Fingerprint of its training.

    Raises:
        ConfigError: Events were kept since that round.
        DataError: A table is missing or damaged.
    """
    live = Workspace(f"{workspace.location}/{LIVE}")
    last, inbox = _last(live), Inbox(workspace, live)
    batches: list[str] = [] if last is None or last.base != base else last.batches
    if inbox.batches() != batches:
        raise ConfigError(
            "events were kept that are in no version yet",
            where=live.root,
            todo="Run `reki update` first: versions with other histories do not compare.",
        )
    if last is None or not batches:
        return workspace, workspace.read_table(INTERACTIONS)
    return _tables(live, last.number), inbox.merged().history


def _round(
    config: RekiConfig,
    workspace: Workspace,
    live: Workspace,
    last: Update | None,
    base: str,
    quarantined: int,
    reporter: Reporter,
) -> Update:
    # A round over an earlier training is not a start for the next one.
    earlier = workspace if last is None or last.base != base else _tables(live, last.number)
    number = 1 if last is None else last.number + 1
    current = _tables(live, number)
    inbox = Inbox(workspace, live)
    batches, merged = inbox.batches(), inbox.merged()
    save_caches(current, workspace)  # of a round that was cut off
    current.remove("")
    workspace.link_caches(current)
    save_caches(workspace, current)
    write_round(merged, current)
    own = config.model_copy(update={"workspace": current.root})
    with _saving_caches(current, workspace), ray_session(config.ray):
        SharedWorkspace(workspace).require()
        sides = regroup(own, earlier, current, reporter)
        again = {
            OF_CLUSTER[side]: {cluster["cluster_id"] for cluster in sides[side].asked_again}
            for side in SIDES
        }
        keep(earlier, current, again)
        extracted = extraction.run(own, current, reporter).details
        encoding.run(own, current, reporter)
    chosen = choose_run(config, workspace)
    opened = publish_version(config, workspace, current, chosen, merged.history, reporter)
    publish_compared(config, workspace, current, merged.history, reporter)
    return Update(
        number=number,
        base=base,
        batches=batches,
        events=merged.events,
        quarantined=quarantined,
        prompts=extracted["prompts"],
        prompts_asked=extracted["prompts_asked"],
        dead=extracted["dead"],
        version=opened.manifest.version,
        users=sides["users"],
        items=sides["items"],
    )


def _last(live: Workspace) -> Update | None:
    """The latest whole round, whatever it builds on; None before the first."""
    return Update.model_validate(live.read_json(_ROUND)) if live.exists(_ROUND) else None


def _tables(live: Workspace, number: int) -> Workspace:
    return Workspace(f"{live.location}/{number:06d}")


@contextlib.contextmanager
def _saving_caches(current: Workspace, workspace: Workspace) -> Iterator[None]:
    try:
        yield
    finally:
        save_caches(current, workspace)


def save_caches(source: Workspace, target: Workspace) -> None:
    """Copy answers, vectors and imports that the target lacks, where they are not shared.

    A local round shares the run's by links; an object store has none, and copies by itself.
    """
    if source.is_local:
        return
    filesystem = source.filesystem
    for folder in CACHES:
        with source.guarded("read"):
            held = _files(source, folder)
            missing = sorted(held - _files(target, folder))
        with target.guarded("written"):
            for name in missing:
                filesystem.copy(source.path(folder, name), target.path(folder, name))


def _files(workspace: Workspace, folder: str) -> set[str]:
    base = workspace.path(folder)
    try:
        found = workspace.filesystem.find(base)
    except FileNotFoundError:
        return set()
    return {path.removeprefix(f"{base}/") for path in found}


def _names(workspace: Workspace) -> list[str]:
    """Names of what is directly in a workspace."""
    with workspace.guarded("read"):
        found = workspace.filesystem.ls(workspace.path("").rstrip("/"), detail=False)
    return [str(path).rstrip("/").rpartition("/")[2] for path in found]


def publish_arm(
    config: RekiConfig, workspace: Workspace, reporter: Reporter, arm: Arm | None, *, promote: bool
) -> Versions:
    """Publish a trained arm over the same tables as the latest version of the run.

    Args:
        arm: None takes that of `publish.arm`.

    Raises:
        ConfigError: The run is not trained, the arm is not one of its arms or cannot be served,
            another run holds the workspace, or events wait for `reki update`.
        DataError: A table is missing or damaged.
        StoreError: What was built does not open, or cannot be exported; the served version is
            unchanged.
    """
    if arm is not None:
        config = with_arm(config, arm)
    with workspace.lock():
        wanted = fingerprints(config)
        require_done(("train",), wanted, workspace, what="a version", until="train")
        tables, history = latest_tables(workspace, wanted["train"])
        chosen = choose_run(config, workspace)
        opened = publish_version(
            config, workspace, tables, chosen, history, reporter, promote=promote
        )
    done = f"arm {chosen.arm} is published as {opened.name}"
    done += " and served now" if promote else "; what is served stays"
    return versions.versions(store_of(config, workspace), done)
