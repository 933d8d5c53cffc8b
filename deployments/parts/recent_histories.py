"""Recent interactions from the event log, which a lookup adds to stored histories.

Scores do not depend on these: if the folder or a file is unavailable, the lookup answers without.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from typing import Final

from deployments.graph_args import OnlineArgs, StoreAccess
from deployments.parts.records import UserRecord
from reki_ray.core.background import BackgroundThread
from reki_ray.errors import RekiError
from reki_ray.events.event_mapping import EventRules, as_it_is
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.recent import RecentEvents, merge
from reki_ray.events.shipping import Shipping
from reki_ray.experiments.experiment import load_experiment
from reki_ray.store.manifest import PROFILES_FILE
from reki_ray.store.tables import Profiles

POLL_SECONDS: Final = 0.2
"""Time between two polls of the event log: an event is in its user's history within a second."""
REPLAY_SECONDS: Final = 60.0
"""Longest time that a starting lookup reads the event log before it answers."""
MARGIN_SECONDS: Final = 86_400.0
"""Delay with which an event may still enter a version."""

logger = logging.getLogger(__name__)


class RecentHistories:
    """Adds recent interactions to user records; follows the log of all gateways in a thread.

    The constructor waits until the log has been read, at most `REPLAY_SECONDS`, so that a starting
    replica does not answer from half of it.
    """

    def __init__(self, args: OnlineArgs, access: StoreAccess) -> None:
        self._args = args
        self._access = access
        self._recent: RecentEvents | None = None
        self._shipping: Shipping | None = None
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
        """Stop the threads."""
        self._follower.stop()
        if self._shipping is not None:
            try:
                self._shipping.close()  # whichever part of a node ends last ships what is left
            except (RekiError, OSError) as error:
                logger.warning("the next process of this node ships the last events: %s", error)

    def _follow(self) -> None:
        if self._recent is None:
            args = self._args
            rules = as_it_is if args.data is None else EventRules(args.rules, args.data).interaction
            folders = OnlineFolders.beside(self._access.publish_root)
            self._shipping = Shipping(folders, args.ship_seconds)
            try:
                self._shipping.step()  # events of other nodes are in the first answers too
            except (RekiError, OSError) as error:
                logger.warning("events of other nodes come later: %s", error)
            self._shipping.start()
            since = _held_until(self._access)
            self._recent = RecentEvents(folders.events, interaction=rules, since=since)
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
