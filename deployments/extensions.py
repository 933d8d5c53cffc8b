"""Events, recent histories, experiments and exposures.

Scores do not depend on these: if a folder or file is unavailable, the graph serves without it.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from deployments.graph_args import OnlineArgs, StoreAccess
from deployments.parts.records import UserRecord
from deployments.schemas import EventItem
from reki_ray.core.background import BackgroundThread
from reki_ray.errors import RekiError
from reki_ray.events.event_mapping import EventRules, as_it_is
from reki_ray.events.log import Event, EventLog
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.recent import RecentEvents, merge
from reki_ray.experiments.experiment import Experiment, load_experiment
from reki_ray.experiments.exposures import ExposureLog
from reki_ray.experiments.user_hash import open_hasher
from reki_ray.store.manifest import PROFILES_FILE
from reki_ray.store.tables import Profiles

POLL_SECONDS: Final = 0.2
"""Time between two polls of the event log: an event is in its user's history within a second."""
REPLAY_SECONDS: Final = 60.0
"""Longest time that a starting lookup reads the event log before it answers."""
MARGIN_SECONDS: Final = 86_400.0
"""Delay with which an event may still enter a version."""
OPEN_SECONDS: Final = 1.0
"""Time between two attempts to open the exposure log; it doubles with each."""

logger = logging.getLogger(__name__)


class ExposureSink:
    """The exposure log of a replica, opened in the background: answers never wait for it."""

    def __init__(self, folders: OnlineFolders, replica: str) -> None:
        self._folders = folders
        self._replica = replica
        self._log: ExposureLog | None = None
        self._missed = 0
        self._opener = BackgroundThread("open-exposures", self._open, OPEN_SECONDS)
        self._opener.start()

    def counts(self) -> Mapping[str, int]:
        """Return the exposures by outcome: on disk, or lost."""
        written, dropped = (0, 0) if self._log is None else (self._log.written, self._log.dropped)
        return {"written": written, "dropped": self._missed + dropped}

    def append(
        self,
        request_id: str,
        experiment: str,
        variant: str,
        user_id: str,
        item_ids: Sequence[str],
    ) -> None:
        """Queue what a user was shown, without waiting or raising."""
        try:
            if self._log is None:
                self._missed += 1
                return
            self._log.append(
                request_id=request_id,
                experiment=experiment,
                variant=variant,
                user_id=user_id,
                item_ids=item_ids,
            )
        except Exception as error:
            self._missed += 1
            logger.error("lost an exposure", exc_info=error)

    def close(self) -> None:
        """Write queued exposures."""
        self._opener.stop()
        if self._log is not None:
            self._log.close()

    def _open(self) -> None:
        hasher = open_hasher(self._folders.key)
        self._log = ExposureLog(self._folders.exposures, self._replica, hasher)
        self._opener.stop()


class EventSink:
    """The event log of `writer` in `folder`, opened at the first write."""

    def __init__(self, folder: Path, writer: str) -> None:
        self._folder = folder
        self._writer = writer
        self._log: EventLog | None = None
        self._opening = threading.Lock()

    def append(self, items: Sequence[EventItem]) -> None:
        """Make events durable; blocks until they are on disk.

        Raises:
            StoreError: The disk fails.
        """
        with self._opening:
            log = self._log = self._log or EventLog(self._folder, self._writer)
        now = int(time.time())
        log.append([Event(**item.model_dump(), received_at=now) for item in items])


@dataclass(frozen=True)
class Extensions:
    """What a graph may offer besides scores."""

    append: Callable[[Sequence[EventItem]], None] | None = None
    experiment: Callable[[], Experiment | None] = lambda: None
    exposures: ExposureSink | None = None


def open_extensions(access: StoreAccess, replica: str) -> Extensions:
    """Open event log, exposures and experiment of a gateway replica, which writes its own files."""
    folders = OnlineFolders.beside(access.publish_root)
    return Extensions(
        append=EventSink(folders.events, replica).append,
        experiment=partial(load_experiment, access.publish_root),
        exposures=ExposureSink(folders, replica),
    )


class RecentHistories:
    """Adds recent interactions to user records; follows the log of all gateways in a thread.

    The constructor waits until the log has been read, at most `REPLAY_SECONDS`, so that a starting
    replica does not answer from half of it.
    """

    def __init__(self, args: OnlineArgs, access: StoreAccess) -> None:
        self._args = args
        self._access = access
        self._recent: RecentEvents | None = None
        self._replayed = threading.Event()
        self._follower = BackgroundThread("recent-events", self._follow, POLL_SECONDS)
        self._follower.start()
        if not self._replayed.wait(REPLAY_SECONDS):
            logger.warning(
                "the event log is long or its disk slow: recent events become visible gradually"
            )

    def __call__(self, user_id: str, record: UserRecord) -> UserRecord:
        """Return the record with the user's recent interactions."""
        recent = self._recent
        interactions = [] if recent is None else recent.of(user_id)
        if recent is None or not interactions:
            return record
        profile = merge(record.profile, interactions, self._args.history)
        return dataclasses.replace(record, profile=profile, met=recent.met(user_id))

    def close(self) -> None:
        """Stop the thread."""
        self._follower.stop()

    def _follow(self) -> None:
        if self._recent is None:
            args = self._args
            rules = as_it_is if args.data is None else EventRules(args.rules, args.data).interaction
            folder = OnlineFolders.beside(self._access.publish_root).events
            self._recent = RecentEvents(folder, interaction=rules, since=_held_until(self._access))
        self._recent.refresh()
        self._replayed.set()


def _held_until(access: StoreAccess) -> float:
    """Return the time before which all served versions contain the events; 0 if unknown.

    It comes from the histories: a version may be built long after they end.
    """
    try:
        store, experiment = access.store(), load_experiment(access.publish_root)
        variants = () if experiment is None else experiment.variants
        times = []
        for number in {access.wanted(), *(variant.version for variant in variants)}:
            layers = store.layers(number)
            profiles = Profiles([folder / PROFILES_FILE for folder, _ in layers])
            times.append(min(profiles.latest_time() or 0, layers[0][1].created_at))
        return min(times) - MARGIN_SECONDS
    except (RekiError, OSError) as error:
        logger.warning("reading the whole event log, as a version does not open: %s", error)
        return 0.0
