"""ASGI middlewares that refuse requests: unauthorized, too many, too large."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import ApiError, error_response
from deployments.middleware.auth import PROBES, Authenticator
from deployments.middleware.rate_limiter import RateLimiter
from reki_ray.config.edge import EdgeSettings


class AccessGuard:
    """Checks token and rate of a request, and adds `caller` to its state.

    Args:
        on_limited: Called with the caller's role for every request above the limit.
    """

    def __init__(
        self,
        app: ASGIApp,
        authenticator: Authenticator,
        limiter: RateLimiter | None,
        on_limited: Callable[[str], None],
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._limiter = limiter
        self._on_limited = on_limited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse a request."""
        try:
            if scope["type"] == "http":
                self._check(scope)
        except ApiError as refusal:
            await error_response(refusal)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        caller = self._authenticator.caller(scope)
        scope.setdefault("state", {})["caller"] = caller
        path = route_path(scope)
        # A 429 would make a probe restart a busy replica.
        if self._limiter is not None and path not in PROBES:
            wait = self._limiter.wait(caller.key)
            if wait:
                self._on_limited(caller.role)
                raise ApiError(
                    429,
                    "rate_limited",
                    "Too many requests from this client; try again later.",
                    details={"retry_after_seconds": round(wait, 3)},
                    headers={"Retry-After": str(math.ceil(wait))},
                )
        self._authenticator.require_access(caller, path, scope)


class RequestGuard:
    """Refuses requests with too large headers or URL, or a too large or slow body."""

    def __init__(self, app: ASGIApp, settings: EdgeSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_head(scope)
            async with asyncio.timeout(self._settings.body_seconds):
                body = await self._body(receive)
        except ApiError as refusal:
            await error_response(refusal)(scope, receive, send)
        except TimeoutError:
            details = {"max_seconds": self._settings.body_seconds}
            slow = ApiError(408, "body_too_slow", "The body arrived too slowly.", details=details)
            await error_response(slow)(scope, receive, send)
        else:
            await self._app(scope, _replay(body, receive), send)

    def _check_head(self, scope: Scope) -> None:
        url = len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"])
        if url > self._settings.max_url_bytes:
            raise _too_large(414, "url_too_long", "The URL is", self._settings.max_url_bytes)
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self._settings.max_header_bytes:
            limit = self._settings.max_header_bytes
            raise _too_large(431, "headers_too_large", "The headers are", limit)

    async def _body(self, receive: Receive) -> bytes:
        limit = self._settings.max_body_bytes
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > limit:
                raise _too_large(413, "body_too_large", "The body is", limit)
            if not message.get("more_body", False):  # also on a disconnect
                return bytes(body)


def route_path(scope: Scope) -> str:
    """Return the path below the application's root, as the router matches it."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path


def _too_large(status: int, code: str, what: str, limit: int) -> ApiError:
    return ApiError(status, code, f"{what} too large.", details={"max_bytes": limit})


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replaying() -> Message:
        return pending.pop() if pending else await receive()

    return replaying
