"""The refresher: publishes accumulated events, in its own process next to the service."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from pydantic import BaseModel
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import last_line
from reki_ray.core.workspace import Workspace
from reki_ray.data.inbox import LIVE, BatchFiles, Inbox
from reki_ray.errors import EngineError
from reki_ray.events.batches import EventBatches
from reki_ray.events.event_mapping import EventRules
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.refresher import Refresher, RefreshState
from reki_ray.events.shipping import Shipping

NAME = "reki-refresher"

_logger = logging.getLogger(__name__)


Update = Callable[[RekiConfig, BatchFiles, Reporter], Any]
"""Publishes a batch of events like `reki_ray.stages.update.update`; the result has `version`."""


class RefreshStatus(BaseModel):
    """Status of a refresher."""

    waiting: int  # interactions that are not in a batch yet
    state: RefreshState | None  # persistent; None on standby or before the start


class RefresherActor:
    """A long-lived actor around a `Refresher`; `start` starts it.

    It works from its creation on, also after a restart. Failures are retried; if its thread ends
    unexpectedly, so does its process, which Ray restarts. A failed attempt is recorded, so that
    the next one waits. Relative paths of the configuration start at `folder`.
    """

    def __init__(self, config: RekiConfig, update: Update, folder: str) -> None:
        os.chdir(folder)
        self._refresher = build(config, update)
        self._stop = threading.Event()
        # A daemon must not keep the process alive.
        self._worker = threading.Thread(target=self._run, name=NAME, daemon=True)
        self._worker.start()

    def status(self) -> RefreshStatus:
        """Current status; answers during an update too."""
        return RefreshStatus(waiting=self._refresher.waiting, state=self._refresher.state)

    def stop(self) -> None:
        """Stop after a running update."""
        self._stop.set()
        self._worker.join()

    def _run(self) -> None:
        try:
            self._refresher.run(self._stop)
        except BaseException:
            _logger.critical("unexpected error in the refresher; restarting it", exc_info=True)
            logging.shutdown()
            os._exit(1)


def build(config: RekiConfig, update: Update) -> Refresher:
    """Build the refresher of a run: batches from its event log, published by `reki update`."""
    workspace = Workspace(config.root)
    inbox = Inbox(workspace, Workspace(f"{workspace.location}/{LIVE}"))
    rules = EventRules(config.refresh.events, config.data)
    batches = EventBatches(rules, config.data, inbox.known_items, inbox.holds)

    def apply(file: Path) -> int:
        try:
            done = update(config, BatchFiles(file), Reporter(workspace, quiet=True))
        except ray.exceptions.RayError as error:
            raise EngineError(
                f"the update was interrupted: {last_line(error)}",
                where="Ray",
                todo="It is retried automatically; if it keeps failing, read Ray's logs.",
            ) from error
        return int(done.version)

    folders = OnlineFolders.of(workspace.location)
    Shipping(folders, config.serve.ship_seconds).start()  # this node may have no gateway
    return Refresher(folders, config.refresh, batches, apply)


def start(config: RekiConfig, update: Update) -> Any:
    """Start the refresher on this node, or return the running one; it ends with this process.

    Ray is initialised, and `update` must be importable.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(RefresherActor).options(
        name=NAME,
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=here,
    )
    return actor.remote(config, update, os.getcwd())
