"""The outermost ASGI middleware: request id, access, sizes, errors, headers, log line, metrics."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import ApiError, defect, error_response
from deployments.middleware.auth import AccessControl
from deployments.middleware.logs import REQUEST_ID
from reki_ray.config.edge import EdgeSettings

UNMATCHED: Final = "unmatched"
CLIENT_GONE: Final = 499  # as in nginx; never sent
SECURITY: Final = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Security headers for answers that do not set them."""

_SANE_ID: Final = re.compile(rb"[A-Za-z0-9._:\-]{1,128}")

logger = logging.getLogger(__name__)


class RequestContext:
    """Identifies, times, counts and logs every request, and refuses some.

    Refused are unauthorized requests, too many, and those that are too large or too slow. The
    request's state has `request_id` and `caller`; endpoints may add `variant` and `version` for the
    log. The traceback of an unexpected exception is only logged.

    Args:
        observe: Called with route, status and seconds of every request.
        answers_id: Whether to add X-Request-ID to answers; False if the server does, as Ray Serve.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: EdgeSettings,
        access: AccessControl,
        observe: Callable[[str, int, float], None],
        answers_id: bool = True,
    ) -> None:
        self._app = app
        self._settings = settings
        self._access = access
        self._observe = observe
        self._answers_id = answers_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "websocket":  # there are none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        request_id = _request_id(scope)
        # A copy: the server may share one dict between requests.
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        token = REQUEST_ID.set(request_id)
        status: int | None = None

        async def completing(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
                if self._answers_id:
                    headers.append("x-request-id", request_id)
            await send(message)

        try:
            self._access.admit(scope)
            self._check_head(scope)
            body = await self._body(receive)
            await self._app(scope, _replay(body, receive), completing)
        except asyncio.CancelledError:
            status = CLIENT_GONE
            raise
        except ApiError as refusal:
            await error_response(refusal)(scope, receive, completing)
        except Exception as error:  # the caller must not see a traceback
            logger.error("a request failed", exc_info=error, extra={"route": _route(scope)})
            if status is not None:
                raise  # the answer has started: the server must close the connection
            await error_response(defect())(scope, receive, completing)
        finally:
            self._record(scope, status or 500, time.monotonic() - started)
            REQUEST_ID.reset(token)

    def _check_head(self, scope: Scope) -> None:
        url = len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"])
        if url > self._settings.max_url_bytes:
            raise _too_large(414, "url_too_long", "The URL is", self._settings.max_url_bytes)
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self._settings.max_header_bytes:
            limit = self._settings.max_header_bytes
            raise _too_large(431, "headers_too_large", "The headers are", limit)

    async def _body(self, receive: Receive) -> bytes:
        limit, seconds = self._settings.max_body_bytes, self._settings.body_seconds
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise _too_large(413, "body_too_large", "The body is", limit)
                    if not message.get("more_body", False):  # also on a disconnect
                        return bytes(body)
        except TimeoutError as error:
            raise ApiError(
                408,
                "body_too_slow",
                "The body arrived too slowly.",
                details={"max_seconds": seconds},
            ) from error

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        self._observe(route, status, seconds)
        if not self._settings.request_logs:
            return
        state = scope["state"]
        logger.log(
            logging.INFO if status < 500 else logging.WARNING,
            "request",
            extra={
                "method": scope["method"],
                "route": route,
                "status": status,
                "milliseconds": round(1000 * seconds, 3),
                "caller": getattr(state.get("caller"), "role", None),
                **{name: state.get(name) for name in ("variant", "version", "trace_id")},
            },
        )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        # Other values could forge or flood log lines.
        if name == b"x-request-id" and _SANE_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex


def _route(scope: Scope) -> str:
    """Return the template of the path, which contains no ids."""
    route = scope.get("route")
    if route is None:  # refused before routing
        routes = getattr(scope.get("app"), "routes", ())
        matching = (known for known in routes if known.matches(scope)[0] is not Match.NONE)
        route = next(matching, None)
    return getattr(route, "path", UNMATCHED)


def _too_large(status: int, code: str, what: str, limit: int) -> ApiError:
    return ApiError(status, code, f"{what} too large.", details={"max_bytes": limit})


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replaying() -> Message:
        return pending.pop() if pending else await receive()

    return replaying
