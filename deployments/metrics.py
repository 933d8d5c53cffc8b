"""Metrics of one gateway replica in the Prometheus text format."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class GatewayMetrics:
    """Counters of one replica; the label `replica` keeps several apart in one scrape target.

    Args:
        replica: Name of the replica.
    """

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "reki_requests",
            "Requests by route and status.",
            ["route", "status", "replica"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "reki_request_seconds",
            "Time from request to answer, seconds.",
            ["route", "replica"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._retries = Counter(
            "reki_retries",
            "Calls of a deployment that were repeated.",
            ["hop", "replica"],
            registry=self._registry,
        )
        self._scored = Counter(
            "reki_scored",
            "Scored requests by the source of the user's knowledge.",
            ["user_source", "degraded", "replica"],
            registry=self._registry,
        )

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status), self._replica).inc()
        self._seconds.labels(route, self._replica).observe(seconds)

    def retried(self, hop: str) -> None:
        """Count a repeated call."""
        self._retries.labels(hop, self._replica).inc()

    def scored(self, user_source: str, *, degraded: bool) -> None:
        """Count a scored request."""
        self._scored.labels(user_source, str(degraded).lower(), self._replica).inc()

    def render(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self._registry)
