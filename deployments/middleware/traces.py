"""Optional OpenTelemetry traces of requests, without ids of users and addresses."""

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
"""Attributes with paths, which contain ids, or about the client."""


def install_tracing(
    app: FastAPI, endpoint: str, replica: str, processor: SpanProcessor | None = None
) -> None:
    """Trace the requests of an application; send spans to `endpoint`, OTLP over HTTP.

    Args:
        processor: Processes finished spans; None sends them to the endpoint in batches.

    Raises:
        ConfigError: The packages of the extra `tracing` are missing.
    """
    try:  # here: the packages are optional
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"tracing needs a package that is not installed: {error.name}",
            where="serve.edge.otlp_endpoint",
            todo="Install reki-ray[tracing], or leave the endpoint out.",
        ) from error
    names = {"name": "reki-ray", "version": __version__, "instance.id": replica}
    resource = Resource.create({f"service.{name}": value for name, value in names.items()})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=provider,
        server_request_hook=_anonymize,
        # Probes and scrapes are frequent and uninteresting.
        excluded_urls="/healthz,/readyz,/metrics",
        # No span per part of a body.
        exclude_spans=["receive", "send"],
    )


def _anonymize(span: Span, scope: dict[str, Any]) -> None:
    if not span.is_recording():
        return
    present = getattr(span, "attributes", None) or {}
    for name in PERSONAL:
        if name in present:
            span.set_attribute(name, "")
    # For the log line of the request.
    trace_id = format(span.get_span_context().trace_id, "032x")
    scope["state"] = {**scope.get("state", {}), "trace_id": trace_id}
