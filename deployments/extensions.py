"""Events, experiments and exposures.

Scores do not depend on these: if a folder or file is unavailable, the graph serves without it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from deployments.graph_args import StoreAccess
from deployments.schemas import EventItem
from reki_ray.core.background import BackgroundThread
from reki_ray.errors import StoreError
from reki_ray.events.log import Event, EventLog
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.shipping import SHIP_SECONDS, Shipping, share_key, writer_name
from reki_ray.experiments.experiment import Experiment, load_experiment
from reki_ray.experiments.exposures import ExposureLog
from reki_ray.experiments.user_hash import open_hasher

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
        share_key(self._folders)
        hasher = open_hasher(self._folders.key)
        writer = writer_name(self._folders, self._replica)
        self._log = ExposureLog(self._folders.exposures, writer, hasher)
        self._opener.stop()


class EventSink:
    """The event log of a replica, opened at the first write."""

    def __init__(self, folders: OnlineFolders, replica: str) -> None:
        self._folders = folders
        self._replica = replica
        self._log: EventLog | None = None
        self._opening = threading.Lock()

    def append(self, items: Sequence[EventItem]) -> None:
        """Make events durable; blocks until they are on disk, and raises StoreError if it fails."""
        with self._opening:
            log = self._log = self._log or self._open()
        now = int(time.time())
        log.append([Event(**item.model_dump(), received_at=now) for item in items])

    def _open(self) -> EventLog:
        try:
            writer = writer_name(self._folders, self._replica)
        except OSError as error:
            raise StoreError(
                f"the log cannot be opened: {error.strerror or error}; nothing is acknowledged",
                where=str(self._folders.root),
                todo="Free disk space or correct the permissions, then send the same again.",
            ) from error
        return EventLog(self._folders.events, writer)


@dataclass(frozen=True)
class Extensions:
    """What a graph may offer besides scores."""

    append: Callable[[Sequence[EventItem]], None] | None = None
    experiment: Callable[[], Experiment | None] = lambda: None
    exposures: ExposureSink | None = None
    shipping: Shipping | None = None

    def close(self) -> None:
        """Write queued exposures, and ship what is left."""
        try:
            if self.exposures is not None:
                self.exposures.close()
        finally:
            if self.shipping is not None:
                self.shipping.close()


def open_extensions(
    access: StoreAccess, replica: str, ship_seconds: float = SHIP_SECONDS
) -> Extensions:
    """Open event log, exposures and experiment of a gateway replica, which writes its own files."""
    folders = OnlineFolders.beside(access.publish_root)
    shipping = Shipping(folders, ship_seconds)
    shipping.start()
    return Extensions(
        shipping=shipping,
        append=EventSink(folders, replica).append,
        experiment=partial(load_experiment, access.publish_root),
        exposures=ExposureSink(folders, replica),
    )
