"""Metrics of a gateway replica, at its `/metrics` and among Ray's metrics of its node.

Behind a proxy `/metrics` answers for one replica, and says so; Ray's endpoint has all replicas of
a node (docs/adr/0020-metrics-of-all-replicas.md). The values of every label come from a fixed set,
so that callers cannot create series: routes are templates, and unknown values count as `other`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, Literal, get_args

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from ray import serve
from ray.serve import metrics as ray_metrics
from ray.serve.exceptions import RayServeException

from reki_ray.core.background import BackgroundThread, loop_failures
from reki_ray.core.ray_metrics import EXPORT_SECONDS, RayExport, keep_gauge
from reki_ray.schema import Source

CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST
OTHER: Final = "other"
HOPS: Final = ("lookup", "retriever", "scorer", "reranker")
LACKS: Final = ("lookup", "vectors_unavailable", "vectors_lost", "reranker", "titles")
"""What degraded answers may lack."""
CALLERS: Final = ("admin", "user", "anonymous", "unknown")

Count = Callable[[str], None]

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class _Metric:
    """A metric at `/metrics` and, in a replica of Serve, its twin among Ray's metrics.

    Ray itself adds the labels `application`, `deployment` and `replica`. A label with known values
    counts others as `other`.
    """

    def __init__(
        self,
        owner: GatewayMetrics,
        kind: Literal["Counter", "Gauge", "Histogram"],
        name: str,
        text: str,
        **labels: tuple[str, ...] | None,
    ) -> None:
        self._labels, self._replica = labels, owner.replica
        name = f"reki_{name}"
        buckets: dict[str, Any] = {"buckets": _SECONDS} if kind == "Histogram" else {}
        self._local = getattr(prometheus, kind)(
            name, text, [*labels, "replica"], registry=owner.registry, **buckets
        )
        if not labels:  # starts at 0, so that a rate sees the first increment
            self._local.labels(self._replica)
        self._exported = None
        if owner.in_serve:
            boundaries: dict[str, Any] = {"boundaries": list(_SECONDS)} if buckets else {}
            self._exported = getattr(ray_metrics, kind)(
                name, text, tag_keys=tuple(labels), **boundaries
            )

    def inc(self, *values: str, by: int = 1) -> None:
        self._apply("inc", by, values)

    def observe(self, number: float, *values: str) -> None:
        self._apply("observe", number, values)

    def replace(self, value: str, old: str | None) -> None:
        """Set the series of `value` to 1, and remove that of `old`."""
        self._local.clear()
        self._apply("set", 1, (value,))
        if self._exported is not None:
            (label,) = self._labels
            if old is not None:  # Ray shows the last value of a series for a while
                self._exported.set(0, tags={label: old})
            keep_gauge(self._exported, 1, {label: value})

    def _apply(self, method: str, number: float, values: tuple[str, ...]) -> None:
        tags = {
            label: value if known is None or value in known else OTHER
            for (label, known), value in zip(self._labels.items(), values, strict=True)
        }
        getattr(self._local.labels(**tags, replica=self._replica), method)(number)
        if self._exported is not None:
            getattr(self._exported, method)(number, tags=tags)


class GatewayMetrics:
    """Metrics of one replica, which the label `replica` names."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self.registry = prometheus.CollectorRegistry()
        self.in_serve = _is_in_serve()
        self._version: str | None = None
        prometheus.ProcessCollector(registry=self.registry)
        counter = partial(_Metric, self, "Counter")
        self._requests = counter(
            "requests", "Requests by route and status.", route=None, status=None
        )
        self._seconds = _Metric(
            self,
            "Histogram",
            "request_seconds",
            "Time from request to answer, seconds.",
            route=None,
        )
        self.retried: Count = counter(
            "retries", "Calls of a deployment that were repeated.", hop=HOPS
        ).inc
        self._scored = counter(
            "scored",
            "Scored requests by the source of the user's knowledge.",
            user_source=get_args(Source),
            degraded=None,
        )
        self.rate_limited: Count = counter(
            "rate_limited", "Requests above a client's rate.", caller=CALLERS
        ).inc
        self.queue_rejected: Count = counter(
            "queue_rejections", "Calls of a deployment that a full queue refused.", hop=HOPS
        ).inc
        self.hop_failed: Count = counter(
            "hop_failures", "Calls of a deployment that were not answered.", hop=HOPS
        ).inc
        self.degraded: Count = counter("degraded", "Answers that lack something.", lack=LACKS).inc
        self.version_refused: Callable[[], None] = counter(
            "versions_refused", "Promoted versions that could not be loaded."
        ).inc
        self._events = counter("events_accepted", "Events that are durable in the log.")
        self._served = _Metric(
            self, "Gauge", "served_version", "1 for the version being served.", version=None
        )
        self._register("loop_failures", "Failed steps of a background loop.", "loop", loop_failures)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request by the template of its path."""
        self._requests.inc(route, str(status))
        self._seconds.observe(seconds, route)

    def scored(self, user_source: str, *, degraded: bool) -> None:
        """Count a scored request."""
        self._scored.inc(user_source, str(degraded).lower())

    def events_accepted(self, count: int) -> None:
        """Count durable events."""
        self._events.inc(by=count)

    def serving(self, version: str) -> None:
        """Report the version being served, such as v3, in place of the one before."""
        self._served.replace(version, self._version)
        self._version = version

    def follow_exposures(self, read: Callable[[], Mapping[str, int]]) -> None:
        """Report the exposures by outcome, as `read` returns them."""
        self._register("exposures", "Exposures by outcome.", "outcome", read)
        if not self.in_serve:
            return

        def collect() -> Iterator[CounterMetricFamily]:
            family = CounterMetricFamily(
                "reki_exposures", "Exposures by outcome.", labels=["outcome"]
            )
            for outcome, count in read().items():
                family.add_metric([outcome], count)
            yield family

        BackgroundThread("export-exposures", RayExport(collect), EXPORT_SECONDS).start()

    def render(self) -> bytes:
        """Return all metrics of this replica in the text format."""
        return self._note.encode() + prometheus.generate_latest(self.registry)

    @property
    def _note(self) -> str:
        return (
            f"# Only the gateway replica {self.replica}: Ray's metrics endpoint of each node has "
            "those of all replicas.\n"
        )

    def _register(
        self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]
    ) -> None:
        replica = self.replica

        class Readings(Collector):
            def collect(self) -> Iterator[CounterMetricFamily]:
                family = CounterMetricFamily(f"reki_{name}", text, labels=[label, "replica"])
                for value, count in read().items():
                    family.add_metric([value, replica], count)
                yield family

        self.registry.register(Readings())


def _is_in_serve() -> bool:
    with contextlib.suppress(RayServeException):
        return serve.get_replica_context() is not None
    return False
