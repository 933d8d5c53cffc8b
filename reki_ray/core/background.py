"""Background loops, in a thread or a task, that survive the failures of their steps.

A step that fails is logged and counted, and the next one waits longer. `tests/core/test_background`
finds threads and tasks that are started in another way.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ray.util.metrics import Counter as RayCounter

LONGEST_PAUSE: Final = 30.0
"""Longest wait between two steps after failures, seconds."""

_failures: Final[Counter[str]] = Counter()

logger = logging.getLogger(__name__)


def loop_failures() -> Mapping[str, int]:
    """Failed steps of this process by the name of their loop."""
    return dict(_failures)


def _count(name: str) -> None:
    _failures[name] += 1
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    # Only gateways have /metrics.
    with contextlib.suppress(Exception):  # counting must not end the loop
        _counter().inc(tags={"loop": name})


@functools.cache
def _counter() -> RayCounter:
    from ray.util import metrics  # already loaded, see `_count`

    return metrics.Counter(
        "reki_loop_failures", "Failed steps of a loop in the background.", tag_keys=("loop",)
    )


class BackgroundLoop:
    """Base of threads and tasks.

    Args:
        seconds: Time between two steps; doubles with each consecutive failure.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self._seconds = seconds
        self._consecutive = 0
        self._logged = ""
        self._ended_at = time.monotonic()
        _failures[name] += 0  # exists from the start, so that a rate includes the first failure

    @property
    def pause(self) -> float:
        """Seconds until the next step."""
        doubled = self._seconds * 2.0 ** min(self._consecutive, 16)
        return min(doubled, max(self._seconds, LONGEST_PAUSE))

    @property
    def silence(self) -> float:
        """Seconds since the last step ended, successful or not."""
        return time.monotonic() - self._ended_at

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the loop goes on
            _count(self.name)
            self._consecutive += 1
            message = f"{type(error).__name__}: {error}"
            if message != self._logged:  # not after every step
                self._logged = message
                logger.error("%s failed and will be tried again", self.name, exc_info=error)
        else:
            self._consecutive, self._logged = 0, ""
        finally:
            self._ended_at = time.monotonic()


class BackgroundThread(BackgroundLoop):
    """Daemon thread that calls a step repeatedly."""

    def __init__(self, name: str, step: Callable[[], object], seconds: float) -> None:
        super().__init__(name, seconds)
        self._step = step
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start with the first step."""
        self._thread.start()

    def stop(self, seconds: float = 0.0) -> bool:
        """Stop, wait for the current step, and return whether it ended; steps may call this."""
        self._stopped.set()
        if self._thread.ident not in (None, threading.get_ident()):
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopped.is_set():
            with self._guarded():
                self._step()
            self._stopped.wait(self.pause)


class BackgroundTask(BackgroundLoop):
    """Task of an event loop that awaits a step repeatedly."""

    def __init__(self, name: str, step: Callable[[], Awaitable[object]], seconds: float) -> None:
        super().__init__(name, seconds)
        self._step = step
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start in the running event loop with the first step."""
        self._ended_at = time.monotonic()
        self._task = asyncio.create_task(self._run(), name=self.name)

    def stop(self) -> None:
        """Stop, also during a step."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            with self._guarded():
                await self._step()
            await asyncio.sleep(self.pause)
