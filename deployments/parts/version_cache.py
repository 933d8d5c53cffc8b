"""Versions that a replica holds opened, by number, so that promotion needs no restart.

Every call names the version it wants. A replica opens one in a thread when it is first asked
for, keeps the latest few, and watches CURRENT, so that a promoted version is there before the
first request for it. Why a version did not open is remembered: files that were found to be
damaged are not read again before somebody writes to them.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from reki_ray.config import AdapterSettings, Arm
from reki_ray.core.background import BackgroundThread
from reki_ray.errors import RekiError, StoreError
from reki_ray.store.manifest import DamagedError, folder_of, read_manifest, seal_of
from reki_ray.store.versions import StoreVersion, VersionStore

T = TypeVar("T")

FALL_BACKS = 2
"""Older versions that a replica tries at its start where CURRENT does not open."""

OPENERS: Final = 32
"""Most versions that are being opened, or wait for their turn: what hangs keeps its thread."""

FIRST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 30.0
"""Seconds for which requests for a version that did not open are refused without another look;
they double with each look."""

logger = logging.getLogger(__name__)


class StoreAccess(BaseModel):
    """Where a replica finds versions, and how many it keeps opened."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    publish_root: str = Field(description="Folder of the published versions.")
    version: int | None = Field(
        None, ge=1, description="The only version to serve; null follows CURRENT."
    )
    vectors: AdapterSettings = Field(
        AdapterSettings(), description="Where vectors are looked up, as `store.vectors` of a run."
    )
    kept: int = Field(3, ge=1, description="Opened versions kept; the longest unused one goes.")
    poll_seconds: float = Field(0.5, gt=0, description="Time between two looks at CURRENT.")
    compare: Arm | None = Field(
        None, description="Arm whose newest version is kept beside the served one; null: none."
    )

    def store(self) -> VersionStore:
        """The versions."""
        return VersionStore(self.publish_root, self.vectors)

    def cache(self, load: Callable[[StoreVersion], T]) -> VersionCache[T]:
        """Opened versions, the first one loaded, CURRENT watched.

        Args:
            load: Makes of an opened version what the replica answers from.

        Raises:
            StoreError: Neither CURRENT nor an older version opens.
        """
        cache = VersionCache(self, load)
        cache.start()
        return cache

    def wanted(self) -> int:
        """Number of the version to serve.

        Raises:
            StoreError: Nothing is published, or the pointer is damaged.
        """
        return self.store().current() if self.version is None else self.version

    def compared(self, served: int) -> int | None:
        """Number of the newest version of the arm to compare the served one with.

        Where the served one is of that arm itself, it is the newest one of another; None where
        there is no such version, or none is to be kept.

        Raises:
            StoreError: The served version is missing or damaged.
        """
        if self.compare is None:
            return None
        own = _arm(self.publish_root, served) == self.compare
        for number in reversed(self.store().versions()):
            try:
                if (_arm(self.publish_root, number) == self.compare) != own:
                    return number
            except StoreError:  # a damaged one is not compared with
                continue
        return None

    def arm(self, version: int) -> str:
        """Arm of a version's model.

        Raises:
            StoreError: The version is missing or damaged.
        """
        return read_manifest(self.store().folder(version)).arm

    def wanted_first(self) -> list[int]:
        """Numbers to try at a start: the wanted one, then the latest before it.

        Raises:
            StoreError: Nothing is published, or the pointer is damaged.
        """
        number = self.wanted()
        if self.version is not None:
            return [number]
        older = [other for other in self.store().versions() if other < number]
        return [number, *older[: -FALL_BACKS - 1 : -1]]


@dataclass(frozen=True)
class _Refusal:
    """Why a version did not open.

    Args:
        error: The reason.
        seal: Seal of its files at that time; empty where they could not be listed.
        wait: Seconds for which this is said without another look.
        until: End of that time.
    """

    error: RekiError
    seal: str
    wait: float
    until: float


@lru_cache(maxsize=1024)
def _arm(root: str, version: int) -> str:
    """Arm of a version, which never changes: gateways ask again and again."""
    return read_manifest(folder_of(Path(root), version)).arm


class VersionCache(Generic[T]):
    """Opened versions by number.

    Args:
        access: Where versions are, and how many are kept.
        load: Makes of an opened version what the replica answers from; called in a thread.
        clock: Seconds, monotonic.
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
        # One at a time, beside the promoted one, which waits for none: opening reads whole files,
        # and requests want the disk and a core too.
        self._turn = threading.Lock()
        self._watch = BackgroundThread("watch-current", self._look, access.poll_seconds)
        self._seen: int | None = None

    def start(self) -> int:
        """Open the first version, and watch CURRENT from then on.

        Returns:
            Number of the version that was opened.

        Raises:
            StoreError: Neither CURRENT nor an older version opens.
        """
        numbers = self._access.wanted_first()
        number = self._open_first(numbers)
        self._seen = numbers[0]
        if self._access.version is None:
            self._watch.start()
        return number

    def close(self) -> None:
        """End the watch."""
        self._watch.stop(1.0)
        self._openers.shutdown(wait=False)

    def numbers(self) -> list[int]:
        """Numbers of the opened versions, the latest used one last."""
        with self._lock:
            return list(self._opened)

    async def get(self, number: int) -> T:
        """An opened version, for a request; see `open`.

        Raises:
            StoreError: See `open`; for a while the same reason is given without another look.
        """
        found = self._at_hand(number)
        if found is not None:
            return found
        refusal = self._refused.get(number)
        if refusal is not None and self._clock() < refusal.until:
            raise copy.copy(refusal.error)
        return await self.open(number)

    async def open(self, number: int) -> T:
        """An opened version; opens it where it is not yet, once for all who ask meanwhile.

        Raises:
            StoreError: It is missing or damaged, or its parts do not fit together.
        """
        found = self._at_hand(number)
        if found is not None:
            return found
        # Shielded: who gives up waiting must not cancel it for the others.
        return await asyncio.shield(asyncio.wrap_future(self._begin(number)))

    def _at_hand(self, number: int) -> T | None:
        with self._lock:
            found = self._opened.get(number)
            if found is not None:
                self._opened.move_to_end(number)
            return found

    def _begin(self, number: int) -> Future[T]:
        with self._lock:
            future = self._opening.get(number)
            if future is None:
                future = self._opening[number] = self._openers.submit(self._open, number)
        return future

    def _open(self, number: int) -> T:
        try:
            found = self._at_hand(number)
            if found is None:
                with self._turn_of(number):
                    found = self._read(number)
            with self._lock:
                self._opened[number] = found
                self._opened.move_to_end(number)
                while len(self._opened) > self._access.kept:
                    self._opened.popitem(last=False)
            return found
        finally:
            with self._lock:
                del self._opening[number]

    @contextmanager
    def _turn_of(self, number: int) -> Iterator[None]:
        """Wait until no other version is opened, or until this one is promoted."""
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
        except Exception:  # noqa: BLE001  # a broken pointer keeps no other version from opening
            return False

    def _read(self, number: int) -> T:
        earlier = self._refused.get(number)
        store, seal = self._access.store(), ""
        try:
            seal = seal_of(store.layers(number))
            if earlier is not None and earlier.seal == seal:
                _raise_damage(earlier.error)
            found = self._load(store.open_served(number))
        except Exception as error:  # whatever it is, this version does not open and others do
            refusal = _as_refusal(error, str(store.folder(number)))
            wait = FIRST_WAIT if earlier is None else min(2 * earlier.wait, LONGEST_WAIT)
            # A copy: the error itself holds on to all that it passed.
            self._refused[number] = _Refusal(copy.copy(refusal), seal, wait, self._clock() + wait)
            if refusal is error:
                raise
            raise refusal from error
        self._refused.pop(number, None)
        return found

    def _open_first(self, numbers: Sequence[int]) -> int:
        refusals: list[StoreError] = []
        for number in numbers:
            try:
                self._begin(number).result()
            except StoreError as error:
                logger.error("version %d does not open: %s", number, error)
                refusals.append(error)
            else:
                return number
        raise refusals[0]

    def _look(self) -> None:
        number = self._access.wanted()
        if number == self._seen:
            return
        self._seen = number  # also where it fails: told once, not at every look
        # Not waited for: the next promoted one must be seen also where this one hangs.
        self._begin(number).add_done_callback(_tell)


def _tell(opened: Future[T]) -> None:
    error = opened.exception()
    if error is not None:
        logger.error("the promoted version does not open: %s", error)


def _raise_damage(error: RekiError) -> None:
    """Damage stays as long as nobody writes to the files; any other reason may be gone."""
    if isinstance(error, DamagedError):
        raise copy.copy(error)


def _as_refusal(error: Exception, where: str) -> RekiError:
    if isinstance(error, RekiError):
        return error
    return StoreError(
        f"the version cannot be opened: {type(error).__name__}: {error}",
        where=where,
        todo="It is tried again; look for errors of the disk and the rights of its files.",
    )
