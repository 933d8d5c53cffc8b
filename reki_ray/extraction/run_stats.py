"""Live statistics of an extraction: progress, speed, cost, and when it ends."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from reki_ray.config import ExtractConfig
from reki_ray.llm.prices import gpus_of, token_cost

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_TREND_SECONDS: Final = 600.0
"""The end is forecast from the last ten minutes: they even out units and forget a slow start."""


class Snapshot(BaseModel):
    """Statistics at one moment; JSON-ready. Money is in `currency`, times are in seconds.

    Attributes:
        done: Prompts with an answer or a failure (`dead`); `left` have neither.
        cache_hits: Cached prompts of the plan, not among `prompts`.
        calls: Calls of the model, retries included.
        asked_again: Prompts that were retried because the first answer was not knowledge.
        cached_share: Cached tokens divided by prompt tokens; None before the first.
        tokens_per_second: Generated tokens per second since the start, start-up included.
        tokens_per_second_now: The same in the last minute.
        replicas: Engine replicas that are paid for.
        expected_cost: Money at the end; None before the first prompt is done.
        seconds_left: Time until the end; None without recent progress.
        ends_at: The end, seconds since the epoch; None as above.
    """

    model_config = ConfigDict(frozen=True)

    prompts: int = 0
    done: int = 0
    left: int = 0
    answered: int = 0
    dead: int = 0
    cache_hits: int = 0
    calls: int = 0
    asked_again: int = 0
    quarantined: dict[str, int] = {}
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    cached_share: float | None = None
    tokens_per_second: float = 0.0
    tokens_per_second_now: float = 0.0
    replicas: int = 0
    gpu_hours: float = 0.0
    currency: str = ""
    cost: float = 0.0
    expected_cost: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None
    ends_at: float | None = None


class RunStats:
    """Accumulates the counts of finished work units. Safe to read from another thread."""

    def __init__(self, config: ExtractConfig, clock: Callable[[], float] = time.time) -> None:
        self._prices = config.prices
        self._gpus = gpus_of(config)
        self._clock = clock
        self._lock = Lock()
        tokens = ("prompt_tokens", "cached_tokens", "generated_tokens")
        self._counts = dict.fromkeys(("answered", "dead", *tokens, "calls", "asked_again"), 0)
        self._quarantined: Counter[str] = Counter()
        self._total = 0
        self._hits = 0
        self._replicas = config.min_replicas
        self._replica_seconds = 0.0
        self._started = self._counted = clock()
        self._recent: deque[tuple[float, int, int]] = deque()

    def start(self, *, total: int, hits: int = 0) -> None:
        """Start the clock of rates, end and GPU hours.

        Args:
            total: Distinct prompts of this run.
            hits: Cached prompts of the plan.
        """
        with self._lock:
            self._total, self._hits = total, hits
            self._started = self._counted = self._clock()

    def resize(self, replicas: int) -> None:
        """Set the number of replicas from now on; `extract.min_replicas` until then."""
        with self._lock:
            self._count_replicas()
            self._replicas = replicas

    def add(self, counts: Mapping[str, int], quarantined: Mapping[str, int] | None = None) -> None:
        """Count a finished work unit.

        Args:
            counts: Answered and dead prompts, tokens and calls, by the names in `Snapshot`.
            quarantined: Dead prompts by problem.
        """
        with self._lock:
            self._quarantined.update(quarantined or {})
            for name in self._counts:
                self._counts[name] += counts[name]
            now = self._clock()
            done = counts["answered"] + counts["dead"]
            self._recent.append((now, done, counts["generated_tokens"]))
            while self._recent[0][0] < now - _TREND_SECONDS:
                self._recent.popleft()

    def snapshot(self) -> dict[str, Any]:
        """Current statistics, as fields of `Snapshot`."""
        with self._lock:
            return self._snapshot().model_dump()

    # --- below: with the lock held --------------------------------------------------------------

    def _snapshot(self) -> Snapshot:
        self._count_replicas()
        now = self._counted
        counts = self._counts
        done = counts["answered"] + counts["dead"]
        left = max(self._total - done, 0)
        seconds_left = _ratio(left, self._rate(_TREND_SECONDS)[0]) if left else 0.0
        seconds = now - self._started
        return Snapshot(
            prompts=self._total,
            done=done,
            left=left,
            cache_hits=self._hits,
            **counts,
            quarantined=dict(self._quarantined.most_common()),
            cached_share=_ratio(counts["cached_tokens"], counts["prompt_tokens"]),
            tokens_per_second=_ratio(counts["generated_tokens"], seconds) or 0.0,
            tokens_per_second_now=self._rate(_MINUTE)[1],
            replicas=self._replicas,
            gpu_hours=self._gpus * self._replica_seconds / _HOUR,
            currency=self._prices.currency,
            cost=self._gpu_cost(self._replica_seconds) + self._token_cost(),
            expected_cost=self._expected_cost(done, seconds_left),
            seconds=seconds,
            seconds_left=seconds_left,
            ends_at=None if seconds_left is None else now + seconds_left,
        )

    def _count_replicas(self) -> None:
        now = self._clock()
        self._replica_seconds += self._replicas * (now - self._counted)
        self._counted = now

    def _rate(self, window: float) -> tuple[float, float]:
        """Prompts and generated tokens per second in the last `window` seconds."""
        since = max(self._counted - window, self._started)
        recent = [unit for unit in self._recent if unit[0] >= since]
        seconds = self._counted - since
        prompts = sum(prompts for _, prompts, _ in recent)
        tokens = sum(tokens for _, _, tokens in recent)
        return _ratio(prompts, seconds) or 0.0, _ratio(tokens, seconds) or 0.0

    def _expected_cost(self, done: int, seconds_left: float | None) -> float | None:
        if not done or seconds_left is None:
            return None
        replica_seconds = self._replica_seconds + self._replicas * seconds_left
        return self._gpu_cost(replica_seconds) + self._token_cost() * max(self._total / done, 1.0)

    def _gpu_cost(self, replica_seconds: float) -> float:
        return self._gpus * replica_seconds / _HOUR * self._prices.gpu_hour

    def _token_cost(self) -> float:
        names = ("prompt_tokens", "cached_tokens", "generated_tokens")
        return token_cost(self._prices, *(self._counts[name] for name in names))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
