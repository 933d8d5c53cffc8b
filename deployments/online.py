"""What a graph has beyond versions: events, recent histories, experiments, exposures.

Scores need none of it: where a folder or a file is out of reach, the graph serves without.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from deployments.gateway import Extensions
from deployments.lookup import AddRecent
from deployments.schemas import EventItem
from deployments.served import Exposed
from deployments.versions import StoreAccess
from reki_ray.background import BackgroundThread
from reki_ray.config import DataConfig, EventRule, RefreshConfig
from reki_ray.online.event_log import Event, EventLog
from reki_ray.online.experiment import load_experiment
from reki_ray.online.exposures import ExposureLog
from reki_ray.online.folders import OnlineFolders
from reki_ray.online.privacy import open_hasher
from reki_ray.online.recent import RecentEvents, merge
from reki_ray.online.rules import EventRules
from reki_ray.store.contents import Profile

LOOK_SECONDS: Final = 0.2
"""Time between two looks at the event log: an event is in its user's history within a second."""

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
        # An event of the future would stay the latest one of its user for good.
        log.append(
            [
                Event(**{**item.model_dump(), "timestamp": min(item.timestamp, now)})
                for item in items
            ]
        )


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


def open_recent(args: OnlineArgs, access: StoreAccess) -> AddRecent:
    """Follow the event log, in a thread, for the histories of a lookup replica."""
    counts = None if args.data is None else EventRules(args.rules, args.data).interaction
    recent = RecentEvents(OnlineFolders.beside(access.publish_root).events, interaction=counts)
    BackgroundThread("recent-events", recent.refresh, LOOK_SECONDS).start()

    def add(user_id: str, profile: Profile) -> Profile:
        events = recent.of(user_id)
        return merge(profile, events, args.history) if events else profile

    return add
