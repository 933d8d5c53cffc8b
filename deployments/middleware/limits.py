"""The ASGI middleware that refuses requests: unauthorized, too many, too large, too slow."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import ApiError
from deployments.middleware.auth import AccessControl
from reki_ray.config.edge import EdgeSettings


class RequestGuard:
    """Raises an ApiError for refused requests; passes others on with their whole body."""

    def __init__(self, app: ASGIApp, settings: EdgeSettings, access: AccessControl) -> None:
        self._app = app
        self._settings = settings
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse a request."""
        if scope["type"] == "http":
            self._access.admit(scope)
            self._check_head(scope)
            receive = _replay(await self._body(receive), receive)
        await self._app(scope, receive, send)

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


def _too_large(status: int, code: str, what: str, limit: int) -> ApiError:
    return ApiError(status, code, f"{what} too large.", details={"max_bytes": limit})


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replaying() -> Message:
        return pending.pop() if pending else await receive()

    return replaying
