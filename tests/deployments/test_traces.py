"""Spans of requests, without ids of users."""

from __future__ import annotations

import json
import sys

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deployments.middleware.traces import install_tracing
from reki_ray.config.edge import EdgeSettings
from reki_ray.errors import ConfigError
from tests.support import edge_app
from tests.support.edge_app import client

ANONYMOUS = EdgeSettings(allow_anonymous=True)
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def test_a_request_is_one_span_of_its_callers_trace(exporter: InMemorySpanExporter) -> None:
    made = edge_app.app(ANONYMOUS)
    install_tracing(made, "http://127.0.0.1:1", "replica-1", SimpleSpanProcessor(exporter))
    client(made).post("/v1/score", headers={"traceparent": PARENT})
    [span] = exporter.get_finished_spans()
    assert span.name == "POST /v1/score"
    assert span.context is not None
    assert format(span.context.trace_id, "032x") == PARENT.split("-")[1]
    assert span.resource.attributes["service.name"] == "reki-ray"
    assert span.resource.attributes["service.instance.id"] == "replica-1"


def test_spans_hold_no_ids_and_no_addresses(exporter: InMemorySpanExporter) -> None:
    made = edge_app.app(ANONYMOUS)
    install_tracing(made, "http://127.0.0.1:1", "replica-1", SimpleSpanProcessor(exporter))
    client(made).get("/v1/users/u17/knowledge?of=u17", headers={"User-Agent": "personal"})
    [span] = exporter.get_finished_spans()
    assert span.name == "GET /v1/users/{user_id:path}/knowledge"
    for personal in ("u17", "203.0.113.5", "personal"):
        assert personal not in span.to_json()


def test_probes_and_scrapes_make_no_spans(exporter: InMemorySpanExporter) -> None:
    made = edge_app.app(ANONYMOUS)
    install_tracing(made, "http://127.0.0.1:1", "replica-1", SimpleSpanProcessor(exporter))
    for path in ("/healthz", "/readyz", "/metrics"):
        client(made).get(path)
    assert exporter.get_finished_spans() == ()


def test_the_log_line_names_the_trace(
    exporter: InMemorySpanExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    made = edge_app.app(ANONYMOUS)
    install_tracing(made, "http://127.0.0.1:1", "replica-1", SimpleSpanProcessor(exporter))
    client(made).post("/v1/score", headers={"traceparent": PARENT})
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert line["trace_id"] == PARENT.split("-")[1]


@pytest.mark.parametrize(
    "module",
    [
        "opentelemetry.instrumentation.fastapi",
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    ],
)
def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    traced = EdgeSettings(allow_anonymous=True, otlp_endpoint="http://127.0.0.1:4318/v1/traces")
    with pytest.raises(ConfigError, match=r"Install reki-ray\[tracing\]"):
        edge_app.app(traced)


def test_without_an_endpoint_nothing_is_traced() -> None:
    made = edge_app.app(ANONYMOUS)
    assert client(made).post("/v1/score").status_code == 200
    assert not getattr(made, "_is_instrumented_by_opentelemetry", False)
