"""What a graph has beyond versions: events, recent histories, experiments, exposures."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from deployments.gateway import Extensions
from deployments.messages import UserRecord
from deployments.schemas import EventItem
from deployments.served import Exposed
from deployments.versions import StoreAccess
from reki_ray.config import DataConfig, EventRule, RefreshConfig
from reki_ray.errors import RekiError
from reki_ray.online.event_log import Event, EventLog
from reki_ray.online.experiment import load_experiment
from reki_ray.online.exposures import ExposureLog
from reki_ray.online.folders import OnlineFolders
from reki_ray.online.privacy import open_hasher
from reki_ray.online.recent import RecentEvents, merge
from reki_ray.online.rules import EventRules, as_it_is
from reki_ray.store.contents import Profiles
from reki_ray.store.manifest import PROFILES_FILE

LOOK_SECONDS: Final = 0.2
"""Time between two looks at the event log: an event is in its user's history within a second."""

REPLAY_SECONDS: Final = 60.0
"""Longest time that a starting lookup reads the event log before it answers."""

MARGIN_SECONDS: Final = 86_400.0
"""An event may come so much later into a version than others of its time."""

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
        log.append([Event(**item.model_dump(), received_at=now) for item in items])

    def expose(shown: Exposed) -> None:
        exposures.append(
            request_id=shown.request_id,
            experiment=shown.experiment,
            variant=shown.variant,
            user_id=shown.user_id,
            item_ids=shown.item_ids,
        )

    return Extensions(
        append,
        partial(load_experiment, access.publish_root),
        expose,
        exposures.watch_drops,
        exposures.close,
    )


class RecentHistories:
    """Adds recent interactions to what a lookup knows; follows the event log in a thread.

    When it is made it has read the log to its end, so that a replica that starts does not answer
    from half of it; a log that takes longer than `REPLAY_SECONDS` is read on beside the answers.

    Args:
        recent: The log's latest events.
        history: Most interactions of a history.
    """

    def __init__(self, recent: RecentEvents, history: int) -> None:
        self._recent = recent
        self._history = history
        self._read, self._closing = threading.Event(), threading.Event()
        threading.Thread(target=self._follow, name="recent-events", daemon=True).start()
        if not self._read.wait(REPLAY_SECONDS):
            logger.warning("the event log is long: recent events are known little by little")

    def __call__(self, user_id: str, record: UserRecord) -> UserRecord:
        """What is known of a user, with recent interactions."""
        interactions = self._recent.of(user_id)
        if not interactions:
            return record
        profile = merge(record.profile, interactions, self._history)
        return dataclasses.replace(record, profile=profile, met=self._recent.met(user_id))

    def close(self) -> None:
        """End the thread."""
        self._closing.set()

    def _follow(self) -> None:
        told = ""
        while not self._closing.is_set():
            try:
                self._recent.refresh()
                told = ""
                self._read.set()
            except Exception as error:  # noqa: BLE001  # a folder that is mounted may come back
                if str(error) != told:
                    told = str(error)
                    logger.error("the event log cannot be read: %s", error)
            self._closing.wait(LOOK_SECONDS)


def open_recent(args: OnlineArgs, access: StoreAccess) -> RecentHistories:
    """Recent histories of a lookup replica, from the event log of all gateways."""
    rules = as_it_is if args.data is None else EventRules(args.rules, args.data).interaction
    recent = RecentEvents(
        OnlineFolders.beside(access.publish_root).events,
        interaction=rules,
        since=_held_until(access),
    )
    return RecentHistories(recent, args.history)


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
