"""Installs everything between callers and the endpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request, Response
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from deployments import errors
from deployments.middleware import logs
from deployments.middleware.auth import PAGE, AccessControl
from deployments.middleware.metrics import GatewayMetrics
from deployments.middleware.request_context import RequestContext
from deployments.middleware.traces import install_tracing
from reki_ray.config.edge import EdgeSettings, networks

PAGE_FOLDER: Final = Path(__file__).parents[1] / "page"
PAGE_HEADERS: Final = {
    # The page only connects to this service, only runs its own scripts, never turns text into
    # markup (trusted types), and cannot be framed by other sites.
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; style-src 'self'; "
    "script-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cache-Control": "no-cache",
}


def install_edge(
    app: FastAPI, settings: EdgeSettings, metrics: GatewayMetrics, *, answers_id: bool = True
) -> None:
    """Add access, limits, logs, metrics, errors and the page to an application.

    Args:
        answers_id: Whether to add X-Request-ID to answers; False if the server does.

    Raises:
        ConfigError: A token is missing or invalid, or tracing lacks its packages.
    """
    errors.install(app)
    for path, media_type in PAGE.items():
        endpoint = _page_file(PAGE_FOLDER / (path[1:] or "index.html"), media_type)
        app.add_route(path, endpoint, methods=["GET"], include_in_schema=False)
    logs.configure(metrics.replica)
    app.add_middleware(
        RequestContext,
        settings=settings,
        access=AccessControl(settings, metrics.rate_limited),
        observe=metrics.observe,
        answers_id=answers_id,
    )
    if settings.trusted_proxies:  # outside, as it was added last
        app.add_middleware(
            ProxyHeadersMiddleware, trusted_hosts=[*map(str, networks(settings.trusted_proxies))]
        )
    if settings.otlp_endpoint is not None:
        install_tracing(app, settings.otlp_endpoint.get_secret_value(), metrics.replica)


def _page_file(file: Path, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    content = file.read_bytes()

    async def answer(_: Request) -> Response:
        return Response(content, media_type=media_type, headers=PAGE_HEADERS)

    return answer
