"""Prometheus metrics of a running extract: the statistics of `reki status`.

They are among Ray's metrics of the driver's node and, with `extract.metrics_port`, at a port of
their own, where they are read when scraped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from reki_ray.core import ray_metrics
from reki_ray.errors import ConfigError
from reki_ray.extraction.run_stats import RunStats, Snapshot

_GAUGES = {
    "left": ("prompts_left", "Prompts that have neither an answer nor a reason."),
    "cache_hits": ("cache_hits", "Prompts of the plan that an earlier run had answered."),
    "cached_share": ("cached_share", "Cached tokens by prompt tokens."),
    "tokens_per_second_now": (
        "tokens_per_second",
        "Generated tokens per second in the last minute.",
    ),
    "replicas": ("replicas", "Engine replicas that are paid for."),
    "seconds_left": ("seconds_left", "Time until the end, seconds."),
    "cost": ("cost", "Money spent so far."),
    "expected_cost": ("expected_cost", "Money spent at the end, as far as known."),
}

_MONEY = ("cost", "expected_cost")


@contextlib.contextmanager
def exported(stats: RunStats, port: int | None) -> Iterator[int | None]:
    """Export statistics to Ray, and at `http://<this machine>:<port>/metrics`, during the block.

    Args:
        port: Port on all interfaces; 0 takes a free one, None opens none.

    Yields:
        The port, or None.

    Raises:
        ConfigError: The port cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        opened = None if port is None else stack.enter_context(_served(stats, port))
        stack.enter_context(ray_metrics.exporting("export-extract", _StatsCollector(stats).collect))
        ray_metrics.set_gauge("reki_extract_last_progress_timestamp_seconds", time.time())
        ray_metrics.set_gauge("reki_extract_running", 1)
        try:
            yield opened
        finally:
            ray_metrics.set_gauge("reki_extract_running", 0)


@contextlib.contextmanager
def _served(stats: RunStats, port: int) -> Iterator[int]:
    registry = CollectorRegistry()
    registry.register(_StatsCollector(stats))
    try:
        server, thread = start_http_server(port, registry=registry)
    except OSError as error:
        raise ConfigError(
            f"metrics cannot be served: {error.strerror or error}",
            where=f"extract.metrics_port = {port}",
            todo="Name a free port, 0 for any, or null for no metrics.",
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _StatsCollector(Collector):
    def __init__(self, stats: RunStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """One family per statistic; those not known yet are left out."""
        snapshot = Snapshot(**self._stats.snapshot())
        prompts = {"answered": snapshot.answered, "dead": snapshot.dead}
        tokens = {
            "prompt": snapshot.prompt_tokens,
            "cached": snapshot.cached_tokens,
            "generated": snapshot.generated_tokens,
        }
        yield _counters("prompts", "Prompts that are done, by outcome.", "state", prompts)
        text = "Tokens; those cached are among those of prompts."
        yield _counters("tokens", text, "kind", tokens)
        yield CounterMetricFamily(
            "reki_extract_asked_again",
            "Prompts that were asked once more, since their first answer was not knowledge.",
            value=snapshot.asked_again,
        )
        text = "Prompts without an answer."
        yield _counters("quarantined", text, "problem", snapshot.quarantined)
        yield CounterMetricFamily("reki_extract_calls", "Calls of the model.", value=snapshot.calls)
        for field, (name, text) in _GAUGES.items():
            value = getattr(snapshot, field)
            if value is not None:
                labels = {"currency": snapshot.currency} if field in _MONEY else {}
                gauge = GaugeMetricFamily(f"reki_extract_{name}", text, labels=list(labels))
                gauge.add_metric(list(labels.values()), value)
                yield gauge


def _counters(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    """A counter with a label, as `reki_extract_<name>`."""
    family = CounterMetricFamily(f"reki_extract_{name}", text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family
