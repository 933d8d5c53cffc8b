"""Versions that a replica keeps open, so that a promotion needs no restart.

Every call names its version. A replica opens a version in a thread at its first call, keeps the
most recently used ones, and polls CURRENT, so that a promoted version is open before its first
request. Why a version did not open is remembered: damaged files are only read again once changed.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, Generic, NamedTuple, TypeVar

from deployments.graph_args import StoreAccess
from reki_ray.core import ray_metrics
from reki_ray.core.background import BackgroundThread
from reki_ray.errors import RekiError, StoreError
from reki_ray.store.manifest import DamagedError, seal_of
from reki_ray.store.version import StoreVersion

T = TypeVar("T")

OPENERS: Final = 32
"""Most versions being opened or waiting to be; one that hangs keeps its thread."""
FIRST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 30.0
"""Seconds until a version that did not open is tried again; they double with each attempt."""

logger = logging.getLogger(__name__)


class _Refusal(NamedTuple):
    """Why a version did not open, and when to try it again."""

    error: RekiError
    seal: str  # of its files at that time; empty if they could not be listed
    wait: float  # seconds until the next attempt
    until: float  # end of these


class VersionCache(Generic[T]):
    """Open versions by number; the base of deployments, which answer from several versions.

    In a thread, `load` turns an opened version into what the replica answers from.
    """

    def __init__(
        self,
        access: StoreAccess,
        load: Callable[[StoreVersion], T],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._access = access
        self._load = load
        self._clock = clock
        self._opened: OrderedDict[int, T] = OrderedDict()
        self._opening: dict[int, Future[T]] = {}
        self._refused: dict[int, _Refusal] = {}
        self._lock = threading.Lock()
        self._openers = ThreadPoolExecutor(OPENERS, thread_name_prefix="open-version")
        # Opens one version at a time besides the promoted one: it reads whole files, and requests
        # need disk and cores too.
        self._turn = threading.Lock()
        self._watch = BackgroundThread("watch-current", self._poll, access.poll_seconds)
        self._seen: int | None = None

    def start(self) -> None:
        """Open the first version, and start to poll CURRENT.

        Raises:
            StoreError: Neither CURRENT nor an older version opens.
        """
        refusals: list[StoreError] = []
        numbers = self._access.wanted_first()
        for number in numbers:
            try:
                self._begin(number).result()
                break
            except StoreError as error:
                logger.error("version %d does not open: %s", number, error)
                refusals.append(error)
        else:
            raise refusals[0]
        self._seen = numbers[0]
        if self._access.version is None:
            self._watch.start()

    def close(self) -> None:
        """Stop what runs in the background."""
        self._watch.stop(1.0)
        self._openers.shutdown(wait=False)

    def numbers(self) -> list[int]:
        """Return the numbers of the open versions, the most recently used one last."""
        with self._lock:
            return list(self._opened)

    async def get(self, number: int) -> T:
        """Return an open version for a request, opening it if needed.

        Raises:
            StoreError: See `prepare`; repeated for a while without another attempt.
        """
        version = self._cached(number)
        if version is None:
            refusal = self._refused.get(number)
            if refusal is not None and self._clock() < refusal.until:
                raise copy.copy(refusal.error)
            version = await self._shared(number)
        return version

    async def prepare(self, number: int) -> None:
        """Open a version unless it is open.

        Raises:
            StoreError: It is missing or damaged, or its parts do not match.
        """
        if self._cached(number) is None:
            await self._shared(number)

    async def _shared(self, number: int) -> T:
        # Callers share an attempt: the cancellation of one must not affect the others.
        return await asyncio.shield(asyncio.wrap_future(self._begin(number)))

    def _cached(self, number: int) -> T | None:
        with self._lock:
            version = self._opened.get(number)
            if version is not None:
                self._opened.move_to_end(number)
            return version

    def _begin(self, number: int) -> Future[T]:
        with self._lock:
            future = self._opening.get(number)
            if future is None:
                future = self._opening[number] = self._openers.submit(self._open, number)
        return future

    def _open(self, number: int) -> T:
        try:
            version = self._cached(number)
            if version is None:
                with self._turn_of(number):
                    version = self._read(number)
            with self._lock:
                self._opened[number] = version
                self._opened.move_to_end(number)
                while len(self._opened) > self._access.kept_versions:
                    self._opened.popitem(last=False)
            if self._is_promoted(number):
                ray_metrics.set_gauge("reki_opened_version_number", number)
            return version
        finally:
            with self._lock:
                del self._opening[number]

    @contextmanager
    def _turn_of(self, number: int) -> Iterator[None]:
        """Wait until no other version is being opened, or this one is promoted."""
        while not self._is_promoted(number):
            if self._turn.acquire(timeout=self._access.poll_seconds):
                try:
                    yield
                finally:
                    self._turn.release()
                return
        yield

    def _is_promoted(self, number: int) -> bool:
        try:
            return self._access.wanted() == number
        except Exception:  # noqa: BLE001  # a broken pointer must not block other versions
            return False

    def _read(self, number: int) -> T:
        earlier = self._refused.get(number)
        store, seal = self._access.store(), ""
        try:
            seal = seal_of(store.layers(number))
            # Unchanged files stay damaged; any other reason may be gone.
            if earlier and earlier.seal == seal and isinstance(earlier.error, DamagedError):
                raise copy.copy(earlier.error)
            version = self._load(store.open_served(number))
        except Exception as error:  # other versions open regardless
            refusal = (
                error
                if isinstance(error, RekiError)
                else StoreError(
                    f"the version cannot be opened: {type(error).__name__}: {error}",
                    where=str(store.folder(number)),
                    todo="It is tried again; check the disk and the permissions of the files.",
                )
            )
            wait = FIRST_WAIT if earlier is None else min(2 * earlier.wait, LONGEST_WAIT)
            # A copy: the error itself holds references to all frames it passed.
            self._refused[number] = _Refusal(copy.copy(refusal), seal, wait, self._clock() + wait)
            if refusal is error:
                raise
            raise refusal from error
        self._refused.pop(number, None)
        return version

    def _poll(self) -> None:
        number = self._access.wanted()
        if number == self._seen:
            return
        self._seen = number  # also if it fails, to log it once
        # Not awaited: the next promoted version must be seen even if this one hangs.
        self._begin(number).add_done_callback(_log_failure)


def _log_failure(opened: Future[T]) -> None:
    error = opened.exception()
    if error is not None:
        logger.error("the promoted version does not open: %s", error)
