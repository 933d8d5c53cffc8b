"""All that stands between callers and the endpoints, installed by one call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from deployments import errors, logs
from deployments.auth import Authenticator, Caller
from deployments.guard import AccessGuard, RequestGuard
from deployments.metrics import GatewayMetrics
from deployments.rate import RateLimiter
from deployments.requests import RequestContext
from deployments.tracing import install_tracing
from reki_ray.config.edge import EdgeSettings, address_of

PAGE: Final = Path(__file__).parent / "page"
PAGE_FILES: Final = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/base.js": ("base.js", "text/javascript"),
    "/page.js": ("page.js", "text/javascript"),
    "/operator.js": ("operator.js", "text/javascript"),
}
PAGE_HEADERS: Final = {
    # The page asks this service alone, runs its own scripts alone, never makes markup out of
    # text (trusted types), and no other site may frame it.
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; style-src 'self'; "
    "script-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cache-Control": "no-cache",
}


class ForwardedClient:
    """Takes the client's address from X-Forwarded-For, where a trusted proxy sends it.

    Args:
        app: The application.
        trusted: Addresses and networks of proxies.
    """

    def __init__(self, app: ASGIApp, trusted: Sequence[str]) -> None:
        self._app = ProxyHeadersMiddleware(app, trusted_hosts=list(trusted))  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        host, *port = scope.get("client") or ("",)
        # Else a proxy that comes as ::ffff:10.0.0.7 would not be in 10.0.0.0/8.
        found = address_of(host)
        if found is not None:
            scope["client"] = (str(found), *port)
        await self._app(scope, receive, send)  # type: ignore[arg-type]


def install_edge(
    app: FastAPI, settings: EdgeSettings, metrics: GatewayMetrics, *, answers_id: bool = True
) -> None:
    """Put access, limits, logs, metrics, errors and the page around an application.

    From outside in: client address, request context, access, sizes, the application.

    Args:
        app: Not started yet.
        settings: Access and limits.
        metrics: Counters of this replica.
        answers_id: Whether answers carry X-Request-ID; not where the server writes it itself.

    Raises:
        ConfigError: A token is missing or unusable, or tracing lacks its packages.
    """
    limiter = None
    if settings.rate_per_second is not None:
        limiter = RateLimiter(settings.rate_per_second, settings.rate_burst, settings.rate_clients)

    def on_limited(caller: Caller) -> None:
        metrics.rate_limited(caller.role)

    errors.install(app)
    _install_page(app)
    logs.configure(metrics.replica)
    # The one added last is outermost.
    app.add_middleware(RequestGuard, settings=settings)
    app.add_middleware(
        AccessGuard,
        authenticator=Authenticator(settings),
        limiter=limiter,
        on_limited=on_limited,
    )
    app.add_middleware(
        RequestContext,
        observe=metrics.observe,
        log_requests=settings.request_logs,
        answers_id=answers_id,
    )
    if settings.trusted_proxies:
        app.add_middleware(ForwardedClient, trusted=settings.trusted_proxies)
    if settings.otlp_endpoint is not None:
        install_tracing(app, settings.otlp_endpoint, metrics.replica)


def _install_page(app: FastAPI) -> None:
    for path, (name, media_type) in PAGE_FILES.items():
        endpoint = _page_file(PAGE / name, media_type)
        app.add_route(path, endpoint, methods=["GET"], include_in_schema=False)


def _page_file(file: Path, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    content = file.read_bytes()

    async def answer(_: Request) -> Response:
        return Response(content, media_type=media_type, headers=PAGE_HEADERS)

    return answer
