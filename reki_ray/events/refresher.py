"""Publishes accumulated events as new versions while the service runs.

    <workspace>/online/refresh/state.json              progress, written atomically
    <workspace>/online/refresh/events-<number>.parquet the pending batch

A batch is written, then recorded in the state, then passed to the update; the position in the log
advances only when its version is published. After an interruption the update is repeated with the
same file, and recognises a batch that it has already taken.

Where the workspace is a URL, the state is there too, so that a refresher on another node goes on
from it: it writes the pending batch again from the log.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

from filelock import FileLock, Timeout
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import BaseModel, ConfigDict, ValidationError

from reki_ray.config import RefreshConfig
from reki_ray.core import atomic
from reki_ray.core.ray_metrics import exporting
from reki_ray.core.storage import Storage
from reki_ray.errors import ConfigError, EngineError, RekiError, StoreError
from reki_ray.events.batches import EventBatches, is_whole
from reki_ray.events.log import Event, EventReader
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.segments import PATIENCE_SECONDS
from reki_ray.events.shipping import bring_once, not_brought, prune_log

_logger = logging.getLogger(__name__)

Apply = Callable[[Path], int]
"""Publishes a file of events and returns its version; raises a `RekiError`."""

Outcome = Literal["standby", "idle", "failed", "refreshed"]

_STATE: Final = "state.json"
_LOCK: Final = ".lock"
_DAY: Final = 86_400.0


class PendingBatch(BaseModel):
    """A batch that is written but not yet published, and the position in the log after it."""

    model_config = ConfigDict(frozen=True)

    file: str
    events: int
    place: dict[str, int]


class RefreshState(BaseModel):
    """Persistent state of a refresher.

    Attributes:
        place: Published position in the log: bytes of each segment.
        events: Interactions published so far.
        attempts: Updates begun so far.
        refreshes: Updates that published.
        failures_in_row: Attempts since the last success; counted when an attempt begins, so that
            one that kills the process is not repeated at once.
        last_at: Time of the last refresh, or of the start, seconds since the epoch.
    """

    model_config = ConfigDict(frozen=True)

    place: dict[str, int] = {}
    pending: PendingBatch | None = None
    batches: int = 0
    events: int = 0
    attempts: int = 0
    refreshes: int = 0
    failures_in_row: int = 0
    last_error: str | None = None
    last_version: int | None = None
    last_at: float
    next_attempt_at: float = 0.0

    @property
    def failures(self) -> int:
        """Attempts that published nothing, including the current one."""
        return self.attempts - self.refreshes


class Refresher:
    """Follows the event log and publishes batches, one at a time.

    One thread calls `run` or `step`. Of several refreshers of a workspace one holds the lock, and
    the others are on standby.
    """

    def __init__(
        self,
        folders: OnlineFolders,
        config: RefreshConfig,
        batches: EventBatches,
        apply: Apply,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folders = folders
        self._config = config
        self._batches = batches
        self._apply = apply
        self._clock = clock
        self._waiting: list[Event] = []
        self._reader = EventReader(folders.events)
        self._state: RefreshState | None = None
        atomic.make_folder(folders.refresh)
        # Held while this refresher lives; the system releases it when the process dies.
        self._lock = FileLock(folders.refresh / _LOCK, thread_local=False)
        storage = folders.storage
        self._shared = None if storage is None else Storage(f"{storage.root}/refresh")
        self._shared_lock = contextlib.ExitStack()

    @property
    def state(self) -> RefreshState | None:
        """Current state; None on standby. Thread-safe."""
        return self._state

    @property
    def waiting(self) -> int:
        """Interactions read but not in a batch yet."""
        return len(self._waiting)

    def collect(self) -> Iterator[Metric]:
        """Metrics of the state, none on standby. Thread-safe."""
        state = self._state
        if state is None:
            return
        yield GaugeMetricFamily(
            "reki_refresh_waiting_events", "Events that are not published yet.", self.waiting
        )
        yield GaugeMetricFamily(
            "reki_refresh_last_timestamp_seconds", "Last refresh, Unix time.", state.last_at
        )
        yield CounterMetricFamily("reki_refresh_attempts", "Updates begun.", state.attempts)
        yield CounterMetricFamily("reki_refreshes", "Updates that published.", state.refreshes)
        yield CounterMetricFamily("reki_refresh_events", "Events published.", state.events)

    def run(self, stop: threading.Event) -> None:
        """Refresh until stopped."""
        try:
            with exporting("export-refresh", self.collect):
                while not stop.wait(self._config.poll_seconds):
                    self.step()
        finally:
            self.close()

    def close(self) -> None:
        """Let another refresher take over."""
        self._state = None
        self._waiting.clear()
        self._release()

    def step(self) -> Outcome:
        """Read the log, and refresh if due; failures are logged, counted and retried later."""
        try:
            state = self._state or self._begin()
            if state is None:
                return "standby"
            pending = state.pending
            if pending and not self._backs_off(state) and not is_whole(self._file(pending)):
                state = self._resume(state)
            self._read()
            return self._refresh_if_due(state)
        except Exception as error:  # noqa: BLE001  # the last catch: retried later
            self._failed(error)
            return "failed"

    def _backs_off(self, state: RefreshState) -> bool:
        """Whether it is too early for an attempt."""
        # A time further ahead than any wait comes from a wrong clock.
        return 0 < state.next_attempt_at - self._clock() <= self._config.max_backoff_seconds

    def _begin(self) -> RefreshState | None:
        try:
            self._lock.acquire(timeout=0)
            if self._shared is not None:
                self._shared_lock.enter_context(self._shared.lock())
        except (Timeout, ConfigError):
            self._lock.release()
            return None
        atomic.remove_scratch(self._folders.refresh)
        return self._resume(self._load())

    def _release(self) -> None:
        try:
            self._shared_lock.close()
        finally:
            self._lock.release()

    def _resume(self, state: RefreshState) -> RefreshState:
        """Read the log from a state on; events of a lost or damaged batch are read again."""
        if state.pending is not None and not is_whole(self._file(state.pending)):
            _logger.warning("%s is missing or damaged: rereading its events", state.pending.file)
            state = state.model_copy(update={"pending": None})
        place = state.place if state.pending is None else state.pending.place
        bring_once(self._folders)
        if missing := not_brought(self._folders, "events", place):
            raise EngineError(
                f"{len(missing)} segments of the log are not on this node yet",
                where=str(self._folders.events),
                todo="They are on their way; the refresher tries again.",
            )
        self._reader = EventReader(self._folders.events, place, patience=PATIENCE_SECONDS)
        self._waiting.clear()
        self._state = state
        return state

    def _read(self) -> None:
        if len(self._waiting) >= self._config.max_events:
            return
        for event in self._reader.read():
            if self._batches.counts(event):
                self._waiting.append(event)
                if len(self._waiting) >= self._config.max_events:
                    return

    def _refresh_if_due(self, state: RefreshState) -> Outcome:
        if self._backs_off(state):
            return "idle"
        # A last time in the future comes from a wrong clock.
        late = not 0 <= self._clock() - state.last_at < self._config.every_seconds
        full = len(self._waiting) >= min(self._config.min_events, self._config.max_events)
        if state.pending is None and (full or (late and self._waiting)):
            state = self._collect(state)
        if state.pending is None:
            return "idle"
        self._publish(state, state.pending)
        return "refreshed"

    def _collect(self, state: RefreshState) -> RefreshState:
        """Write the waiting events as a batch, and record it."""
        number = state.batches + 1
        place = self._reader.place
        file = f"events-{number:06d}.parquet"
        rows = self._batches.write(self._waiting, self._folders.refresh / file)
        if rows:
            pending = PendingBatch(file=file, events=rows, place=place)
            state = self._keep(state, pending=pending, batches=number)
        else:
            state = self._keep(state, place=place, last_at=self._clock())
        self._waiting.clear()
        return state

    def _publish(self, state: RefreshState, pending: PendingBatch) -> None:
        in_row = state.failures_in_row + 1
        state = self._keep(
            state,
            attempts=state.attempts + 1,
            failures_in_row=in_row,
            next_attempt_at=self._clock() + self._backoff(in_row),
        )
        version = self._apply(self._file(pending))
        self._keep(
            state,
            place=pending.place,
            pending=None,
            events=state.events + pending.events,
            refreshes=state.refreshes + 1,
            failures_in_row=0,
            last_error=None,
            last_version=version,
            last_at=self._clock(),
            next_attempt_at=0.0,
        )
        _logger.info("published %d events as version v%d", pending.events, version)
        self._clean_up(pending)

    def _clean_up(self, done: PendingBatch) -> None:
        try:
            self._file(done).unlink(missing_ok=True)
            age = self._config.keep_days * _DAY
            prune_log(self._folders, "events", done.place, age)
            prune_log(self._folders, "exposures", None, age)
        except (
            OSError,
            EngineError,
        ) as error:  # the version is published; leftovers only take space
            _logger.warning("old events cannot be removed: %s", error)

    def _failed(self, error: Exception) -> None:
        expected = isinstance(error, RekiError | OSError)
        cause = None if expected else error
        _logger.warning("the refresh failed and will be retried: %s", error, exc_info=cause)
        state = self._state
        if state is None:  # not started: the state cannot be read
            self._release()
            return
        message = error.what if isinstance(error, RekiError) else str(error) or type(error).__name__
        wait = self._backoff(max(state.failures_in_row, 1))
        changes = {"last_error": message, "next_attempt_at": self._clock() + wait}
        try:
            state = self._keep(state, **changes)
        except (OSError, EngineError):  # the disk may be full: keep the state in memory
            state = self._state = state.model_copy(update=changes)
        if not expected:  # events may have been read but not put into a batch
            self._resume(state)

    def _backoff(self, failures: int) -> float:
        doubled = self._config.backoff_seconds * 2.0 ** min(failures - 1, 60)
        return min(doubled, self._config.max_backoff_seconds)

    def _load(self) -> RefreshState:
        path = self._folders.refresh / _STATE
        try:
            shared = self._shared
            content = path.read_bytes() if shared is None else shared.read_bytes(_STATE)
            return RefreshState.model_validate_json(content)
        except FileNotFoundError:
            return RefreshState(last_at=self._clock())
        except ValidationError as error:
            raise StoreError(
                f"the refresher's state is damaged: {error.error_count()} errors",
                where=str(path),
                todo="Restore it from a copy, or delete it: the whole event log is then processed "
                "again, which adds no duplicates.",
            ) from error

    def _keep(self, state: RefreshState, **changes: object) -> RefreshState:
        changed = state.model_copy(update=changes)
        content = changed.model_dump_json(indent=2).encode()
        if self._shared is None:
            atomic.replace_file(self._folders.refresh / _STATE, content)
        else:
            self._shared.write(_STATE, content)
        self._state = changed
        return changed

    def _file(self, pending: PendingBatch) -> Path:
        return self._folders.refresh / pending.file
