"""Accumulated events into new versions, again and again, while the service runs.

    <workspace>/online/refresh/state.json              how far it has come; written atomically
    <workspace>/online/refresh/events-<number>.parquet the batch in work

A batch is written, then named in the state, then given to the update, and the place in the log
moves only when its version is published. Whatever is cut off is done again with the same file,
which an update recognises: it takes in a batch once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from reki_ray.config import RefreshConfig
from reki_ray.core import atomic
from reki_ray.errors import RekiError, StoreError
from reki_ray.events.batches import EventBatches, is_whole
from reki_ray.events.log import Event, EventReader
from reki_ray.events.paths import OnlineFolders
from reki_ray.events.segment_reader import PATIENCE_SECONDS, prune

_logger = logging.getLogger(__name__)

Apply = Callable[[Path], int]
"""Takes in a file of events and returns the version that holds them; raises a `RekiError`."""

Outcome = Literal["standby", "idle", "failed", "refreshed"]

_STATE: Final = "state.json"
_LOCK: Final = ".lock"
_DAY: Final = 86_400.0


class PendingBatch(BaseModel):
    """A batch that is written and not yet taken in.

    Attributes:
        file: Its name in the refresher's folder.
        events: Its interactions.
        place: How far the log was read for it.
    """

    model_config = ConfigDict(frozen=True)

    file: str
    events: int
    place: dict[str, int]


class RefreshState(BaseModel):
    """What a refresher remembers.

    Attributes:
        place: How far the log is taken in: bytes of each segment.
        pending: The batch in work.
        batches: Batches begun so far.
        events: Interactions taken in so far.
        attempts: Updates begun so far.
        refreshes: Of these, those that published.
        failures_in_row: Attempts since the last one that published; an attempt counts from its
            beginning, so that one that kills the process is not repeated at once.
        last_error: What the last failure said; None after a success.
        last_version: Version published last; None before the first.
        last_at: Time of the last refresh, or of the beginning, seconds since the epoch.
        next_attempt_at: Nothing is tried before this time.
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
        """Attempts that published nothing, the present one among them."""
        return self.attempts - self.refreshes


class Refresher:
    """Follows the event log and has batches taken in, one at a time.

    One thread calls `run` or `step`. Of several refreshers of a workspace one holds the lock,
    the others stand by.

    Args:
        folders: Of the workspace.
        config: When to refresh, and how to wait after failures.
        batches: Writes events as a file.
        apply: Takes such a file in.
        clock: Seconds since the epoch.
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
        # Held as long as this refresher lives, and let go by the system when its process dies.
        self._lock = FileLock(folders.refresh / _LOCK, thread_local=False)

    @property
    def state(self) -> RefreshState | None:
        """What it remembers; None while another refresher holds the lock. Any thread may ask."""
        return self._state

    @property
    def waiting(self) -> int:
        """Interactions that were read and are not in a batch yet."""
        return len(self._waiting)

    def run(self, stop: threading.Event) -> None:
        """Refresh until told to stop."""
        try:
            while not stop.wait(self._config.poll_seconds):
                self.step()
        finally:
            self.close()

    def close(self) -> None:
        """Let another refresher take over."""
        self._state = None
        self._waiting.clear()
        self._lock.release()

    def step(self) -> Outcome:
        """Look at the log, and refresh if it is time.

        A failure is logged, counted and tried again later.
        """
        try:
            if self._state is None and not self._begin():
                return "standby"
            state = self._known()
            if not self._backs_off(state) and self._lacks_its_batch(state):
                self._resume(state)
            self._read()
            return self._refresh_if_due(self._known())
        except Exception as error:  # noqa: BLE001  # the last catch: it is tried again
            self._failed(error)
            return "failed"

    def _backs_off(self, state: RefreshState) -> bool:
        """Whether it is too early for an attempt."""
        # A time further ahead than any wait is of a clock that was wrong.
        return 0 < state.next_attempt_at - self._clock() <= self._config.max_backoff_seconds

    def _begin(self) -> bool:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        atomic.remove_scratch(self._folders.refresh)
        self._resume(self._load())
        return True

    def _resume(self, state: RefreshState) -> None:
        """Read the log from where a state has come; a lost or damaged batch is read again."""
        if self._lacks_its_batch(state):
            assert state.pending is not None
            _logger.warning("%s is gone or damaged: its events are read again", state.pending.file)
            state = state.model_copy(update={"pending": None})
        place = state.place if state.pending is None else state.pending.place
        self._reader = EventReader(self._folders.events, place, patience=PATIENCE_SECONDS)
        self._waiting.clear()
        self._state = state

    def _lacks_its_batch(self, state: RefreshState) -> bool:
        return state.pending is not None and not is_whole(self._file(state.pending))

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
        if state.pending is None:
            # A last time that is yet to come is of a clock that was wrong.
            late = not 0 <= self._clock() - state.last_at < self._config.every_seconds
            full = len(self._waiting) >= min(self._config.min_events, self._config.max_events)
            if not full and not (late and self._waiting):
                return "idle"
            state = self._collect(state)
            if state.pending is None:
                return "idle"
        self._take_in(state, state.pending)
        return "refreshed"

    def _collect(self, state: RefreshState) -> RefreshState:
        """Write what waits as a batch, and remember it."""
        number = state.batches + 1
        place = self._reader.place
        pending = PendingBatch(file=f"events-{number:06d}.parquet", events=0, place=place)
        rows = self._batches.write(self._waiting, self._file(pending))
        if rows:
            pending = pending.model_copy(update={"events": rows})
            state = self._keep(state, pending=pending, batches=number)
        else:
            state = self._keep(state, place=place, last_at=self._clock())
        self._waiting.clear()
        return state

    def _take_in(self, state: RefreshState, pending: PendingBatch) -> None:
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
        _logger.info("%d events are in version v%d", pending.events, version)
        self._tidy(pending)

    def _tidy(self, done: PendingBatch) -> None:
        try:
            self._file(done).unlink(missing_ok=True)
            age = self._config.keep_days * _DAY
            prune(self._folders.events, done.place, age)
            prune(self._folders.exposures, None, age)
        except OSError as error:  # the version stands; what is left over costs only room
            _logger.warning("old events cannot be removed: %s", error)

    def _failed(self, error: Exception) -> None:
        expected = isinstance(error, RekiError | OSError)
        _logger.warning(
            "the refresh failed and is tried again later: %s",
            error,
            exc_info=None if expected else error,
        )
        state = self._state
        if state is None:  # not even begun: the state cannot be read
            self._lock.release()
            return
        said = error.what if isinstance(error, RekiError) else str(error) or type(error).__name__
        wait = self._backoff(max(state.failures_in_row, 1))
        changes = {"last_error": said, "next_attempt_at": self._clock() + wait}
        try:
            self._keep(state, **changes)
        except OSError:  # the disk is full, perhaps the very failure: memory must do
            self._state = state.model_copy(update=changes)
        if not expected:  # an event may have been read and be in no batch
            self._resume(self._known())

    def _backoff(self, failures: int) -> float:
        doubled = self._config.backoff_seconds * 2.0 ** min(failures - 1, 60)
        return min(doubled, self._config.max_backoff_seconds)

    def _known(self) -> RefreshState:
        assert self._state is not None
        return self._state

    def _load(self) -> RefreshState:
        path = self._folders.refresh / _STATE
        try:
            return RefreshState.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return RefreshState(last_at=self._clock())
        except ValidationError as error:
            raise StoreError(
                f"the refresher's state is damaged: {error.error_count()} errors",
                where=str(path),
                todo="Restore it from a copy, or delete it: the whole event log is then taken in "
                "again, which changes nothing where it was before.",
            ) from error

    def _keep(self, state: RefreshState, **changes: object) -> RefreshState:
        changed = state.model_copy(update=changes)
        content = changed.model_dump_json(indent=2).encode()
        atomic.replace_file(self._folders.refresh / _STATE, content)
        self._state = changed
        return changed

    def _file(self, pending: PendingBatch) -> Path:
        return self._folders.refresh / pending.file
