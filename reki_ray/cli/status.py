"""How far a workspace is: the stages of the manifest and the heartbeat of a running one."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from rich.console import Group
from rich.table import Table
from rich.text import Text

from reki_ray.config import load_config
from reki_ray.core.formats import duration
from reki_ray.core.progress import HEARTBEAT, HEARTBEAT_SECONDS
from reki_ray.core.stage import STAGE_NAMES
from reki_ray.core.workspace import REPORT_HTML, Workspace
from reki_ray.errors import ConfigError, DataError
from reki_ray.extraction.run_stats import Snapshot

_STALE_SECONDS = 30 * HEARTBEAT_SECONDS
"""Silence after which a process of another machine is taken for gone."""


class StageStatus(BaseModel):
    """One stage of the manifest."""

    name: str
    done: bool
    seconds: float = 0.0
    rows_in: int = 0
    rows_out: int = 0
    dead: int = 0
    skipped: bool = False
    """Whether the last run found its output unchanged and kept it."""
    finished_at: float | None = None
    """Seconds since the epoch; null where it is not done."""


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
    host: str = ""
    """Machine that it runs on; empty where an older release wrote the heartbeat."""
    silent_seconds: float = 0.0
    """Time since its last sign of life."""
    figures: Snapshot | None = None
    """Figures of asking the LLM, as of the last sign of life; null for other work."""


class Status(BaseModel):
    """State of a workspace."""

    workspace: str
    stages: list[StageStatus]
    activity: Activity | None
    report: str | None = None
    """The page of the report; null where there is none."""


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
    if not workspace.filesystem.isdir(workspace.path()):
        raise ConfigError(
            "there is no such workspace",
            where=workspace.location,
            todo="Start one with `reki run -c FILE`.",
        )
    entries = workspace.stages()
    stages = []
    for name in STAGE_NAMES:
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
                finished_at=entry.finished_at,
            )
            if entry
            else StageStatus(name=name, done=False)
        )
    return Status(
        workspace=workspace.root,
        stages=stages,
        activity=_activity(workspace),
        report=f"{workspace.location}/{REPORT_HTML}" if workspace.exists(REPORT_HTML) else None,
    )


def render(status: Status) -> Group:
    """The state as a table for the terminal."""
    table = Table(title=Text(f"workspace {status.workspace}"), title_justify="left")
    table.add_column("stage")
    table.add_column("state")
    for heading in ("time", "rows in", "rows out", "dead", "finished"):
        table.add_column(heading, justify="right")
    for stage in status.stages:
        if stage.finished_at is None:
            table.add_row(stage.name, "-")
            continue
        table.add_row(
            stage.name,
            "unchanged" if stage.skipped else "done",
            duration(stage.seconds),
            f"{stage.rows_in:,}",
            f"{stage.rows_out:,}",
            f"{stage.dead:,}",
            _time(stage.finished_at),
        )
    if status.activity is None:
        lines = _idle_lines(status)
    else:
        lines = [_sentence(status.activity)]
        if status.activity.figures is not None:
            lines += _figure_lines(status.activity.figures)
    return Group(table, Text("\n".join(lines)))


def _idle_lines(status: Status) -> list[str]:
    """What is done and what comes next, where nothing is running."""
    missing = [stage.name for stage in status.stages if not stage.done]
    if not missing:
        last = max(stage.finished_at or 0.0 for stage in status.stages)
        lines = [f"All stages are done, the last one at {_time(last)}; nothing is running."]
    elif len(missing) == len(status.stages):
        lines = ["No stage is done yet, and nothing is running. Start with `reki run`."]
    else:
        left = ", ".join(missing)
        lines = [f"Nothing is running. Not done yet: {left}. `reki run` continues from there."]
    if status.report is not None:
        stale = "" if "report" not in missing else " (of an earlier run)"
        lines.append(f"Report{stale}: {status.report}")
    return lines


def _sentence(activity: Activity) -> str:
    of = f" of {activity.total:,}" if activity.total is not None else ""
    rates = "".join(f", {v:,.0f} {k.replace('_', ' ')}/s" for k, v in activity.rates.items())
    left = f", about {duration(activity.seconds_left)} left" if activity.seconds_left else ""
    host = "" if activity.host in ("", socket.gethostname()) else f" on {activity.host}"
    silent = duration(activity.silent_seconds)
    if not activity.alive:
        state = f"; the process{host} is gone, last seen {silent} ago: `reki run` resumes the work"
    elif activity.silent_seconds > _STALE_SECONDS:
        state = f"; last sign of life{host} {silent} ago"
    else:
        state = f"; running{host}"
    return f"{activity.label}: {activity.done:,}{of} {activity.unit}{rates}{left}{state}"


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _figure_lines(figures: Snapshot) -> list[str]:
    """Done, speed and cost of asking the LLM, a line each."""
    share = "" if figures.cached_share is None else f", {figures.cached_share:.0%} of them cached"
    expected = figures.expected_cost
    until = "" if expected is None else f", about {expected:,.2f} {figures.currency} at the end"
    end = ""
    if figures.ends_at is not None:
        end = f", ends about {_time(figures.ends_at)}"
    reasons = ", ".join(f"{problem} {n:,}" for problem, n in figures.quarantined.items())
    return [
        f"  prompts: {figures.answered:,} answered, {figures.dead:,} dead, {figures.left:,} left, "
        f"{figures.cache_hits:,} from the ledger{end}",
        f"  answers: {figures.asked_again:,} prompts asked once more, {figures.dead:,} quarantined"
        f"{f' ({reasons})' if reasons else ''}",
        f"  tokens: {figures.tokens_per_second_now:,.0f} generated/s in the last minute, "
        f"{figures.tokens_per_second:,.0f} over all; {figures.prompt_tokens:,} of prompts{share}",
        f"  cost: {figures.cost:,.2f} {figures.currency} so far{until}",
    ]


def _activity(workspace: Workspace) -> Activity | None:
    """What the heartbeat says; nothing if it cannot be read: the stages are known without it."""
    if not workspace.exists(HEARTBEAT):
        return None
    try:
        return _read_activity(workspace.read_json(HEARTBEAT))
    except (DataError, KeyError, TypeError, ValidationError):
        return None


def _read_activity(beat: dict[str, Any]) -> Activity | None:
    if beat["finished"]:
        return None
    seconds = max(beat["updated_at"] - beat["started_at"], 1e-9)
    done, total = beat["done"], beat["total"]
    figures = Snapshot(**beat["figures"]) if beat.get("figures") else None
    left = seconds * (total - done) / done if total and done else None
    silent = max(time.time() - beat["updated_at"], 0.0)
    host = beat.get("host", "")
    # A process id means something on its own machine alone.
    alive = _exists(beat["pid"]) if host == socket.gethostname() else silent < _STALE_SECONDS
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
        silent_seconds=silent,
        figures=figures,
    )


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
