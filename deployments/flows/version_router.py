"""Which version answers a user: the promoted one, or that of the user's variant.

A gateway follows CURRENT and the experiment, each by itself. Before it turns to other versions it
has the rest of the graph open them; where that fails it stays with what it serves, and tells so
once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, NamedTuple, Protocol

from deployments.bulkhead import Bulkhead
from deployments.errors import ApiError
from deployments.flows.deadline import Hooks
from reki_ray.core.background import BackgroundTask
from reki_ray.errors import ConfigError, RekiError

START_SECONDS: Final = 60.0
"""Time in which a starting gateway waits for the rest of the graph before it takes requests."""

DIVIDE_SECONDS: Final = 10.0
"""Time in which a starting gateway waits for its experiment, whose versions may open slowly."""

RETRY_SECONDS: Final = 30.0
"""A refused version is tried again after so long: a server of vectors may have been away."""

READ_SECONDS: Final = 5.0
"""Time in which a pointer or an experiment is read from a disk that answers."""

STALL_SECONDS: Final = 60.0
"""A gateway that has waited for the disk for so long no longer follows what is promoted."""

logger = logging.getLogger(__name__)


class RunningVariant(Protocol):
    """A part of an experiment: a name and the version that answers its users."""

    @property
    def name(self) -> str:
        """Name in answers and logs."""

    @property
    def version(self) -> int:
        """Number of its version."""


class RunningExperiment(Protocol):
    """Divides users among variants."""

    @property
    def name(self) -> str:
        """Name in the logs."""

    @property
    def variants(self) -> Sequence[RunningVariant]:
        """All variants."""

    def assign(self, user_id: str) -> RunningVariant:
        """The variant of a user: always the same one."""


class Route(NamedTuple):
    """What answers a user: all of it read at one moment.

    Args:
        variant: Name of the variant; None without an experiment.
        version: Number of the version.
        experiment: Name of the experiment; empty without one.
    """

    variant: str | None
    version: int
    experiment: str = ""


class Exposed(NamedTuple):
    """What a user of an experiment was shown: recommended items, or scored candidates."""

    request_id: str
    experiment: str
    variant: str
    user_id: str
    item_ids: Sequence[str]


Expose = Callable[[Exposed], None]
"""Notes an exposure; does not wait."""


def no_experiment() -> RunningExperiment | None:
    """All users get the promoted version."""
    return None


class Versioning(Protocol):
    """Where the gateway learns what to serve (`StoreAccess`)."""

    @property
    def poll_seconds(self) -> float:
        """Time between two looks."""

    @property
    def kept(self) -> int:
        """Versions that replicas keep opened."""

    def wanted(self) -> int:
        """Number of the version to serve."""

    def wanted_first(self) -> list[int]:
        """Numbers to try at a start, the wanted one first."""

    def arm(self, version: int) -> str:
        """Arm of a version's model."""

    def compared(self, served: int) -> int | None:
        """Number of the version to compare the served one with; None where there is none."""


class Openings:
    """Has the rest of the graph open versions, and remembers those that it has refused.

    Args:
        prepare: Has the rest of the graph open a version.
        hooks: Told of refused versions.
    """

    def __init__(self, prepare: Callable[[int], Awaitable[None]], hooks: Hooks) -> None:
        self._prepare = prepare
        self._hooks = hooks
        self._refused: dict[int, float] = {}  # when, by the monotonic clock

    async def opens(self, number: int) -> bool:
        """Whether the rest of the graph holds a version, which is asked to open it."""
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

    def keep(self, wanted: Collection[int]) -> None:
        """Forget all others: they may be tried again at once when they are wanted again."""
        self._refused = {k: at for k, at in self._refused.items() if k in wanted}


class VersionRouter:
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
        experiment: Callable[[], RunningExperiment | None] = no_experiment,
        hooks: Hooks | None = None,
    ) -> None:
        self._versions = versions
        self._read_experiment = experiment
        self._hooks = hooks or Hooks()
        self._prepare = prepare
        self._number: int | None = None
        self._experiment: RunningExperiment | None = None
        self._turning, self._dividing = asyncio.Lock(), asyncio.Lock()
        self._looked = asyncio.Event()  # at the experiment, whatever came of it
        self._pair: tuple[int | None, int | None] = (None, None)  # served, and compared with it
        self._compare_after = 0.0  # by the monotonic clock
        self._promoted = Openings(prepare, self._hooks)
        self._variants = Openings(prepare, self._hooks)
        # A thread each: a disk that hangs with one file must not hide the other.
        self._pointer_reads = Bulkhead("read-current", 1, READ_SECONDS)
        self._experiment_reads = Bulkhead("read-experiment", 1, READ_SECONDS)
        self._compared_reads = Bulkhead("read-compared", 1, READ_SECONDS)
        follows: dict[str, Callable[[], Awaitable[None]]] = {
            "follow-current": self.follow_current,
            "follow-experiment": self.follow_experiment,
            "follow-compared": self.follow_compared,
        }
        self._loops = [
            BackgroundTask(name, follow, versions.poll_seconds) for name, follow in follows.items()
        ]

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
    def variants(self) -> Sequence[RunningVariant]:
        """Variants of the running experiment; none without one."""
        return () if self._experiment is None else self._experiment.variants

    @property
    def follows(self) -> bool:
        """Whether what is promoted can be learned of: false where the disk hangs."""
        return self._pointer_reads.longest < STALL_SECONDS

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

    def of(self, user_id: str, named: str | None = None, store_version: str | None = None) -> Route:
        """What answers a user.

        Args:
            user_id: Who.
            named: Variant to take in place of the user's own.
            store_version: Version to take in place of the user's own, as v3.

        Raises:
            ApiError: 422 where no such variant runs, or the version is not open here; 503 where
                the rest of the graph does not answer yet.
        """
        if store_version is not None:
            return Route(None, self._open_one(store_version))
        experiment = self._experiment
        if named is not None:
            for part in self.variants:
                if part.name == named:
                    return Route(part.name, part.version)
            raise ApiError(
                422,
                "unknown_variant",
                "The running experiment has no such variant.",
                details={"variants": [part.name for part in self.variants]},
            )
        if experiment is None:
            return Route(None, self.number)
        variant = experiment.assign(user_id)
        return Route(variant.name, variant.version, experiment.name)

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
        """Wait for the rest of the graph, then follow what is promoted, and the experiment."""
        try:
            async with asyncio.timeout(START_SECONDS):
                while self._number is None:
                    await self.refresh()
                    if self._number is None:
                        await asyncio.sleep(0.1)
        except TimeoutError:
            logger.error("the rest of the graph does not answer; taking requests all the same")
        for loop in self._loops:
            loop.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DIVIDE_SECONDS):
                await self._looked.wait()

    async def stop(self) -> None:
        """End the watch."""
        for loop in self._loops:
            loop.stop()

    async def refresh(self) -> None:
        """Turn to what is promoted now; where that fails, what is served stays."""
        try:
            await self.follow_current()
        except Exception as error:  # noqa: BLE001  # the loop tells more, and tries again
            logger.warning("cannot follow what is promoted yet: %s", type(error).__name__)

    async def follow_compared(self) -> None:
        """Keep the version to compare with open, or none; nothing else waits for it."""
        served, beside = self._number, None
        if served is None or time.monotonic() < self._compare_after:
            return
        try:
            if self._experiment is None and self._versions.kept > 1:
                beside = await self._compared_reads.run(lambda: self._versions.compared(served))
            if (served, beside) == self._pair:
                return
            if beside is not None:
                await self._prepare(beside)
        except Exception as error:  # noqa: BLE001  # what is optional ends nothing
            logger.warning("no version to compare v%d with: %s", served, error)
            self._compare_after = time.monotonic() + RETRY_SECONDS
            beside = None
        self._pair = (served, beside)

    async def follow_current(self) -> None:
        """Turn to the promoted version, if the rest of the graph can open it.

        Raises:
            Exception: The pointer cannot be read, or the graph cannot be asked.
        """
        async with self._turning:
            first = self._number is None
            wanted = await self._pointer_reads.run(
                self._versions.wanted_first if first else lambda: [self._versions.wanted()]
            )
            self._promoted.keep(wanted)
            for number in wanted:
                if number == self._number:
                    return
                self._require_room(number, self._experiment)  # before it pushes another out
                if self._is_served(number) or await self._promoted.opens(number):
                    self._require_room(number, self._experiment)  # it may have changed meanwhile
                    self._number = number
                    self._hooks.serving(f"v{number}")
                    return

    async def follow_experiment(self) -> None:
        """Turn to the running experiment, if the rest of the graph can open all its versions.

        Raises:
            Exception: The experiment cannot be read, or the graph cannot be asked.
        """
        try:
            async with self._dividing:
                await self._divide()
        finally:
            self._looked.set()

    async def _divide(self) -> None:
        found = await self._experiment_reads.run(self._read_experiment)
        own = [] if found is None else [part.version for part in found.variants]
        self._variants.keep(own)
        self._require_room(self.number, found)  # as above
        if all([self._is_served(one) or await self._variants.opens(one) for one in own]):
            self._require_room(self.number, found)
            self._experiment = found

    def _is_served(self, number: int) -> bool:
        return number == self._number or any(number == part.version for part in self.variants)

    def _require_room(self, number: int, experiment: RunningExperiment | None) -> None:
        """Refuse more versions than replicas keep: each request would open one anew."""
        parts = () if experiment is None else experiment.variants
        needed = len({number, *(part.version for part in parts)})
        if needed > self._versions.kept:
            raise ConfigError(
                f"{needed} versions would have to be open at once, replicas keep "
                f"{self._versions.kept}; what is served stays",
                where="serve.kept_versions",
                todo=f"Set it to {needed} at least and serve again, or stop the experiment.",
            )
