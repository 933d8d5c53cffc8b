"""Counters of a replica; no caller can make series."""

from __future__ import annotations

from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.flows.deadline import Hop
from deployments.middleware.metrics import HOPS, LACKS, GatewayMetrics
from deployments.parts.records import Lack
from reki_ray.config.edge import EdgeSettings
from reki_ray.core.background import BackgroundLoop
from tests.support import edge_app
from tests.support.edge_app import client

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(metrics: GatewayMetrics) -> Samples:
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k != "replica"))): (
            sample.value
        )
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_every_counter_counts() -> None:
    metrics = GatewayMetrics("replica-1")
    metrics.retried("scorer")
    metrics.scored("cluster", degraded=True)
    metrics.rate_limited("anonymous")
    metrics.queue_rejected("lookup")
    metrics.hop_failed("scorer")
    metrics.degraded("vectors_lost")
    metrics.follow_exposures(lambda: {"written": 5, "dropped": 2})
    metrics.version_refused()
    metrics.events_accepted(3)
    found = samples(metrics)
    assert found["reki_retries_total", (("hop", "scorer"),)] == 1
    assert found["reki_scored_total", (("degraded", "true"), ("user_source", "cluster"))] == 1
    assert found["reki_rate_limited_total", (("caller", "anonymous"),)] == 1
    assert found["reki_queue_rejections_total", (("hop", "lookup"),)] == 1
    assert found["reki_hop_failures_total", (("hop", "scorer"),)] == 1
    assert found["reki_degraded_total", (("lack", "vectors_lost"),)] == 1
    assert found["reki_exposures_total", (("outcome", "written"),)] == 5
    assert found["reki_exposures_total", (("outcome", "dropped"),)] == 2
    assert found["reki_versions_refused_total", ()] == 1
    assert found["reki_events_accepted_total", ()] == 3


def test_counters_without_labels_are_there_before_they_count() -> None:
    found = samples(GatewayMetrics("replica-1"))
    assert found["reki_versions_refused_total", ()] == 0
    assert found["reki_events_accepted_total", ()] == 0


def test_failures_of_loops_are_counted_by_their_name() -> None:
    loop = BackgroundLoop("a-loop", 1.0)
    metrics = GatewayMetrics("replica-1")
    assert samples(metrics)["reki_loop_failures_total", (("loop", "a-loop"),)] == 0
    with loop._guarded():
        raise OSError
    assert samples(metrics)["reki_loop_failures_total", (("loop", "a-loop"),)] == 1


def test_all_that_may_be_told_has_a_label_of_its_own() -> None:
    assert set(get_args(Hop)) == set(HOPS)
    assert set(get_args(Lack)) - {""} < set(LACKS)


def test_the_served_version_is_told_alone() -> None:
    metrics = GatewayMetrics("replica-1")
    metrics.serving("v3")
    metrics.serving("v4")
    told = {key: value for key, value in samples(metrics).items() if "version" in dict(key[1])}
    assert told == {("reki_served_version", (("version", "v4"),)): 1}


def test_unknown_values_count_as_other() -> None:
    metrics = GatewayMetrics("replica-1")
    for number in range(100):
        metrics.retried(f"hop {number}")
        metrics.scored(f"source {number}", degraded=False)
    found = samples(metrics)
    assert found["reki_retries_total", (("hop", "other"),)] == 100
    assert len([key for key in found if key[0] == "reki_scored_total"]) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "evil.example"])
def test_no_caller_makes_series(host: str) -> None:
    metrics = GatewayMetrics("replica-1")
    settings = EdgeSettings(allow_anonymous=True)
    made = client(edge_app.app(settings, metrics), host=host)
    for number in range(20):
        made.get(f"/v1/users/u{number}/knowledge")
        made.get(f"/v1/nothing/{number}")
        made.request(f"METHOD{number}", "/v1/score")
    routes = {dict(labels)["route"] for name, labels in samples(metrics) if "route" in dict(labels)}
    assert routes == {"/v1/users/{user_id:path}/knowledge", "/v1/score", "unmatched"}


def test_requests_above_the_rate_are_counted_by_caller() -> None:
    metrics = GatewayMetrics("replica-1")
    settings = EdgeSettings(allow_anonymous=True, rate_per_second=1e-4, rate_burst=1)
    made = client(edge_app.app(settings, metrics))
    for _ in range(3):
        made.post("/v1/score")
    found = samples(metrics)
    assert found["reki_rate_limited_total", (("caller", "anonymous"),)] == 2
    assert found["reki_requests_total", (("route", "/v1/score"), ("status", "429"))] == 2
