"""Metrics among those of Ray, whose endpoint of a node has every process on it.

Nothing is recorded outside of Ray. Names here get the prefix `ray_` at the endpoint, and counters
the suffix `_total`; in a replica of Serve, Ray adds `application`, `deployment` and `replica`.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from prometheus_client.core import Metric

from reki_ray.core.background import BackgroundThread

EXPORT_SECONDS: Final = 5.0
"""Time between two exports of a collector to Ray."""

_kept: Final[dict[Any, tuple[float, Mapping[str, str]]]] = {}
"""Last value of each gauge that is set when something changes, with its labels."""


class Described(NamedTuple):
    """A metric that only Ray's endpoint has."""

    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


METRICS: Final = {
    "reki_engine_prompts": Described(
        "counter", "Prompts that an engine replica has finished, by outcome.", ("outcome",)
    ),
    "reki_engine_tokens": Described(
        "counter", "Tokens of an engine replica; those cached are among the prompts'.", ("kind",)
    ),
    "reki_extract_engine_failures": Described(
        "counter", "Pipelines of an extraction that died with their engines."
    ),
    "reki_extract_last_progress_timestamp_seconds": Described(
        "gauge", "When an extraction started or last finished prompts, Unix time."
    ),
    "reki_extract_running": Described("gauge", "1 while stage extract asks prompts, then 0."),
    "reki_storage_errors": Described(
        "counter", "Reads and writes of the workspace that failed.", ("action",)
    ),
    "reki_opened_version_number": Described(
        "gauge", "Number of the promoted version that a lookup or scorer replica has open."
    ),
    "reki_promoted_version_number": Described(
        "gauge", "Number of the version that a gateway is to serve."
    ),
    "reki_served_version_number": Described("gauge", "Number of the version a gateway serves."),
    "reki_served_version_created_timestamp_seconds": Described(
        "gauge", "When the version that a gateway serves was built, Unix time."
    ),
    "reki_request_mean_score": Described(
        "histogram",
        "Mean probability of the candidates of a scored request.",
        boundaries=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    ),
}


def count(name: str, by: float = 1, **labels: str) -> None:
    """Add to a counter of `METRICS`."""
    if by > 0:  # Ray refuses 0
        _record("inc", name, by, labels)


def set_gauge(name: str, value: float, **labels: str) -> None:
    """Set a gauge of `METRICS`, until it is set again."""
    if _in_ray():
        with contextlib.suppress(Exception):  # as in `_record`
            keep_gauge(_metric(name, METRICS[name]), value, labels)


def keep_gauge(gauge: Any, value: float, tags: Mapping[str, str]) -> None:
    """Set a gauge of Ray again and again: Ray drops a value that was set some 20 s ago."""
    gauge.set(value, tags=tags)
    _kept[gauge] = (value, tags)
    _repeat_gauges()


@functools.cache
def _repeat_gauges() -> None:
    def step() -> None:
        if _in_ray():
            for gauge, (value, tags) in list(_kept.items()):
                gauge.set(value, tags=tags)

    BackgroundThread("repeat-gauges", step, EXPORT_SECONDS).start()


def observe(name: str, value: float, **labels: str) -> None:
    """Add an observation to a histogram of `METRICS`."""
    _record("observe", name, value, labels)


@contextlib.contextmanager
def exporting(name: str, collect: Callable[[], Iterable[Metric]]) -> Iterator[None]:
    """Export the metrics of a collector of `prometheus_client` to Ray during the block.

    Args:
        name: Of the background loop.
    """
    export = RayExport(collect)
    thread = BackgroundThread(name, export, EXPORT_SECONDS)
    thread.start()
    try:
        yield
    finally:
        thread.stop(EXPORT_SECONDS)
        with contextlib.suppress(Exception):  # figures must not fail the work
            export()


class RayExport:
    """Exports the current values of a collector to Ray with each call."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect
        self._exported: dict[tuple[str, tuple[str, ...]], float] = {}

    def __call__(self) -> None:
        """Set gauges, and add to counters what is new."""
        if not _in_ray():
            return
        for family in self._collect():
            for sample in family.samples:
                labels = {name: str(value) for name, value in sample.labels.items()}
                described = Described(
                    "counter" if family.type == "counter" else "gauge",
                    family.documentation,
                    tuple(labels),
                )
                metric = _metric(family.name, described)
                if described.kind == "gauge":
                    metric.set(sample.value, tags=labels)
                    continue
                key = (family.name, tuple(labels.values()))
                fresh = sample.value - self._exported.get(key, 0.0)
                if fresh > 0:
                    metric.inc(fresh, tags=labels)
                    self._exported[key] = sample.value


def _record(method: str, name: str, value: float, labels: dict[str, str]) -> None:
    if not _in_ray():
        return
    with contextlib.suppress(Exception):  # a figure must never fail the work
        getattr(_metric(name, METRICS[name]), method)(value, tags=labels)


def _in_ray() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@functools.cache
def _metric(name: str, described: Described) -> Any:
    # Serve's twins add the labels of a replica; outside of replicas they are the same.
    metrics = sys.modules.get("ray.serve.metrics")
    if metrics is None:
        from ray.util import metrics  # Ray is loaded, see `_in_ray`
    buckets = {"boundaries": list(described.boundaries)} if described.boundaries else {}
    kind = getattr(metrics, described.kind.capitalize())
    return kind(name, description=described.text, tag_keys=described.labels, **buckets)
