"""How far a workspace is: the stages of the manifest and the heartbeat of a running one."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pydantic import BaseModel
from rich.console import Group
from rich.table import Table
from rich.text import Text

from reki_ray import pipeline
from reki_ray.config import load_config
from reki_ray.errors import ConfigError
from reki_ray.progress import HEARTBEAT
from reki_ray.workspace import Workspace

_STALE_SECONDS = 60.0


class StageStatus(BaseModel):
    """One stage of the manifest."""

    name: str
    done: bool
    seconds: float = 0.0
    rows_in: int = 0
    rows_out: int = 0
    dead: int = 0
    skipped: bool = False


class Activity(BaseModel):
    """What a running process works on."""

    label: str
    done: int
    total: int | None
    unit: str
    rates: dict[str, float]
    """Sum a second of each counter, as generated_tokens."""
    seconds: float
    seconds_left: float | None
    alive: bool
    """False where the process ended without finishing its work."""


class Status(BaseModel):
    """State of a workspace."""

    workspace: str
    stages: list[StageStatus]
    activity: Activity | None


def workspace_root(config: Path | None, workspace: str | None) -> str:
    """Root from either option.

    Raises:
        ConfigError: Neither is given.
    """
    if workspace is not None:
        return workspace
    if config is not None:
        return load_config(config).root
    raise ConfigError(
        "no workspace is named", where="command line", todo="Give --workspace DIR or --config FILE."
    )


def read(workspace: Workspace) -> Status:
    """State of a workspace, from its manifest and heartbeat.

    Raises:
        ConfigError: There is no such workspace.
    """
    if not workspace.exists():
        raise ConfigError(
            "there is no such workspace",
            where=workspace.root,
            todo="Start one with `reki run -c FILE`.",
        )
    entries = workspace.stages()
    stages = []
    for name in pipeline.STAGE_NAMES:
        entry = entries.get(name)
        stages.append(
            StageStatus(
                name=name,
                done=True,
                seconds=entry.seconds,
                rows_in=entry.rows_in,
                rows_out=entry.rows_out,
                dead=entry.dead,
                skipped=entry.skipped,
            )
            if entry
            else StageStatus(name=name, done=False)
        )
    return Status(workspace=workspace.root, stages=stages, activity=_activity(workspace))


def render(status: Status) -> Group:
    """The state as a table for the terminal."""
    table = Table(title=f"workspace {status.workspace}", title_justify="left")
    table.add_column("stage")
    table.add_column("state")
    for heading in ("seconds", "rows in", "rows out", "dead"):
        table.add_column(heading, justify="right")
    for stage in status.stages:
        state = ("skipped" if stage.skipped else "done") if stage.done else "-"
        figures = (
            (f"{stage.seconds:.1f}", f"{stage.rows_in}", f"{stage.rows_out}", f"{stage.dead}")
            if stage.done
            else ("", "", "", "")
        )
        table.add_row(stage.name, state, *figures)
    return Group(table, Text(_sentence(status.activity)))


def _sentence(activity: Activity | None) -> str:
    if activity is None:
        return "Nothing is running."
    of = f" of {activity.total}" if activity.total is not None else ""
    rates = "".join(f", {v:,.0f} {k.replace('_', ' ')}/s" for k, v in activity.rates.items())
    left = f", about {activity.seconds_left:.0f} s left" if activity.seconds_left else ""
    state = "" if activity.alive else " — the process is gone; run the same command to resume"
    return f"{activity.label}: {activity.done}{of} {activity.unit}{rates}{left}{state}"


def _activity(workspace: Workspace) -> Activity | None:
    if not workspace.exists(HEARTBEAT):
        return None
    beat = workspace.read_json(HEARTBEAT)
    if beat["finished"]:
        return None
    seconds = max(beat["updated_at"] - beat["started_at"], 1e-9)
    done, total = beat["done"], beat["total"]
    return Activity(
        label=beat["label"],
        done=done,
        total=total,
        unit=beat["unit"],
        rates={name: amount / seconds for name, amount in beat["counters"].items()},
        seconds=seconds,
        seconds_left=seconds * (total - done) / done if total and done else None,
        alive=_is_alive(beat["pid"], beat["updated_at"], local=workspace.is_local),
    )


def _is_alive(pid: int, updated_at: float, *, local: bool) -> bool:
    if not local:  # the process may run on another machine
        return time.time() - updated_at < _STALE_SECONDS
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
