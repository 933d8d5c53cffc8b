"""What a graph has beyond versions: events, recent histories, experiments, exposures.

Scores need none of it: where a folder or a file is out of reach, the graph serves without.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from deployments.flows.version_router import Exposed
from deployments.gateway import Extensions
from deployments.parts.records import UserRecord
from deployments.parts.version_cache import StoreAccess
from deployments.schemas import EventItem
from reki_ray.config import DataConfig, EventRule, RefreshConfig
from reki_ray.core.background import BackgroundThread
from reki_ray.errors import RekiError
from reki_ray.events.event_mapping import EventRules, as_it_is
from reki_ray.events.log import Event, EventLog
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.recent import RecentEvents, merge
from reki_ray.experiments.experiment import load_experiment
from reki_ray.experiments.exposures import ExposureLog
from reki_ray.experiments.user_hash import open_hasher
from reki_ray.store.manifest import PROFILES_FILE
from reki_ray.store.tables import Profiles

LOOK_SECONDS: Final = 0.2
"""Time between two looks at the event log: an event is in its user's history within a second."""

REPLAY_SECONDS: Final = 60.0
"""Longest time that a starting lookup reads the event log before it answers."""

MARGIN_SECONDS: Final = 86_400.0
"""An event may come so much later into a version than others of its time."""

OPEN_SECONDS: Final = 1.0
"""Time between two attempts to open the log of exposures; it doubles with each."""

logger = logging.getLogger(__name__)


class OnlineArgs(BaseModel):
    """Which events are interactions; the files lie in `online`, beside the published versions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: dict[str, EventRule] = Field(
        RefreshConfig().events, description="As `refresh.events` of the run."
    )
    data: DataConfig | None = Field(
        None, description="Section `data` of the run; null takes every event as it is."
    )
    history: int = Field(200, ge=1, description="Most interactions of a history with recent ones.")


class ExposureSink:
    """The log of exposures, opened in the background: without it answers are given all the same.

    Args:
        open_log: Opens the log.
    """

    def __init__(self, open_log: Callable[[], ExposureLog]) -> None:
        self._open_log = open_log
        self._log: ExposureLog | None = None
        self._missed = 0
        self._opener = BackgroundThread("open-exposures", self._open, OPEN_SECONDS)
        self._opener.start()

    @property
    def written(self) -> int:
        """Exposures that are on the disk."""
        return 0 if self._log is None else self._log.written

    @property
    def dropped(self) -> int:
        """Exposures that were not logged."""
        return self._missed + (0 if self._log is None else self._log.dropped)

    def append(self, shown: Exposed) -> None:
        """Queue an exposure; never waits, and never fails the answer that was given."""
        try:
            if self._log is None:
                self._missed += 1
                return
            self._log.append(
                request_id=shown.request_id,
                experiment=shown.experiment,
                variant=shown.variant,
                user_id=shown.user_id,
                item_ids=shown.item_ids,
            )
        except Exception as error:
            self._missed += 1
            logger.error("an exposure is lost", exc_info=error)

    def close(self) -> None:
        """Write what is queued."""
        self._opener.stop()
        if self._log is not None:
            self._log.close()

    def _open(self) -> None:
        self._log = self._open_log()
        self._opener.stop()


class EventSink:
    """The event log, opened when it is first written to.

    Args:
        folder: Segments of all processes.
        writer: Name of this process.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        self._folder = folder
        self._writer = writer
        self._log: EventLog | None = None
        self._opening = threading.Lock()

    def append(self, items: Sequence[EventItem]) -> None:
        """Make events durable; waits for the disk.

        Raises:
            StoreError: The disk refuses.
        """
        with self._opening:
            log = self._log = self._log or EventLog(self._folder, self._writer)
        now = int(time.time())
        log.append([Event(**item.model_dump(), received_at=now) for item in items])


def open_extensions(args: OnlineArgs, access: StoreAccess, replica: str) -> Extensions:
    """Event log, exposures and experiment of one gateway replica.

    Args:
        args: Nothing that a gateway needs.
        access: Where the versions are.
        replica: Name of the replica: each writes files of its own.
    """
    folders = OnlineFolders.beside(access.publish_root)
    exposures = ExposureSink(
        lambda: ExposureLog(folders.exposures, replica, open_hasher(folders.key))
    )
    return Extensions(
        append=EventSink(folders.events, replica).append,
        experiment=partial(load_experiment, access.publish_root),
        exposures=exposures,
    )


class RecentHistories:
    """Adds recent interactions to what a lookup knows; follows the event log in a thread.

    When it is made it has read the log to its end, so that a replica that starts does not answer
    from half of it; what takes longer than `REPLAY_SECONDS` goes on beside the answers.

    Args:
        open_recent: Opens the log's latest events; called in the thread, as it reads the disk.
        history: Most interactions of a history.
    """

    def __init__(self, open_recent: Callable[[], RecentEvents], history: int) -> None:
        self._open_recent = open_recent
        self._recent: RecentEvents | None = None
        self._history = history
        self._read = threading.Event()
        self._follower = BackgroundThread("recent-events", self._follow, LOOK_SECONDS)
        self._follower.start()
        if not self._read.wait(REPLAY_SECONDS):
            logger.warning(
                "the event log is long, or its disk slow: recent events are known little by little"
            )

    def __call__(self, user_id: str, record: UserRecord) -> UserRecord:
        """What is known of a user, with recent interactions."""
        recent = self._recent
        interactions = [] if recent is None else recent.of(user_id)
        if recent is None or not interactions:
            return record
        profile = merge(record.profile, interactions, self._history)
        return dataclasses.replace(record, profile=profile, met=recent.met(user_id))

    def close(self) -> None:
        """End the thread."""
        self._follower.stop()

    def _follow(self) -> None:
        if self._recent is None:
            self._recent = self._open_recent()
        self._recent.refresh()
        self._read.set()


def open_recent(args: OnlineArgs, access: StoreAccess) -> RecentHistories:
    """Recent histories of a lookup replica, from the event log of all gateways."""
    rules = as_it_is if args.data is None else EventRules(args.rules, args.data).interaction
    folder = OnlineFolders.beside(access.publish_root).events
    return RecentHistories(
        lambda: RecentEvents(folder, interaction=rules, since=_held_until(access)), args.history
    )


def _held_until(access: StoreAccess) -> float:
    """Time before which events are in the histories of all served versions; 0: not known.

    The histories themselves tell it: a version may be built long after they end.
    """
    try:
        store, experiment = access.store(), load_experiment(access.publish_root)
        variants = () if experiment is None else experiment.variants
        found = []
        for number in {access.wanted(), *(variant.version for variant in variants)}:
            layers = store.layers(number)
            profiles = Profiles([folder / PROFILES_FILE for folder, _ in layers])
            found.append(min(profiles.latest_time() or 0, layers[0][1].created_at))
        return min(found) - MARGIN_SECONDS
    except (RekiError, OSError) as error:
        logger.warning("the whole event log is read, as a version does not open: %s", error)
        return 0.0
