"""The refresher: takes accumulated events in, in a process of its own beside the service."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

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
from reki_ray.events.paths import ONLINE, OnlineFolders
from reki_ray.events.refresher import Refresher, RefreshState

NAME = "reki-refresher"

_logger = logging.getLogger(__name__)


class _Updated(Protocol):
    @property
    def version(self) -> int:
        """Version that was published."""


Update = Callable[[RekiConfig, BatchFiles, Reporter], _Updated]
"""What takes a batch of events in, as `reki_ray.stages.update.update` does."""


class RefreshStatus(BaseModel):
    """How a refresher is doing.

    Attributes:
        waiting: Interactions that are not in a batch yet.
        state: What it remembers; None while it stands by or has not begun.
    """

    waiting: int
    state: RefreshState | None


class RefresherActor:
    """A long-lived actor around a `Refresher`, see there; `start` starts it.

    It works from its creation on, also after a restart. Failures are tried again; what ends its
    thread all the same ends its process, which Ray then restarts. An attempt that failed is
    remembered, so that the next one waits.

    Args:
        config: The run.
        update: Takes a batch in.
        folder: Working folder, which relative paths of the configuration begin at.
    """

    def __init__(self, config: RekiConfig, update: Update, folder: str) -> None:
        os.chdir(folder)
        self._refresher = build(config, update)
        self._stop = threading.Event()
        # A daemon: it must not keep the process from ending.
        self._worker = threading.Thread(target=self._run, name=NAME, daemon=True)
        self._worker.start()

    def status(self) -> RefreshStatus:
        """How it is doing; answers also during an update."""
        return RefreshStatus(waiting=self._refresher.waiting, state=self._refresher.state)

    def stop(self) -> None:
        """End after the update in work, if there is one."""
        self._stop.set()
        self._worker.join()

    def _run(self) -> None:
        ended = False
        try:
            self._refresher.run(self._stop)
            ended = True
        finally:
            if not ended:
                _logger.critical("the refresher has a defect and is restarted", exc_info=True)
                logging.shutdown()
                os._exit(1)


def build(config: RekiConfig, update: Update) -> Refresher:
    """The refresher of a run: batches from its event log, taken in by `reki update`.

    Args:
        config: The run; its workspace is local.
        update: Takes a batch in.

    Raises:
        ConfigError: The workspace is remote.
    """
    workspace = Workspace(config.root)
    inbox = Inbox(workspace, Workspace(workspace.local_path(LIVE)))
    rules = EventRules(config.refresh.events, config.data)
    batches = EventBatches(rules, config.data, inbox.known_items, inbox.holds)

    def apply(file: Path) -> int:
        try:
            done = update(config, BatchFiles(file), Reporter(workspace, quiet=True))
        except ray.exceptions.RayError as error:
            raise EngineError(
                f"the update was cut off: {last_line(error)}",
                where="Ray",
                todo="It is tried again; if it keeps failing, read Ray's logs.",
            ) from error
        return done.version

    return Refresher(OnlineFolders(workspace.local_path(ONLINE)), config.refresh, batches, apply)


def start(config: RekiConfig, update: Update) -> Any:
    """Start the refresher on this node, or find the one that runs.

    It ends with this process; Ray is initialised.

    Args:
        config: The run.
        update: Takes a batch in; pickled, so that it is a function of a module.

    Returns:
        Handle of the actor.
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
