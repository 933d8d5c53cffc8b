"""ASGI middleware: bounds the size of a body, and measures every request."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import ApiError, error_response

UNMATCHED = "unmatched"


class RequestGuard:
    """Refuses bodies above a limit with 413, also where no length is announced.

    Args:
        app: The application.
        max_body_bytes: Largest body.
        observe: Told route, status and seconds of every request.
    """

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, observe: Callable[[str, int, float], None]
    ) -> None:
        self._app = app
        self._limit = max_body_bytes
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 500

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            body = await self._body(receive)
            if body is None:
                await self._refusal()(scope, receive, noting_status)
            else:
                await self._app(scope, _replay(body, receive), noting_status)
        finally:
            # The template, not the path: ids in labels would make a series an id.
            route = getattr(scope.get("route"), "path", UNMATCHED)
            self._observe(route, status, time.monotonic() - started)

    async def _body(self, receive: Receive) -> bytes | None:
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._limit:
                return None
            if not message.get("more_body", False):  # also on a disconnect
                return bytes(body)

    def _refusal(self) -> ASGIApp:
        return error_response(
            ApiError(
                413,
                "body_too_large",
                "The body is too large.",
                details={"max_bytes": self._limit},
            )
        )


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replaying() -> Message:
        return pending.pop() if pending else await receive()

    return replaying
