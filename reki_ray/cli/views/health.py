"""The state of a workspace and the findings of `reki doctor`."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from reki_ray.cli.status import STALE_SECONDS, Activity, Status
from reki_ray.core.formats import duration

if TYPE_CHECKING:
    from reki_ray.cli.doctor import Finding
    from reki_ray.extraction.run_stats import Snapshot


def findings_table(findings: list[Finding]) -> Table:
    """List all checks of an installation."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for finding in findings:
        table.add_row("ok" if finding.ok else "WRONG", finding.check, finding.detail)
        if finding.todo:
            table.add_row("", "", f"-> {finding.todo}")
    return table


def status_view(status: Status) -> Group:
    """Show the stages of a workspace and what is running in it."""
    title = Text(f"workspace {status.workspace}")
    table = Table("stage", "state", title=title, title_justify="left")
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
        lines = [_activity_line(status.activity)]
        if status.activity.figures is not None:
            lines += _extraction_lines(status.activity.figures)
    return Group(table, Text("\n".join(lines)))


def show_states(states: Iterable[Status], *, as_json: bool) -> None:
    """Show states as they come: in place on a terminal, those that differ elsewhere."""
    console = Console()
    if as_json:
        for state in states:
            # Not through the console, which wraps lines.
            console.file.write(state.model_dump_json() + "\n")
            console.file.flush()
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for state in states:
                live.update(status_view(state), refresh=True)
    else:
        shown = ""
        for state in states:
            with console.capture() as capture:
                console.print(status_view(state))
            if capture.get() != shown:
                shown = capture.get()
                console.file.write(shown)
                console.file.flush()


def _idle_lines(status: Status) -> list[str]:
    """What is done and what comes next, if nothing is running."""
    missing = [stage.name for stage in status.stages if not stage.done]
    if not missing:
        last = max(stage.finished_at or 0.0 for stage in status.stages)
        lines = [f"All stages are done, the last one at {_time(last)}; nothing is running."]
    elif len(missing) == len(status.stages):
        lines = ["No stage is done yet, and nothing is running. Start with `reki run`."]
    else:
        pending = ", ".join(missing)
        lines = [f"Nothing is running. Not done yet: {pending}. `reki run` continues from there."]
    if status.report is not None:
        stale = "" if "report" not in missing else " (of an earlier run)"
        lines.append(f"Report{stale}: {status.report}")
    return lines


def _activity_line(activity: Activity) -> str:
    total = f" of {activity.total:,}" if activity.total is not None else ""
    rates = "".join(f", {v:,.0f} {k.replace('_', ' ')}/s" for k, v in activity.rates.items())
    left = f", about {duration(activity.seconds_left)} left" if activity.seconds_left else ""
    host = "" if activity.host in ("", socket.gethostname()) else f" on {activity.host}"
    silent = duration(activity.silent_seconds)
    if not activity.alive:
        state = f"; the process{host} is gone, last seen {silent} ago: `reki run` resumes the work"
    elif activity.silent_seconds > STALE_SECONDS:
        state = f"; last sign of life{host} {silent} ago"
    else:
        state = f"; running{host}"
    note = f", {activity.note}" if activity.note else ""
    if activity.run_id:
        state += f" (run {activity.run_id})"
    return f"{activity.label}: {activity.done:,}{total} {activity.unit}{note}{rates}{left}{state}"


def _extraction_lines(stats: Snapshot) -> list[str]:
    """Progress, speed and cost of the prompts."""
    share = "" if stats.cached_share is None else f", {stats.cached_share:.0%} of them cached"
    expected = stats.expected_cost
    until = "" if expected is None else f", about {expected:,.2f} {stats.currency} at the end"
    end = "" if stats.ends_at is None else f", ends about {_time(stats.ends_at)}"
    reasons = ", ".join(f"{problem} {n:,}" for problem, n in stats.quarantined.items())
    return [
        f"  prompts: {stats.answered:,} answered, {stats.dead:,} dead, {stats.left:,} left, "
        f"{stats.cache_hits:,} from the ledger{end}",
        f"  answers: {stats.asked_again:,} prompts retried, {stats.dead:,} quarantined"
        f"{f' ({reasons})' if reasons else ''}",
        f"  tokens: {stats.tokens_per_second_now:,.0f} generated/s in the last minute, "
        f"{stats.tokens_per_second:,.0f} overall; {stats.prompt_tokens:,} of prompts{share}",
        f"  cost: {stats.cost:,.2f} {stats.currency} so far{until}",
    ]


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
