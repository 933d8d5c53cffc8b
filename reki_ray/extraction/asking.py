"""Asking: one Ray Data pipeline from work units to the ledger, begun anew when it dies.

Answers go from the engine to the ledger inside the cluster; the driver sees counts alone, so
that its memory does not grow with the number of prompts. A work unit that is kept is never
asked again, whatever dies afterwards.
"""

from __future__ import annotations

import gc
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
from reki_ray.errors import EngineError, RekiError
from reki_ray.extraction.engines import Engine
from reki_ray.extraction.figures import Figures
from reki_ray.extraction.keeping import ANSWERED, DEAD, keep, questions_of
from reki_ray.extraction.pending import Pending, Unit, find_pending
from reki_ray.progress import Reporter, Task
from reki_ray.runtime import bounded, cause_of, last_line
from reki_ray.schema import ASKED_AT, GENERATED_TOKENS
from reki_ray.workspace import Workspace

if TYPE_CHECKING:
    from ray.data import Dataset

_POLL_SECONDS: Final = 1.0
_TASK_CPUS: Final = 0.25
"""Both ends of the pipeline mostly wait for storage, and share the CPU that the engines leave."""
_READERS_A_REPLICA: Final = 2


class Asking:
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
        figures: Figures,
        reporter: Reporter,
    ) -> None:
        self._workspace = workspace
        self._config = config
        self._engine = engine
        self._asking = asking
        self._figures = figures
        self._reporter = reporter
        self._first_call = math.inf
        self._last_kept = math.inf

    def pending(self) -> Pending:
        """What the plan asks and neither ledger nor this asking's failures settle."""
        (found,) = bounded([(find_pending, (self._workspace.location, self._asking))])
        pending: Pending = found
        return pending

    def run(self, pending: Pending) -> None:
        """Ask until nothing is left.

        A pipeline that dies, or loses a prompt, is followed by another over what is left then.

        Raises:
            RekiError: The engine refuses all work, as with a wrong key.
            EngineError: The engine died or lost prompts again and again without any progress,
                or nothing was finished for too long.
        """
        fruitless = 0
        label = "extract: asking"
        with self._reporter.task(label, total=pending.rows, unit="prompts") as task:
            task.snapshot = self._figures.snapshot
            while pending.rows:
                settled = task.done
                why = "the engine lost prompts"
                try:
                    for counts in self._units_done(pending, beat=task.advance):
                        self._count(counts, task)
                except _PipelineDiedError as died:
                    why = f"the engine failed: {died}"
                fruitless = 0 if task.done > settled else fruitless + 1
                left = self.pending()
                if fruitless > self._config.restarts and left.rows:
                    raise self._failure(why, left)
                if left.rows:
                    self._reporter.say(f"{label}: {why}; {left.rows} prompts are asked again")
                pending = left

    def _count(self, counts: dict[str, Any], task: Task) -> None:
        self._first_call = min(self._first_call, counts.pop(ASKED_AT))
        self._last_kept = time.time()
        self._figures.add(**counts)
        generated = counts[GENERATED_TOKENS]
        task.advance(counts[ANSWERED] + counts[DEAD], generated_tokens=generated)

    @property
    def seconds(self) -> float:
        """From the first call of the model to the last answer kept; infinite before both."""
        return max(self._last_kept - self._first_call, 1e-6)

    # --- one pipeline --------------------------------------------------------------------------

    def _units_done(
        self, pending: Pending, beat: Callable[[int], object]
    ) -> Iterator[dict[str, Any]]:
        """Counts of each kept block, as they come.

        The pipeline is read in a thread of its own, so that silence can be noticed.
        """
        done: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        stop = Event()
        pool = ThreadPoolExecutor(1, thread_name_prefix="extract")
        # The data set is in no frame but the reader's: a traceback that holds a dead pipeline
        # would hold its actors, and with them the CPUs that the next one needs.
        units = pending.units(self._config.unit_rows)
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
        reader: Future[_End],
        beat: Callable[[int], object],
    ) -> Iterator[dict[str, Any]]:
        patience = 60 * self._config.stall_minutes
        heard = time.monotonic()
        while True:
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
                        raise _PipelineDiedError(end.reason) from None
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

    def _pipeline(self, units: list[Unit]) -> Dataset:
        # Else Ray Data hides a wrong key or a full disk behind an exception of its own.
        ray.data.DataContext.get_current().raise_original_map_exception = True
        location = self._workspace.location
        questions = ray.data.from_items(
            [asdict(unit) for unit in units], override_num_blocks=len(units)
        ).map_batches(
            partial(questions_of, location=location),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_TASK_CPUS,
            # Reading ahead without bound would take the CPU from keeping what is answered.
            compute=TaskPoolStrategy(size=_READERS_A_REPLICA * self._config.max_replicas),
        )
        return self._engine.answer(questions).map_batches(
            partial(
                keep,
                location=location,
                asking=self._asking,
                engine=self._engine.name,
                model=self._engine.model,
                revision=self._engine.revision,
            ),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_TASK_CPUS,
        )

    # --- errors --------------------------------------------------------------------------------

    def _failure(self, why: str, left: Pending) -> EngineError:
        return EngineError(
            f"{why}; {left.rows} prompts are left",
            where=f"{self._engine.name}: {self._engine.model}",
            todo="What was answered is kept; correct the cause and run `reki extract` again.",
        )


class _PipelineDiedError(Exception):
    """The pipeline ended with an error that another one may not have."""


@dataclass(frozen=True)
class _End:
    """How a pipeline ended.

    Attributes:
        fatal: What no other pipeline would do better.
        reason: What it died of; empty where it came to its end.
    """

    fatal: RekiError | None = None
    reason: str = ""


def _read(dataset: Dataset, done: queue.SimpleQueue[dict[str, Any]], stop: Event) -> _End:
    blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    try:
        for block in blocks:
            for row in cast(pa.Table, block).to_pylist():
                done.put(row)
            if stop.is_set():
                break
    except ray.exceptions.RayError as error:
        # Only what it says leaves here, for the same reason as above.
        return _End(cause_of(error), last_line(error))
    return _End()
