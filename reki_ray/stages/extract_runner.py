"""Asking: one Ray Data pipeline from work units to the ledger, begun anew when it dies.

Answers go from the engine to the ledger inside the cluster; the driver sees counts alone, so
that its memory does not grow with the number of prompts. A work unit that is kept is never
asked again, whatever dies afterwards.
"""

from __future__ import annotations

import gc
import json
import math
import queue
import time
from collections.abc import Callable, Iterator
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
from reki_ray.core.progress import Reporter, Task
from reki_ray.core.ray_cluster import bounded, cause_of, last_line
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError, RekiError
from reki_ray.extraction.answer_sink import ANSWERED, DEAD, QUARANTINED, keep, questions_of
from reki_ray.extraction.engines import Engine
from reki_ray.extraction.engines.capacity import replicas
from reki_ray.extraction.engines.protocol import TASK_CPUS
from reki_ray.extraction.poison_prompts import PoisonBisector
from reki_ray.extraction.run_stats import RunStats, Snapshot
from reki_ray.extraction.work_units import PendingUnits, WorkUnit, find_pending, read_unit
from reki_ray.llm.outcome import Outcome, answer_table
from reki_ray.schema import ASKED_AT, GENERATED_TOKENS

if TYPE_CHECKING:
    from ray.data import Dataset

_LABEL: Final = "extract: asking"
_FAILED_START: Final = "creation task"
"""What Ray says of an actor whose constructor failed."""
_POLL_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 10.0
_READERS_A_REPLICA: Final = 2
_UNITS_TO_TELL: Final = 3


class ExtractRunner:
    """Asks everything that a plan still lacks.

    Args:
        workspace: Holds plan and ledger.
        config: Units, restarts and patience.
        engine: What answers.
        asking: Identity of this asking, from `pending.begin`.
        figures: Counts what is done.
        reporter: Shows it.
    """

    def __init__(
        self,
        workspace: Workspace,
        config: ExtractConfig,
        engine: Engine,
        asking: str,
        figures: RunStats,
        reporter: Reporter,
    ) -> None:
        self._workspace = workspace
        self._config = config
        self._engine = engine
        self._asking = asking
        self._figures = figures
        self._reporter = reporter
        self._keeping = partial(
            keep,
            location=workspace.location,
            asking=asking,
            engine=engine.name,
            model=engine.model,
            revision=engine.revision,
        )
        self._units = 0
        self._first_call = math.inf
        self._last_kept = math.inf

    def pending(self) -> PendingUnits:
        """What the plan asks and neither ledger nor this asking's failures settle."""
        (found,) = bounded([(find_pending, (self._workspace.location, self._asking))])
        pending: PendingUnits = found
        return pending

    def run(self, pending: PendingUnits) -> None:
        """Ask until nothing is left.

        A pipeline that dies, or loses a prompt, is followed by another over what is left then.

        Raises:
            RekiError: The engine refuses all work, as with a wrong key.
            EngineError: The engine died or lost prompts again and again without any progress,
                or nothing was finished for too long.
        """
        bisector = PoisonBisector(self._config.unit_rows, self._config.restarts)
        with self._reporter.task(_LABEL, total=pending.rows, unit="prompts") as task:
            task.snapshot = self._figures.snapshot
            while pending.rows:
                settled = task.done
                end = self._attempt(pending, bisector, task)
                pending = self.pending()
                if task.done > settled:
                    pending = self._bury(pending, bisector.answered(), bisector.reason, task)
                else:
                    others = pending.rows - bisector.suspects
                    if not bisector.died(others, end.reason, started=end.started):
                        raise self._failure(end.reason, pending)
                if 0 < pending.rows == bisector.suspects:
                    # Nothing is left whose answer would tell a broken prompt from a broken engine.
                    if not task.done + pending.hits:
                        raise self._failure(end.reason, pending)
                    pending = self._bury(pending, bisector.suspects, bisector.reason, task)

    def _attempt(self, pending: PendingUnits, bisector: PoisonBisector, task: Task) -> _PipelineEnd:
        """One pipeline over what may be asked now."""
        units = pending.units(self._config.unit_rows, skip=bisector.suspects, most=bisector.share)
        try:
            for counts in self._units_done(units, beat=task.advance):
                self._count(counts, task)
        except _PipelineDiedError as died:
            self._reporter.say(f"{_LABEL}: {died.end.reason}; retrying the missing prompts")
            return died.end
        return _PipelineEnd("the engine lost prompts")

    def _bury(self, pending: PendingUnits, count: int, reason: str, task: Task) -> PendingUnits:
        """Make the leading pending prompts dead letters, and look anew what is pending."""
        if not count:
            return pending
        units = pending.units(self._config.unit_rows, most=count)
        for counts in bounded((_bury_unit, (unit, reason, self._keeping)) for unit in units):
            self._count(counts, task)
        return self.pending()

    def _count(self, counts: dict[str, Any], task: Task) -> None:
        self._first_call = min(self._first_call, counts.pop(ASKED_AT))
        self._last_kept = time.time()
        self._figures.add(counts, json.loads(counts.pop(QUARANTINED)))
        generated = counts[GENERATED_TOKENS]
        task.advance(counts[ANSWERED] + counts[DEAD], generated_tokens=generated)
        self._units += 1
        if self._units == _UNITS_TO_TELL:
            self._tell_end()

    def _tell_end(self) -> None:
        """Say when it ends, as soon as that is more than a guess: the plan knew no unit yet."""
        found = Snapshot(**self._figures.snapshot())
        if found.seconds_left:
            self._reporter.say(
                f"{_LABEL}: {found.done:,} of {found.prompts:,} prompts done, at this rate about "
                f"{math.ceil(found.seconds_left / 60)} min left"
            )

    @property
    def seconds(self) -> float:
        """From the first call of the model to the last answer kept; infinite before both."""
        return max(self._last_kept - self._first_call, 1e-6)

    # --- one pipeline --------------------------------------------------------------------------

    def _units_done(
        self, units: list[WorkUnit], beat: Callable[[int], object]
    ) -> Iterator[dict[str, Any]]:
        """Counts of each kept block, as they come.

        The pipeline is read in a thread of its own, so that silence can be noticed.
        """
        done: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        stop = Event()
        pool = ThreadPoolExecutor(1, thread_name_prefix="extract")
        # The data set is in no frame but the reader's: a traceback that holds a dead pipeline
        # would hold its actors, and with them the CPUs that the next one needs.
        reader = pool.submit(_read, self._pipeline(units), done, stop)
        try:
            yield from self._listen(done, reader, beat)
        finally:
            stop.set()
            # A stuck pipeline ends with its Ray session: waiting for it here would hang.
            pool.shutdown(wait=False)
            gc.collect()

    def _listen(
        self,
        done: queue.SimpleQueue[dict[str, Any]],
        reader: Future[_PipelineEnd],
        beat: Callable[[int], object],
    ) -> Iterator[dict[str, Any]]:
        patience = 60 * self._config.stall_minutes
        heard = looked = time.monotonic()
        while True:
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                self._figures.resize(max(replicas(), self._config.min_replicas))
            finished = reader.done()  # asked before the queue: what it put is then there
            try:
                yield done.get(block=not finished, timeout=None if finished else _POLL_SECONDS)
                heard = time.monotonic()
            except queue.Empty:
                if finished:
                    end = reader.result()
                    if end.fatal is not None:
                        raise end.fatal from None
                    if end.reason:
                        raise _PipelineDiedError(end) from None
                    return
                beat(0)  # cost goes on while nothing is finished
                if time.monotonic() - heard > patience:
                    raise EngineError(
                        f"nothing was finished for {self._config.stall_minutes:g} minutes",
                        where=f"extract.stall_minutes, engine {self._engine.name}: "
                        f"{self._engine.model}",
                        todo="Look at the engine's logs in Ray's session folder; raise the limit "
                        "if the model loads for longer. What was answered is kept.",
                    ) from None

    def _pipeline(self, units: list[WorkUnit]) -> Dataset:
        # Else Ray Data hides a wrong key or a full disk behind an exception of its own.
        ray.data.DataContext.get_current().raise_original_map_exception = True
        location = self._workspace.location
        questions = ray.data.from_items(
            [asdict(unit) for unit in units], override_num_blocks=len(units)
        ).map_batches(
            partial(questions_of, location=location),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=TASK_CPUS,
            # Reading ahead without bound would take the CPU from keeping what is answered.
            compute=TaskPoolStrategy(size=_READERS_A_REPLICA * self._config.max_replicas),
        )
        return self._engine.answer(questions).map_batches(
            self._keeping,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=TASK_CPUS,
        )

    # --- errors --------------------------------------------------------------------------------

    def _failure(self, why: str, left: PendingUnits) -> EngineError:
        return EngineError(
            f"{why}; {left.rows} prompts are left",
            where=f"{self._engine.name}: {self._engine.model}",
            todo="What was answered is kept; correct the cause and run `reki extract` again.",
        )


@dataclass(frozen=True)
class _PipelineEnd:
    """How a pipeline ended.

    Attributes:
        reason: What it died of; empty where it came to its end.
        started: Whether its engine came up.
        fatal: What no other pipeline would do better.
    """

    reason: str = ""
    started: bool = True
    fatal: RekiError | None = None


class _PipelineDiedError(Exception):
    """The pipeline ended with an error that another one may not have."""

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
        # Only what it says leaves here, for the same reason as above.
        return _PipelineEnd(
            f"the engine failed: {last_line(error)}",
            started=_FAILED_START not in str(error),
            fatal=cause_of(error),
        )
    return _PipelineEnd()


@ray.remote
def _bury_unit(unit: WorkUnit, reason: str, keeping: partial[pa.Table]) -> dict[str, Any]:
    """Keep a reason for each prompt of a unit; returns counts as `keep`."""
    questions = read_unit(Workspace(keeping.keywords["location"]), unit)
    outcomes = [Outcome(None, f"asked alone, {reason}")] * questions.num_rows
    (counts,) = keeping(answer_table(questions, outcomes)).to_pylist()
    found: dict[str, Any] = counts
    return found
