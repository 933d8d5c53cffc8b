"""Which version answers a user: the promoted one, or that of the user's variant.

A gateway follows CURRENT and the experiment. Before it turns to other versions it has the rest
of the graph open them; where that fails it stays with what it serves, and tells so once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, Protocol

from deployments.backend import FAILURES
from deployments.calls import Hooks
from deployments.errors import ApiError
from reki_ray.errors import RekiError

START_SECONDS: Final = 60.0
"""Time in which a starting gateway waits for the rest of the graph before it takes requests."""

RETRY_SECONDS: Final = 30.0
"""A refused version is tried again after so long: a server of vectors may have been away."""

logger = logging.getLogger(__name__)


class Variant(Protocol):
    """A part of an experiment: a name and the version that answers its users."""

    @property
    def name(self) -> str:
        """Name in answers and logs."""

    @property
    def version(self) -> int:
        """Number of its version."""


class Experiment(Protocol):
    """Divides users among variants."""

    @property
    def name(self) -> str:
        """Name in the logs."""

    @property
    def variants(self) -> Sequence[Variant]:
        """All variants."""

    def assign(self, user_id: str) -> Variant:
        """The variant of a user: always the same one."""


class Exposed(NamedTuple):
    """What a user of an experiment was shown: recommended items, or scored candidates."""

    request_id: str
    experiment: str
    variant: str
    user_id: str
    item_ids: Sequence[str]


Expose = Callable[[Exposed], None]
"""Notes an exposure; does not wait."""


def no_experiment() -> Experiment | None:
    """All users get the promoted version."""
    return None


class Versioning(Protocol):
    """Where the gateway learns what to serve (`StoreAccess`)."""

    @property
    def poll_seconds(self) -> float:
        """Time between two looks."""

    def wanted(self) -> int:
        """Number of the version to serve."""

    def wanted_first(self) -> list[int]:
        """Numbers to try at a start, the wanted one first."""

    def arm(self, version: int) -> str:
        """Arm of a version's model."""

    def compared(self, served: int) -> int | None:
        """Number of the version to compare the served one with; None where there is none."""


class Served:
    """The version of each user.

    Args:
        versions: Tells the version to serve.
        prepare: Has the rest of the graph open a version.
        experiment: Tells the running experiment; None where there is none.
        hooks: Told of refused versions and of the served one.
    """

    def __init__(
        self,
        versions: Versioning,
        prepare: Callable[[int], Awaitable[None]],
        experiment: Callable[[], Experiment | None] = no_experiment,
        hooks: Hooks | None = None,
    ) -> None:
        self._versions = versions
        self._prepare = prepare
        self._read_experiment = experiment
        self._hooks = hooks or Hooks()
        self._number: int | None = None
        self._experiment: Experiment | None = None
        self._pair: tuple[int | None, int | None] = (None, None)  # served, and compared with it
        self._refused: dict[int, float] = {}  # when, by the monotonic clock
        self._refreshing = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None
        self._comparing: asyncio.Task[None] | None = None
        self._compare_after = 0.0  # by the monotonic clock

    @property
    def number(self) -> int:
        """Number of the version that is served.

        Raises:
            ApiError: 503 where the rest of the graph does not answer yet.
        """
        if self._number is None:
            raise ApiError(
                503, "not_ready", "The service is starting.", headers={"Retry-After": "1"}
            )
        return self._number

    @property
    def variants(self) -> Sequence[Variant]:
        """Variants of the running experiment; none without one."""
        return () if self._experiment is None else self._experiment.variants

    @property
    def compared(self) -> int | None:
        """Number of the version that is kept to compare the served one with; None without."""
        return self._pair[1]

    def arm_of(self, version: int) -> str | None:
        """Arm of a version's model, read from the disk; None where it cannot be read."""
        try:
            return self._versions.arm(version)
        except (RekiError, OSError) as error:
            logger.warning("the arm of version %d cannot be read: %s", version, error)
            return None

    @property
    def experiment(self) -> str:
        """Name of the running experiment; empty without one."""
        return "" if self._experiment is None else self._experiment.name

    def of(
        self, user_id: str, named: str | None = None, store_version: str | None = None
    ) -> tuple[str | None, int]:
        """Variant and version of a user; no variant without an experiment.

        Args:
            user_id: Who.
            named: Variant to take in place of the user's own.
            store_version: Version to take in place of the user's own, as v3.

        Raises:
            ApiError: 422 where no such variant runs, or the version is not open here; 503 where
                the rest of the graph does not answer yet.
        """
        if store_version is not None:
            return None, self._open_one(store_version)
        if named is not None:
            for part in self.variants:
                if part.name == named:
                    return part.name, part.version
            raise ApiError(
                422,
                "unknown_variant",
                "The running experiment has no such variant.",
                details={"variants": [part.name for part in self.variants]},
            )
        if self._experiment is None:
            return None, self.number
        variant = self._experiment.assign(user_id)
        return variant.name, variant.version

    def _open_one(self, store_version: str) -> int:
        """Number of a version, if it is kept open: others would have to be loaded for a request."""
        kept = {self.number, *(part.version for part in self.variants)}
        if self.compared is not None:
            kept.add(self.compared)
        for number in kept:
            if store_version == f"v{number}":
                return number
        raise ApiError(
            422,
            "version_not_open",
            "This version is not kept open here; /v1/versions lists those that are.",
            details={"versions": [f"v{number}" for number in sorted(kept)]},
        )

    async def start(self) -> None:
        """Wait for the rest of the graph, then follow what is promoted."""
        try:
            async with asyncio.timeout(START_SECONDS):
                while self._number is None:
                    await self.refresh()
                    if self._number is None:
                        await asyncio.sleep(0.1)
        except TimeoutError:
            logger.error("the rest of the graph does not answer; taking requests all the same")
        self._watch = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """End the watch."""
        for task in (self._watch, self._comparing):
            if task is not None:
                task.cancel()

    async def refresh(self) -> None:
        """Turn to what is promoted now, if the rest of the graph can open it."""
        async with self._refreshing:
            try:
                wanted, experiment = await asyncio.to_thread(self._read)
            except (RekiError, OSError) as error:
                logger.error("cannot read what to serve: %s", error)
                return
            own = [] if experiment is None else [part.version for part in experiment.variants]
            # What is no longer wanted may be tried again at once when it is wanted again.
            self._refused = {
                number: at for number, at in self._refused.items() if number in {*wanted, *own}
            }
            try:
                for number in wanted:
                    if await self._is_open(number):
                        self._turn_to(number)
                        break
                if all([await self._is_open(number) for number in own]):
                    self._experiment = experiment
            except FAILURES as error:  # of the graph, not of a version: tried again
                logger.warning("cannot prepare a version yet: %s", type(error).__name__)
        if self._comparing is None or self._comparing.done():
            self._comparing = asyncio.create_task(self._compare())

    async def _compare(self) -> None:
        """Keep the version to compare with open, or none; a task, for nothing else may wait."""
        served, beside = self._number, None
        if served is None or time.monotonic() < self._compare_after:
            return
        try:
            if self._experiment is None:
                beside = await asyncio.to_thread(self._versions.compared, served)
            if (served, beside) == self._pair:
                return
            if beside is not None:
                await self._prepare(beside)
        except Exception as error:  # noqa: BLE001  # what is optional ends nothing
            logger.warning("no version to compare v%d with: %s", served, error)
            self._compare_after = time.monotonic() + RETRY_SECONDS
            beside = None
        self._pair = (served, beside)

    def _read(self) -> tuple[list[int], Experiment | None]:
        first = self._number is None
        wanted = self._versions.wanted_first() if first else [self._versions.wanted()]
        return wanted, self._read_experiment()

    async def _is_open(self, number: int) -> bool:
        """Whether the rest of the graph holds a version, which is asked to open it."""
        if number == self._number or any(number == part.version for part in self.variants):
            return True
        if time.monotonic() - self._refused.get(number, -math.inf) < RETRY_SECONDS:
            return False
        try:
            await self._prepare(number)
        except RekiError as error:
            self._refused[number] = time.monotonic()
            self._hooks.refused(f"v{number}")
            logger.error("version %d is refused, the old one stays: %s", number, error)
            return False
        return True

    def _turn_to(self, number: int) -> None:
        if number != self._number:
            self._number = number
            self._hooks.serving(f"v{number}")

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._versions.poll_seconds)
            await self.refresh()
