"""What a graph has beyond versions: events, recent histories, experiments, exposures."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from deployments.gateway import Extensions
from deployments.lookup import AddRecent
from deployments.schemas import EventItem
from deployments.served import Exposed
from deployments.versions import StoreAccess
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


def open_extensions(args: OnlineArgs, access: StoreAccess, replica: str) -> Extensions:
    """Event log, exposures and experiment of one gateway replica.

    Args:
        args: Nothing that a gateway needs.
        access: Where the versions are.
        replica: Name of the replica: each writes files of its own.
    """
    folders = OnlineFolders.beside(access.publish_root)
    log = EventLog(folders.events, replica)
    exposures = ExposureLog(folders.exposures, replica, open_hasher(folders.key))

    def append(items: Sequence[EventItem]) -> None:
        now = int(time.time())
        # An event of the future would stay the latest one of its user for good.
        log.append(
            [
                Event(**{**item.model_dump(), "timestamp": min(item.timestamp, now)})
                for item in items
            ]
        )

    def expose(shown: Exposed) -> None:
        exposures.append(
            request_id=shown.request_id,
            experiment=shown.experiment,
            variant=shown.variant,
            user_id=shown.user_id,
            item_ids=shown.item_ids,
        )

    return Extensions(append, partial(load_experiment, access.publish_root), expose)


def open_recent(args: OnlineArgs, access: StoreAccess) -> AddRecent:
    """Follow the event log, in a thread, for the histories of a lookup replica."""
    counts = None if args.data is None else EventRules(args.rules, args.data).interaction
    recent = RecentEvents(OnlineFolders.beside(access.publish_root).events, interaction=counts)
    threading.Thread(target=_follow, args=(recent,), name="recent-events", daemon=True).start()

    def add(user_id: str, profile: Profile) -> Profile:
        events = recent.of(user_id)
        return merge(profile, events, args.history) if events else profile

    return add


def _follow(recent: RecentEvents) -> None:
    told = ""
    while True:
        try:
            recent.refresh()
            told = ""
        except OSError as error:  # the folder may come back, as one that is mounted
            if str(error) != told:
                told = str(error)
                logger.error("the event log cannot be read: %s", error)
        time.sleep(LOOK_SECONDS)
