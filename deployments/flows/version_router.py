"""Routes users to versions: the promoted one, or that of the user's variant.

A gateway follows CURRENT and the experiment independently. Before it switches to other versions,
the rest of the graph opens them; if that fails, it keeps serving the old ones and logs it once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, NamedTuple

from deployments.bulkhead import Bulkhead
from deployments.errors import ApiError, retry_later
from deployments.graph_args import StoreAccess
from deployments.middleware.metrics import GatewayMetrics
from reki_ray.core import ray_metrics
from reki_ray.core.background import BackgroundTask
from reki_ray.errors import ConfigError, RekiError
from reki_ray.experiments.experiment import Experiment, Variant

START_SECONDS: Final = 60.0
"""Longest wait of a starting gateway for the rest of the graph before it takes requests."""
DIVIDE_SECONDS: Final = 10.0
"""Longest wait of a starting gateway for the versions of its experiment."""
RETRY_SECONDS: Final = 30.0
"""Time until a refused version is tried again, for instance because its vector server was down."""
READ_SECONDS: Final = 5.0
"""Timeout for reading a pointer or an experiment."""
STALL_SECONDS: Final = 60.0
"""A gateway that has waited this long for the disk no longer follows what is promoted."""

logger = logging.getLogger(__name__)


class Route(NamedTuple):
    """The version for a user, and the variant and experiment if there is one."""

    variant: str | None
    version: int
    experiment: str = ""


class VersionOpener:
    """Opens versions in the rest of the graph, and remembers those that it has refused."""

    def __init__(self, prepare: Callable[[int], Awaitable[None]], metrics: GatewayMetrics) -> None:
        self._prepare = prepare
        self._metrics = metrics
        self._refused: dict[int, float] = {}  # version: time.monotonic()

    async def opens(self, number: int) -> bool:
        """Make the rest of the graph open a version; return whether it did."""
        if time.monotonic() - self._refused.get(number, -math.inf) < RETRY_SECONDS:
            return False
        try:
            await self._prepare(number)
        except RekiError as error:
            self._refused[number] = time.monotonic()
            self._metrics.version_refused()
            logger.error("version %d is refused, the old one stays: %s", number, error)
            return False
        return True

    def keep(self, wanted: Collection[int]) -> None:
        """Forget refusals of all other versions, so that they are tried once wanted again."""
        self._refused = {k: at for k, at in self._refused.items() if k in wanted}


class VersionRouter:
    """The version of each user."""

    def __init__(
        self,
        access: StoreAccess,
        prepare: Callable[[int], Awaitable[None]],
        metrics: GatewayMetrics,
        experiment: Callable[[], Experiment | None] = lambda: None,
    ) -> None:
        self._access = access
        self._read_experiment = experiment
        self._metrics = metrics
        self._prepare = prepare
        self._number: int | None = None
        self._experiment: Experiment | None = None
        self._turning, self._dividing = asyncio.Lock(), asyncio.Lock()
        self._looked = asyncio.Event()  # the experiment was read, successfully or not
        self._pair: tuple[int | None, int | None] = (None, None)  # served, compared
        self._compare_after = 0.0  # time.monotonic()
        self._promoted = VersionOpener(prepare, metrics)
        self._variants = VersionOpener(prepare, metrics)
        # A thread each: one file that hangs must not block reads of the others.
        self._pointer_reads = Bulkhead("read-current", 1, READ_SECONDS)
        self._experiment_reads = Bulkhead("read-experiment", 1, READ_SECONDS)
        self._compared_reads = Bulkhead("read-compared", 1, READ_SECONDS)
        self._loops = [
            BackgroundTask("follow-current", self.follow_current, access.poll_seconds),
            BackgroundTask("follow-experiment", self.follow_experiment, access.poll_seconds),
            BackgroundTask("follow-compared", self.follow_compared, access.poll_seconds),
        ]

    @property
    def number(self) -> int:
        """Number of the served version.

        Raises:
            ApiError: 503 if the rest of the graph has not answered yet.
        """
        if self._number is None:
            raise retry_later("not_ready", "The service is starting.")
        return self._number

    @property
    def variants(self) -> Sequence[Variant]:
        """Variants of the running experiment; empty without one."""
        return () if self._experiment is None else self._experiment.variants

    @property
    def follows(self) -> bool:
        """Whether this sees what is promoted: false while the disk hangs."""
        return self._pointer_reads.longest < STALL_SECONDS

    @property
    def compared(self) -> int | None:
        """Number of the version kept open for comparison, if any."""
        return self._pair[1]

    @property
    def opened(self) -> set[int]:
        """Numbers of the versions that requests may name; raises an ApiError as `number`."""
        numbers = {self.number, *_versions(self._experiment)}
        return numbers if self.compared is None else numbers | {self.compared}

    def arm_of(self, version: int) -> str | None:
        """Read the arm of a version's model from disk; None if that fails."""
        try:
            return self._access.arm(version)
        except (RekiError, OSError) as error:
            logger.warning("cannot read the arm of version %d: %s", version, error)
            return None

    def of(self, user_id: str, named: str | None = None, store_version: str | None = None) -> Route:
        """Return the route of a user.

        Args:
            named: Variant in place of the user's own.
            store_version: Version in place of the user's own, such as v3.

        Raises:
            ApiError: 422 if the variant does not run or the version is not open here; 503 if the
                rest of the graph has not answered yet.
        """
        if store_version is not None:  # a request never loads another version
            opened = {f"v{number}": number for number in sorted(self.opened)}
            if store_version in opened:
                return Route(None, opened[store_version])
            raise ApiError(
                422,
                "version_not_open",
                "This version is not open here; /v1/versions lists those that are.",
                details={"versions": list(opened)},
            )
        if named is not None:
            versions = {variant.name: variant.version for variant in self.variants}
            if named in versions:
                return Route(named, versions[named])
            raise ApiError(
                422,
                "unknown_variant",
                "The running experiment has no such variant.",
                details={"variants": list(versions)},
            )
        if self._experiment is None:
            return Route(None, self.number)
        variant = self._experiment.assign(user_id)
        return Route(variant.name, variant.version, self._experiment.name)

    async def start(self) -> None:
        """Wait for the rest of the graph, then follow what is promoted, and the experiment."""
        try:
            async with asyncio.timeout(START_SECONDS):
                while self._number is None:
                    await self.refresh()
                    if self._number is None:
                        await asyncio.sleep(0.1)
        except TimeoutError:
            logger.error("the rest of the graph does not answer; taking requests anyway")
        for loop in self._loops:
            loop.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DIVIDE_SECONDS):
                await self._looked.wait()

    async def stop(self) -> None:
        """Stop following."""
        for loop in self._loops:
            loop.stop()

    async def refresh(self) -> None:
        """Switch to what is promoted now; if that fails, keep the served version."""
        try:
            await self.follow_current()
        except Exception as error:  # noqa: BLE001  # the background loop logs it and tries again
            logger.warning("cannot follow what is promoted yet: %s", type(error).__name__)

    async def follow_compared(self) -> None:
        """Keep the version for comparison open, if any; nothing else waits for it."""
        served, compared = self._number, None
        if served is None or time.monotonic() < self._compare_after:
            return
        try:
            if self._experiment is None and self._access.kept_versions > 1:
                compared = await self._compared_reads.run(lambda: self._access.compared(served))
            if (served, compared) == self._pair:
                return
            if compared is not None:
                await self._prepare(compared)
        except Exception as error:  # noqa: BLE001  # the comparison is optional
            logger.warning("no version to compare v%d with: %s", served, error)
            self._compare_after = time.monotonic() + RETRY_SECONDS
            compared = None
        self._pair = (served, compared)

    async def follow_current(self) -> None:
        """Switch to the promoted version if the rest of the graph can open it."""
        async with self._turning:
            first = self._number is None
            wanted = await self._pointer_reads.run(
                self._access.wanted_first if first else lambda: [self._access.wanted()]
            )
            ray_metrics.set_gauge("reki_promoted_version_number", wanted[0])
            self._promoted.keep(wanted)
            for number in wanted:
                if number == self._number:
                    return
                self._require_room(number, self._experiment)  # before it evicts another version
                if self._is_served(number) or await self._promoted.opens(number):
                    self._require_room(number, self._experiment)  # may have changed meanwhile
                    self._number = number
                    self._metrics.serving(f"v{number}")
                    await self._note_age(number)
                    return

    async def _note_age(self, number: int) -> None:
        ray_metrics.set_gauge("reki_served_version_number", number)
        with contextlib.suppress(Exception):  # a figure; the version is served already
            created = await self._pointer_reads.run(lambda: self._access.created_at(number))
            ray_metrics.set_gauge("reki_served_version_created_timestamp_seconds", created)

    async def follow_experiment(self) -> None:
        """Switch to the running experiment if the rest of the graph can open all its versions."""
        try:
            async with self._dividing:
                experiment = await self._experiment_reads.run(self._read_experiment)
                numbers = _versions(experiment)
                self._variants.keep(numbers)
                self._require_room(self.number, experiment)  # see `follow_current`
                if all([self._is_served(n) or await self._variants.opens(n) for n in numbers]):
                    self._require_room(self.number, experiment)
                    self._experiment = experiment
        finally:
            self._looked.set()

    def _is_served(self, number: int) -> bool:
        return number in (self._number, *_versions(self._experiment))

    def _require_room(self, number: int, experiment: Experiment | None) -> None:
        """Refuse more versions than replicas keep open: each request would load one again."""
        needed = len({number, *_versions(experiment)})
        if needed > self._access.kept_versions:
            raise ConfigError(
                f"{needed} versions would have to be open at once, but replicas keep "
                f"{self._access.kept_versions}; the served ones stay",
                where="serve.kept_versions",
                todo=f"Set it to at least {needed} and serve again, or stop the experiment.",
            )


def _versions(experiment: Experiment | None) -> list[int]:
    return [] if experiment is None else [variant.version for variant in experiment.variants]
