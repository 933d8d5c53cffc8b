"""State of a workspace: finished stages from the manifest, running work from the heartbeat."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from reki_ray.core.progress import HEARTBEAT, HEARTBEAT_SECONDS
from reki_ray.core.run_lock import process_exists
from reki_ray.core.stage import STAGE_NAMES
from reki_ray.core.workspace import REPORT_HTML, Workspace
from reki_ray.errors import ConfigError, DataError
from reki_ray.extraction.run_stats import Snapshot

STALE_SECONDS = 30 * HEARTBEAT_SECONDS
"""Without a heartbeat for this long, a process on another machine counts as gone."""

QUIET_SECONDS = 60.0
"""Without any work for this long, a run that is followed has ended."""
DONE_SECONDS = 5.0
"""The same once all stages are done."""


class StageStatus(BaseModel):
    """One stage of the manifest."""

    name: str
    done: bool
    seconds: float = 0.0
    rows_in: int = 0
    rows_out: int = 0
    dead: int = 0
    skipped: bool = False
    """Whether the last run kept its output unchanged."""
    finished_at: float | None = None
    """Seconds since the epoch; null if the stage is not done."""


class Activity(BaseModel):
    """Work of a running process."""

    label: str
    done: int
    total: int | None
    unit: str
    rates: dict[str, float]
    """Rate per second of each counter, as generated_tokens."""
    seconds: float
    seconds_left: float | None
    alive: bool
    """False if the process ended without finishing its work."""
    host: str = ""
    """Machine that it runs on; empty in heartbeats of older releases."""
    run_id: str = ""
    """As in the run's log lines; empty in heartbeats of older releases."""
    silent_seconds: float = 0.0
    """Time since its last heartbeat."""
    note: str = ""
    """What it waits for."""
    figures: Snapshot | None = None
    """Statistics of the extraction as of the last heartbeat; null for other work."""


class Status(BaseModel):
    """State of a workspace."""

    workspace: str
    stages: list[StageStatus]
    activity: Activity | None
    report: str | None = None
    """Path of the HTML report; null before the first."""


def read(workspace: Workspace) -> Status:
    """Read the state of a workspace.

    Raises:
        ConfigError: The workspace does not exist.
    """
    if not workspace.filesystem.isdir(workspace.path()):
        raise ConfigError(
            "there is no such workspace",
            where=workspace.location,
            todo="Start one with `reki run -c FILE`.",
        )
    entries = workspace.stages()
    fields = StageStatus.model_fields.keys() - {"name", "done"}
    return Status(
        workspace=workspace.root,
        stages=[
            StageStatus(
                name=name, done=True, **{key: getattr(entries[name], key) for key in fields}
            )
            if name in entries
            else StageStatus(name=name, done=False)
            for name in STAGE_NAMES
        ],
        activity=_activity(workspace),
        report=f"{workspace.location}/{REPORT_HTML}" if workspace.exists(REPORT_HTML) else None,
    )


def follow(workspace: Workspace) -> Iterator[Status]:
    """Read the state repeatedly until the run ends, or none has shown a sign of life for a while.

    Raises:
        ConfigError: The workspace does not exist.
    """
    quiet_since = time.monotonic()
    while True:
        status = read(workspace)
        yield status
        if status.activity is not None:
            if not status.activity.alive:
                return
            quiet_since = time.monotonic()
        # Between two pieces of work there is no heartbeat.
        done = all(stage.done for stage in status.stages)
        if time.monotonic() - quiet_since > (DONE_SECONDS if done else QUIET_SECONDS):
            return
        time.sleep(HEARTBEAT_SECONDS)


def _activity(workspace: Workspace) -> Activity | None:
    """Read the heartbeat; None if it is missing, finished or unreadable."""
    if not workspace.exists(HEARTBEAT):
        return None
    try:
        beat = workspace.read_json(HEARTBEAT)
        return None if beat["finished"] else _read_activity(beat)
    except (DataError, KeyError, TypeError, ValidationError):
        return None


def _read_activity(beat: dict[str, Any]) -> Activity:
    seconds = max(beat["updated_at"] - beat["started_at"], 1e-9)
    done, total = beat["done"], beat["total"]
    figures = Snapshot(**beat["figures"]) if beat.get("figures") else None
    left = seconds * (total - done) / done if total and done else None
    silent = max(time.time() - beat["updated_at"], 0.0)
    host = beat.get("host", "")
    # A process id only means something on its own machine.
    alive = process_exists(beat["pid"]) if host == socket.gethostname() else silent < STALE_SECONDS
    return Activity(
        label=beat["label"],
        done=done,
        total=total,
        unit=beat["unit"],
        rates={name: amount / seconds for name, amount in beat["counters"].items()},
        seconds=seconds,
        seconds_left=left if figures is None else figures.seconds_left,
        alive=alive,
        host=host,
        run_id=beat.get("run_id", ""),
        silent_seconds=silent,
        note=beat.get("note", ""),
        figures=figures,
    )
