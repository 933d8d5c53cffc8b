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
from reki_ray.extraction.figures import Snapshot
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
    figures: Snapshot | None = None
    """Figures of asking the LLM, as of the last sign of life; null for other work."""


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
            where=workspace.location,
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
    lines = [_sentence(status.activity)]
    if status.activity is not None and status.activity.figures is not None:
        lines += _figure_lines(status.activity.figures)
    return Group(table, Text("\n".join(lines)))


def _sentence(activity: Activity | None) -> str:
    if activity is None:
        return "Nothing is running."
    of = f" of {activity.total}" if activity.total is not None else ""
    rates = "".join(f", {v:,.0f} {k.replace('_', ' ')}/s" for k, v in activity.rates.items())
    left = f", about {activity.seconds_left:.0f} s left" if activity.seconds_left else ""
    state = "" if activity.alive else " — the process is gone; run the same command to resume"
    return f"{activity.label}: {activity.done}{of} {activity.unit}{rates}{left}{state}"


def _figure_lines(figures: Snapshot) -> list[str]:
    """Done, speed and cost of asking the LLM, a line each."""
    share = "" if figures.cached_share is None else f", {figures.cached_share:.0%} of them cached"
    expected = figures.expected_cost
    until = "" if expected is None else f", about {expected:,.2f} {figures.currency} at the end"
    end = ""
    if figures.ends_at is not None:
        end = f", ends about {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(figures.ends_at))}"
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
    if not workspace.exists(HEARTBEAT):
        return None
    beat = workspace.read_json(HEARTBEAT)
    if beat["finished"]:
        return None
    seconds = max(beat["updated_at"] - beat["started_at"], 1e-9)
    done, total = beat["done"], beat["total"]
    figures = Snapshot(**beat["figures"]) if beat.get("figures") else None
    left = seconds * (total - done) / done if total and done else None
    return Activity(
        label=beat["label"],
        done=done,
        total=total,
        unit=beat["unit"],
        rates={name: amount / seconds for name, amount in beat["counters"].items()},
        seconds=seconds,
        seconds_left=left if figures is None else figures.seconds_left,
        alive=_is_alive(beat["pid"], beat["updated_at"], local=workspace.is_local),
        figures=figures,
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
