"""Loops in the background that outlive their failures.

Every thread or task that repeats something while the service runs is one of these two. A step
that fails is logged and counted, and the next one waits longer: nothing that a step raises ends
its loop. `tests/core/test_background.py` finds threads and tasks that are started otherwise.
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
"""Seconds that a loop waits at most between two steps because of failures."""

_failures: Final[Counter[str]] = Counter()

logger = logging.getLogger(__name__)


def loop_failures() -> Mapping[str, int]:
    """Failed steps of this process so far, by the name of their loop."""
    return dict(_failures)


def _count(name: str) -> None:
    _failures[name] += 1
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    # Of all processes a gateway alone has /metrics.
    with contextlib.suppress(Exception):  # whoever counts must not end what is counted
        _counter().inc(tags={"loop": name})


@functools.cache
def _counter() -> RayCounter:
    from ray.util import metrics  # Ray is loaded already, see `_count`

    return metrics.Counter(
        "reki_loop_failures", "Failed steps of a loop in the background.", tag_keys=("loop",)
    )


class BackgroundLoop:
    """What threads and tasks have in common.

    Args:
        name: Name in logs and metrics.
        seconds: Time between two steps; it doubles with each failure in a row.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self._seconds = seconds
        self._in_row = 0
        self._told = ""
        self._ended_at = time.monotonic()
        _failures[name] += 0  # known from the start, so that a rate sees the first failure

    @property
    def pause(self) -> float:
        """Seconds until the next step."""
        doubled = self._seconds * 2.0 ** min(self._in_row, 16)
        return min(doubled, max(self._seconds, LONGEST_PAUSE))

    @property
    def silence(self) -> float:
        """Seconds since a step last ended, whether it failed or not."""
        return time.monotonic() - self._ended_at

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the last catch: the loop goes on
            _count(self.name)
            self._in_row += 1
            said = f"{type(error).__name__}: {error}"
            if said != self._told:  # not at every step
                self._told = said
                logger.error("%s failed and will be tried again", self.name, exc_info=error)
        else:
            self._in_row, self._told = 0, ""
        finally:
            self._ended_at = time.monotonic()


class BackgroundThread(BackgroundLoop):
    """A daemon thread that calls a step again and again.

    Args:
        name: Name of the thread.
        step: What to do each time.
        seconds: See `BackgroundLoop`.
    """

    def __init__(self, name: str, step: Callable[[], object], seconds: float) -> None:
        super().__init__(name, seconds)
        self._step = step
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; the first step comes at once."""
        self._thread.start()

    def stop(self, seconds: float = 0.0) -> bool:
        """Take no further step, and wait so long for the one in work; a step may call this too.

        Returns:
            Whether it has ended.
        """
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
    """A task of an event loop that awaits a step again and again.

    Args:
        name: Name of the task.
        step: What to do each time.
        seconds: See `BackgroundLoop`.
    """

    def __init__(self, name: str, step: Callable[[], Awaitable[object]], seconds: float) -> None:
        super().__init__(name, seconds)
        self._step = step
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin in the running event loop; the first step comes at once."""
        self._ended_at = time.monotonic()
        self._task = asyncio.create_task(self._run(), name=self.name)

    def stop(self) -> None:
        """End, also in the middle of a step."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            with self._guarded():
                await self._step()
            await asyncio.sleep(self.pause)
