"""Progress of long work: a bar on a terminal, plain lines elsewhere, a heartbeat on disk.

`reki status` reads the heartbeat, also on another machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from reki_ray.core import run_log
from reki_ray.core.background import BackgroundThread
from reki_ray.core.workspace import Workspace

HEARTBEAT = "progress.json"
HEARTBEAT_SECONDS = 2.0
"""Time between two heartbeats."""

_LAST_BEAT_SECONDS = 60.0
"""Longest wait for a heartbeat being written: the final one must come after it."""

_LINE_SECONDS = 5.0
_STILL_SECONDS = 30.0
"""Time between two equal lines."""

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Task:
    """A piece of work with a known or unknown number of steps.

    Args:
        show: Shows the progress.
        total: Number of steps; None if unknown.
        unit: Unit of a step, as `prompts`.
        note: What the work waits for, shown after the steps.
        snapshot: Returns JSON-ready statistics for the heartbeat.
    """

    show: Callable[[Task], None]
    label: str
    total: int | None
    unit: str
    done: int = 0
    counters: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    note: str = ""
    snapshot: Callable[[], dict[str, Any]] | None = None

    def advance(self, steps: int = 1, **counters: float) -> None:
        """Count finished steps, and other amounts, as `generated_tokens=512`, shown as rates."""
        self.done += steps
        for name, amount in counters.items():
            self.counters[name] = self.counters.get(name, 0) + amount
        self.show(self)

    @property
    def rates(self) -> str:
        """The note and the rates of the counters, each after a comma."""
        seconds = max(time.time() - self.started, 1e-9)
        note = f", {self.note}" if self.note else ""
        return note + "".join(
            f", {total / seconds:,.0f} {name.replace('_', ' ')}/s"
            for name, total in self.counters.items()
        )


class Reporter:
    """Shows the progress of a run.

    Args:
        workspace: Gets the heartbeat; None writes none.
        console: For bars and lines; default: standard error.
        quiet: Show nothing; the heartbeat is still written.
    """

    def __init__(
        self,
        workspace: Workspace | None = None,
        *,
        console: Console | None = None,
        quiet: bool = False,
    ) -> None:
        self._workspace = workspace
        self._console = console or Console(stderr=True)
        self._quiet = quiet
        self._bar: Progress | None = None
        self._last_line = 0.0
        self._last_done = 0
        self._warned = False

    def say(self, line: str) -> None:
        """Print one plain line."""
        if not self._quiet:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def task(self, label: str, total: int | None = None, unit: str = "rows") -> Iterator[Task]:
        """Show the progress of the block, see `Task`."""
        task = Task(self._show, label, total, unit)
        self._last_line, self._last_done = time.monotonic(), 0
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal or self._quiet,
        )
        bar.add_task(label, total=total, rates="")
        with self._heartbeat(task), bar:
            self._bar = None if bar.disable else bar
            try:
                yield task
            finally:
                self._bar = None

    def _show(self, task: Task) -> None:
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=task.done, rates=task.rates)
        elif not self._quiet and now - self._last_line >= (
            _STILL_SECONDS if task.done == self._last_done else _LINE_SECONDS
        ):
            self._last_line, self._last_done = now, task.done
            total = f" of {task.total:,}" if task.total is not None else ""
            self.say(f"{task.label}: {task.done:,}{total} {task.unit}{task.rates}")

    @contextlib.contextmanager
    def _heartbeat(self, task: Task) -> Iterator[None]:
        """Write heartbeats during the block, also while no step finishes."""
        if self._workspace is None:
            yield
            return
        self._beat(task)
        beats = BackgroundThread("heartbeat", lambda: self._beat(task), HEARTBEAT_SECONDS)
        beats.start()
        try:
            yield
        finally:
            beats.stop(_LAST_BEAT_SECONDS)
            self._beat(task, finished=True)

    def _beat(self, task: Task, *, finished: bool = False) -> None:
        assert self._workspace is not None
        try:
            self._workspace.write_json(
                HEARTBEAT,
                {
                    "label": task.label,
                    "done": task.done,
                    "total": task.total,
                    "unit": task.unit,
                    "counters": dict(task.counters),
                    "note": task.note,
                    "started_at": task.started,
                    "updated_at": time.time(),
                    "finished": finished,
                    "host": run_log.node(),
                    "run_id": run_log.run_id(),
                    "pid": os.getpid(),
                    "figures": task.snapshot() if task.snapshot is not None else None,
                },
            )
        except Exception as error:  # noqa: BLE001  # storages raise errors of any type; the work goes on
            if not self._warned:
                self._warned = True
                logger.warning("progress cannot be written, the work goes on: %s", error)
