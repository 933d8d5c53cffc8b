"""Metrics of one gateway replica in the Prometheus text format.

The values of every label are of a fixed set, so that no caller can make series: routes are
templates, and what is not in a set counts as `other`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, TypeVar, get_args

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from reki_ray.core.background import loop_failures
from reki_ray.schema import Source

CONTENT_TYPE = CONTENT_TYPE_LATEST
OTHER: Final = "other"
HOPS: Final = ("lookup", "retriever", "scorer", "reranker")
LACKS: Final = ("lookup", "vectors_unavailable", "vectors_lost", "reranker", "titles")
"""What degraded answers had to do without."""
CALLERS: Final = ("admin", "user", "anonymous", "unknown")

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

Metric = TypeVar("Metric", Counter, Gauge, Histogram)


class GatewayMetrics:
    """Counters of one replica; the label `replica` keeps several apart in one scrape target.

    Args:
        replica: Name of the replica.
    """

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = self._make(
            Counter, "requests", "Requests by route and status.", "route", "status"
        )
        self._seconds = self._make(
            Histogram,
            "request_seconds",
            "Time from request to answer, seconds.",
            "route",
            buckets=_SECONDS,
        )
        self._retries = self._make(
            Counter, "retries", "Calls of a deployment that were repeated.", "hop"
        )
        self._scored = self._make(
            Counter,
            "scored",
            "Scored requests by the source of the user's knowledge.",
            *("user_source", "degraded"),
        )
        self._limited = self._make(
            Counter, "rate_limited", "Requests above a client's rate.", "caller"
        )
        self._rejections = self._make(
            Counter, "queue_rejections", "Calls that a full queue refused.", "hop"
        )
        self._failures = self._make(
            Counter, "hop_failures", "Calls of a deployment that were not answered.", "hop"
        )
        self._degraded = self._make(
            Counter, "degraded", "Answers that had to do without something.", "lack"
        )
        # Without a label of their own they count from 0 on, so that a rate sees the first.
        self._refused = self._make(
            Counter, "versions_refused", "Promoted versions that could not be loaded."
        ).labels(replica)
        self._events = self._make(
            Counter, "events_accepted", "Events that are durable in the log."
        ).labels(replica)
        self._version = self._make(
            Gauge, "served_version", "1 for the version being served.", "version"
        )
        self._follow(
            "loop_failures", "Failed steps of a loop in the background.", "loop", loop_failures
        )

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request.

        Args:
            route: Template of the path.
            status: HTTP status.
            seconds: From request to answer.
        """
        self._requests.labels(route, str(status), self.replica).inc()
        self._seconds.labels(route, self.replica).observe(seconds)

    def retried(self, hop: str) -> None:
        """Count a repeated call."""
        self._retries.labels(_one_of(hop, HOPS), self.replica).inc()

    def scored(self, user_source: str, *, degraded: bool) -> None:
        """Count a scored request."""
        source = _one_of(user_source, get_args(Source))
        self._scored.labels(source, str(degraded).lower(), self.replica).inc()

    def rate_limited(self, caller: str) -> None:
        """Count a request above a client's rate, by the role of the client."""
        self._limited.labels(_one_of(caller, CALLERS), self.replica).inc()

    def queue_rejected(self, hop: str) -> None:
        """Count a call that a full queue refused."""
        self._rejections.labels(_one_of(hop, HOPS), self.replica).inc()

    def hop_failed(self, hop: str) -> None:
        """Count a call that was not answered."""
        self._failures.labels(_one_of(hop, HOPS), self.replica).inc()

    def degraded(self, lack: str) -> None:
        """Count an answer that had to do without something."""
        self._degraded.labels(_one_of(lack, LACKS), self.replica).inc()

    def version_refused(self) -> None:
        """Count a promoted version that could not be loaded."""
        self._refused.inc()

    def events_accepted(self, count: int) -> None:
        """Count events that are durable."""
        self._events.inc(count)

    def serving(self, version: str) -> None:
        """Tell the version being served, as v3; the one before is no longer told."""
        self._version.clear()
        self._version.labels(version, self.replica).set(1)

    def follow_exposures(self, read: Callable[[], Mapping[str, int]]) -> None:
        """Tell how many exposures were written and dropped, as they are when somebody looks."""
        self._follow("exposures", "Exposures by what became of them.", "outcome", read)

    def render(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self._registry)

    def _follow(
        self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]
    ) -> None:
        self._registry.register(_Readings(f"reki_{name}", text, (label, self.replica), read))

    def _make(
        self, kind: type[Metric], name: str, text: str, *labels: str, **options: Any
    ) -> Metric:
        return kind(f"reki_{name}", text, [*labels, "replica"], registry=self._registry, **options)


class _Readings(Collector):
    """Counts that something else keeps.

    Args:
        name: Of the metric.
        text: What it counts.
        label: Name of the label that tells the counts apart, and the replica.
        read: The counts by the value of the label.
    """

    def __init__(
        self, name: str, text: str, label: tuple[str, str], read: Callable[[], Mapping[str, int]]
    ) -> None:
        self._name, self._text, self._read = name, text, read
        self._label, self._replica = label

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counts as they are now."""
        family = CounterMetricFamily(self._name, self._text, labels=[self._label, "replica"])
        for value, count in self._read().items():
            family.add_metric([value, self._replica], count)
        yield family


def _one_of(value: str, known: Collection[str]) -> str:
    return value if value in known else OTHER
