"""Optional traces of requests by OpenTelemetry; spans hold no ids of users and no addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI

from reki_ray import __version__
from reki_ray.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

PERSONAL: Final = (
    *("http.url", "http.target", "url.full", "url.path", "url.query"),
    *("net.peer.ip", "net.peer.port", "client.address", "client.port", "network.peer.address"),
    *("http.user_agent", "user_agent.original"),
)
"""Attributes that hold a path with ids, or tell who asked."""


def install_tracing(
    app: FastAPI, endpoint: str, replica: str, processor: SpanProcessor | None = None
) -> None:
    """Trace the requests of an application.

    Args:
        app: Not started yet.
        endpoint: Where spans go, OTLP over HTTP.
        replica: Name of the replica.
        processor: Takes finished spans; None sends them to the endpoint in batches.

    Raises:
        ConfigError: The packages of the extra `tracing` are missing.
    """
    try:  # here: the packages are optional
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
    except ImportError as error:
        raise _missing(error) from error
    resource = Resource.create(
        {
            "service.name": "reki-ray",
            "service.version": __version__,
            "service.instance.id": replica,
        }
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(processor or _to_endpoint(endpoint))
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=provider,
        server_request_hook=_without_persons,
        # Probes and scrapes come all the time and tell nothing.
        excluded_urls="/healthz,/readyz,/metrics",
        # A span for every part of a body would outnumber all others.
        exclude_spans=["receive", "send"],
    )


def _to_endpoint(endpoint: str) -> SpanProcessor:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise _missing(error) from error
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint))


def _without_persons(span: Span, scope: dict[str, Any]) -> None:
    if not span.is_recording():
        return
    present = getattr(span, "attributes", None) or {}
    for name in PERSONAL:
        if name in present:
            span.set_attribute(name, "")
    # The log line of the request names its trace.
    trace_id = format(span.get_span_context().trace_id, "032x")
    scope["state"] = {**scope.get("state", {}), "trace_id": trace_id}


def _missing(error: ImportError) -> ConfigError:
    return ConfigError(
        f"tracing needs a package that is not installed: {error.name}",
        where="serve.edge.otlp_endpoint",
        todo="Install reki-ray[tracing], or leave the endpoint out.",
    )
