"""Runs extraction: one Ray Data pipeline from work units to the answer cache, restarted if it dies.

Answers go from the engine to the cache inside the cluster; the driver sees only counts, so its
memory does not grow with the number of prompts. The prompts of a written unit are never sent again.
"""

from __future__ import annotations

import gc
import json
import math
import queue
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any, Final, cast

import pyarrow as pa
import ray
import ray.data
from ray.data import TaskPoolStrategy

from reki_ray.config import ExtractConfig
from reki_ray.core import ray_metrics
from reki_ray.core.progress import Reporter, Task
from reki_ray.core.ray_cluster import bounded, cause_of, last_line
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError, RekiError
from reki_ray.extraction import engine_speed
from reki_ray.extraction.answer_sink import ANSWERED, DEAD, QUARANTINED, questions_of, write_answers
from reki_ray.extraction.engines import Engine
from reki_ray.extraction.engines.protocol import TASK_CPUS, replicas, waits_for_node
from reki_ray.extraction.poison_prompts import PoisonBisector
from reki_ray.extraction.run_stats import RunStats, Snapshot
from reki_ray.extraction.work_units import PendingUnits, WorkUnit, find_pending, read_unit
from reki_ray.llm.outcome import Outcome, answer_table
from reki_ray.schema import ASKED_AT, GENERATED_TOKENS

if TYPE_CHECKING:
    from ray.data import Dataset

STATISTICS: Final = "extract/statistics.json"
"""Statistics of the last run with pending prompts, for runs in which every prompt is cached."""

_LABEL: Final = "extract: asking"
_FAILED_START: Final = "creation task"
"""Part of Ray's message about an actor whose constructor failed."""
_POLL_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 10.0
_READERS_PER_REPLICA: Final = 2
_UNITS_BEFORE_FORECAST: Final = 3


class ExtractRunner:
    """Answers all pending prompts of a plan.

    Args:
        attempt_id: From `work_units.begin`.
    """

    def __init__(
        self,
        workspace: Workspace,
        config: ExtractConfig,
        engine: Engine,
        attempt_id: str,
        stats: RunStats,
        reporter: Reporter,
    ) -> None:
        self._workspace = workspace
        self._config = config
        self._engine = engine
        self._attempt_id = attempt_id
        self._stats = stats
        self._reporter = reporter
        self._write = partial(
            write_answers,
            location=workspace.location,
            attempt_id=attempt_id,
            engine=engine.name,
            model=engine.model,
            revision=engine.revision,
        )
        self._units = 0
        self._first_call = math.inf
        self._last_kept = math.inf

    def pending(self) -> PendingUnits:
        """Prompts of the plan without an answer, and without a failure in this attempt."""
        pending: PendingUnits
        (pending,) = bounded([(find_pending, (self._workspace.location, self._attempt_id))])
        return pending

    def run(self, pending: PendingUnits) -> None:
        """Run pipelines until no prompt is pending; keep statistics and speed also on failure.

        A pipeline that dies or loses prompts is followed by another one over the pending prompts.

        Raises:
            RekiError: The engine refuses all work, for example because of a wrong key.
            EngineError: The engine keeps dying or losing prompts without progress, or nothing
                finished for too long.
        """
        started = time.monotonic()
        self._stats.start(total=pending.rows, hits=pending.hits)
        try:
            self._answer(pending)
        finally:
            self._keep_statistics(started)

    def _keep_statistics(self, started: float) -> None:
        # From the first call of the model to the last written answer.
        seconds = max(self._last_kept - self._first_call, 1e-6)
        statistics = self._stats.snapshot()
        snapshot = Snapshot(**{**statistics, "seconds": seconds})
        speed = engine_speed.observed_speed(self._config, snapshot)
        if speed is not None:
            engine_speed.remember(self._config, speed)
        statistics["model"] = self._engine.model
        statistics["tokens_per_second"] = round(statistics["generated_tokens"] / seconds, 2)
        # Time before the first call, in which the engine loads its model.
        statistics["start_seconds"] = round(time.monotonic() - started - seconds, 2)
        self._workspace.write_json(STATISTICS, statistics)

    def _answer(self, pending: PendingUnits) -> None:
        bisector = PoisonBisector(self._config.unit_rows, self._config.restarts)
        with self._reporter.task(_LABEL, total=pending.rows, unit="prompts") as task:
            task.snapshot = self._stats.snapshot
            while pending.rows:
                done = task.done
                end = self._attempt(pending, bisector, task)
                pending = self.pending()
                if task.done > done:
                    pending = self._bury(pending, bisector.answered(), bisector.reason, task)
                else:
                    others = pending.rows - bisector.suspects
                    if not bisector.died(others, end.reason, started=end.started):
                        raise self._failure(end.reason, pending)
                if 0 < pending.rows == bisector.suspects:
                    # No other prompt is left that could tell a broken prompt from a broken engine.
                    if not task.done + pending.hits:
                        raise self._failure(end.reason, pending)
                    pending = self._bury(pending, bisector.suspects, bisector.reason, task)

    def _attempt(self, pending: PendingUnits, bisector: PoisonBisector, task: Task) -> _PipelineEnd:
        """Run one pipeline over the prompts that the bisector allows."""
        units = pending.units(self._config.unit_rows, skip=bisector.suspects, most=bisector.share)
        try:
            for counts in self._units_done(units, task):
                self._count(counts, task)
        except _PipelineDiedError as died:
            ray_metrics.count("reki_extract_engine_failures")
            self._reporter.say(f"{_LABEL}: {died.end.reason}; retrying the missing prompts")
            return died.end
        return _PipelineEnd("the engine lost prompts")

    def _bury(self, pending: PendingUnits, count: int, reason: str, task: Task) -> PendingUnits:
        """Make the leading pending prompts dead letters; returns those still pending."""
        if not count:
            return pending
        units = pending.units(self._config.unit_rows, most=count)
        for counts in bounded((_bury_unit, (unit, reason, self._write)) for unit in units):
            self._count(counts, task)
        return self.pending()

    def _count(self, counts: dict[str, Any], task: Task) -> None:
        self._first_call = min(self._first_call, counts.pop(ASKED_AT))
        self._last_kept = time.time()
        ray_metrics.set_gauge("reki_extract_last_progress_timestamp_seconds", self._last_kept)
        self._stats.add(counts, json.loads(counts.pop(QUARANTINED)))
        generated = counts[GENERATED_TOKENS]
        task.advance(counts[ANSWERED] + counts[DEAD], generated_tokens=generated)
        self._units += 1
        if self._units == _UNITS_BEFORE_FORECAST:
            self._show_forecast()

    def _show_forecast(self) -> None:
        """Show the time left after the first units; the estimate before had no measured unit."""
        snapshot = Snapshot(**self._stats.snapshot())
        if snapshot.seconds_left:
            self._reporter.say(
                f"{_LABEL}: {snapshot.done:,} of {snapshot.prompts:,} prompts done, about "
                f"{math.ceil(snapshot.seconds_left / 60)} min left at this rate"
            )

    # --- one pipeline --------------------------------------------------------------------------

    def _units_done(self, units: list[WorkUnit], task: Task) -> Iterator[dict[str, Any]]:
        """Counts of each written block; a thread reads the pipeline, so that stalls are noticed."""
        done: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        stop = Event()
        pool = ThreadPoolExecutor(1, thread_name_prefix="extract")
        # Only the reader's frame holds the data set: a traceback that keeps a dead pipeline alive
        # keeps its actors, and the CPUs that the next one needs.
        reader = pool.submit(_read, self._pipeline(units), done, stop)
        try:
            yield from self._listen(done, reader, task)
        finally:
            stop.set()
            # A stuck pipeline ends with the Ray session; waiting for it would hang.
            pool.shutdown(wait=False)
            gc.collect()

    def _listen(
        self,
        done: queue.SimpleQueue[dict[str, Any]],
        reader: Future[_PipelineEnd],
        task: Task,
    ) -> Iterator[dict[str, Any]]:
        watch = _Watch(self._config, self._engine)
        while True:
            if watch.due():
                self._stats.resize(max(watch.look(), self._config.min_replicas))
                task.note = watch.note
            # Before reading the queue, so that its last item is not missed.
            finished = reader.done()
            try:
                counts = done.get(block=not finished, timeout=None if finished else _POLL_SECONDS)
            except queue.Empty:
                if finished:
                    end = reader.result()
                    if end.fatal is not None:
                        raise end.fatal from None
                    if end.reason:
                        raise _PipelineDiedError(end) from None
                    return
                task.advance(0)  # the cost grows even if nothing finishes
                watch.require_life()
            else:
                watch.saw_result()
                task.note = watch.note
                yield counts

    def _pipeline(self, units: list[WorkUnit]) -> Dataset:
        # Otherwise Ray Data wraps a wrong key or a full disk in its own exception.
        ray.data.DataContext.get_current().raise_original_map_exception = True
        location = self._workspace.location
        self._engine.expect(len(units))
        questions = ray.data.from_items(
            [asdict(unit) for unit in units], override_num_blocks=len(units)
        ).map_batches(
            partial(questions_of, location=location),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=TASK_CPUS,
            # Unbounded read-ahead would take the CPU from writing the answers.
            compute=TaskPoolStrategy(size=_READERS_PER_REPLICA * self._config.max_replicas),
        )
        return self._engine.answer(questions).map_batches(
            self._write, batch_size=None, batch_format="pyarrow", num_cpus=TASK_CPUS
        )

    # --- errors --------------------------------------------------------------------------------

    def _failure(self, why: str, left: PendingUnits) -> EngineError:
        return EngineError(
            f"{why}; {left.rows} prompts are left",
            where=f"{self._engine.name}: {self._engine.model}",
            todo="All answers so far are kept; correct the cause and run `reki extract` again.",
        )


class _Watch:
    """Patience with a pipeline: one for its start, while no engine is up, and one for its work."""

    def __init__(self, config: ExtractConfig, engine: Engine) -> None:
        self._config = config
        self._engine = engine
        self._up = False
        self._since = self._looked = time.monotonic()
        self._began = time.time()
        self._interval = min(_LOOK_SECONDS, 15 * min(config.stall_minutes, config.start_minutes))
        self.note = ""

    def due(self) -> bool:
        """Whether it is time for another look."""
        return time.monotonic() - self._looked > self._interval

    def look(self) -> int:
        """Number of engines that are up; notes what is waited for if there is none."""
        self._looked = time.monotonic()
        running = replicas(self._began)
        if (running > 0) != self._up:  # each change starts the other clock
            self._up, self._since = running > 0, self._looked
        self.note = "" if self._up else self._waiting()
        return running

    def saw_result(self) -> None:
        """A work unit finished."""
        self._since, self.note = time.monotonic(), ""

    def require_life(self) -> None:
        """Raise an error if nothing happened for longer than configured.

        Raises:
            EngineError: No engine started, or none finished a unit.
        """
        config, seconds = self._config, time.monotonic() - self._since
        key, limit = ("stall_minutes", config.stall_minutes)
        if not self._up:
            key, limit = ("start_minutes", config.start_minutes)
        if seconds <= 60 * limit:
            return
        what = "no prompt finished" if self._up else f"no engine ran, {self._missing()}"
        raise EngineError(
            f"{what} for {limit:g} minutes",
            where=f"extract.{key}, engine {self._engine.name}: {self._engine.model}",
            todo="Read the engine's logs in Ray's session folder, and those of the autoscaler if "
            "a node is missing; raise the limit if it takes longer. All answers so far are kept.",
        ) from None

    def _waiting(self) -> str:
        return f"{self._missing()}, {(time.monotonic() - self._since) / 60:.0f} min"

    def _missing(self) -> str:
        if not waits_for_node(self._engine.demand):
            return "waiting for an engine to start"
        return f"waiting for a {'GPU ' if self._engine.demand.get('GPU') else ''}node"


@dataclass(frozen=True)
class _PipelineEnd:
    """How a pipeline ended.

    Attributes:
        reason: Why it died; empty if it finished.
        started: Whether its engine started.
        fatal: An error that every other pipeline would meet too.
    """

    reason: str = ""
    started: bool = True
    fatal: RekiError | None = None


class _PipelineDiedError(Exception):
    """A pipeline ended with an error that another one may not meet."""

    def __init__(self, end: _PipelineEnd) -> None:
        super().__init__(end.reason)
        self.end = end


def _read(dataset: Dataset, done: queue.SimpleQueue[dict[str, Any]], stop: Event) -> _PipelineEnd:
    blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    try:
        for block in blocks:
            for row in cast(pa.Table, block).to_pylist():
                done.put(row)
            if stop.is_set():
                break
    except ray.exceptions.RayError as error:
        # Only its message leaves this frame, for the same reason as above.
        return _PipelineEnd(
            f"the engine failed: {last_line(error)}",
            started=_FAILED_START not in str(error),
            fatal=cause_of(error),
        )
    return _PipelineEnd()


@ray.remote
def _bury_unit(unit: WorkUnit, reason: str, write: partial[pa.Table]) -> dict[str, Any]:
    """Write a failure for each prompt of a unit; returns the counts of `write_answers`."""
    questions = read_unit(Workspace(write.keywords["location"]), unit)
    outcomes = [Outcome(None, f"asked alone, {reason}")] * questions.num_rows
    counts: dict[str, Any]
    (counts,) = write(answer_table(questions, outcomes)).to_pylist()
    return counts
