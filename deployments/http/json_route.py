"""Routes that read and write JSON in one pass.

FastAPI parses a body to Python objects, validates these, and on the way back copies the answer
into models and those into JSON-ready objects. With a hundred candidates that takes longer than
the model's forward. Here pydantic validates the bytes themselves, and an endpoint answers with
bytes; the description at /openapi.json is FastAPI's all the same.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from deployments.errors import ApiError

JSON: Final = "application/json"

Endpoint = Callable[[Request, Any], Awaitable[Response]]


class JsonRoute(APIRoute):
    """A route whose endpoint takes the request and its validated JSON body.

    The endpoint's second parameter is annotated with the body's type, and may come without a body
    where it has a default; it answers with a `Response`, which `response_model` only describes.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        endpoint: Endpoint = self.endpoint
        _, body = inspect.signature(endpoint, eval_str=True).parameters.values()
        optional = body.default is not inspect.Parameter.empty
        adapter: TypeAdapter[Any] = TypeAdapter(body.annotation)

        async def handle(request: Request) -> Response:
            content = await request.body()
            if not content and optional:
                return await endpoint(request, body.default)
            if not _is_json(request.headers.get("content-type", "")):
                raise _no_json()
            try:
                value = adapter.validate_json(content)
            except ValidationError as error:
                raise _invalid(error, content) from error
            return await endpoint(request, value)

        return handle


def json_response(content: Mapping[str, Any], status: int = 200) -> Response:
    """An answer of JSON-ready content.

    Args:
        content: As the route's `response_model`; it is not validated again.
        status: HTTP status.

    Raises:
        ValueError: It holds a number that JSON has not.
    """
    body = to_json(content)
    if b"NaN" in body or b"Infinity" in body:  # in a text, or as a number
        json.dumps(content, allow_nan=False)
    return Response(body, status_code=status, media_type=JSON)


def _is_json(content_type: str) -> bool:
    if content_type == JSON:
        return True
    kind = content_type.partition(";")[0].strip().lower()
    return kind == JSON or (kind.startswith("application/") and kind.endswith("+json"))


def _no_json() -> ApiError:
    return ApiError(
        415,
        "unsupported_media_type",
        "The body has to be JSON, sent with Content-Type: application/json.",
        headers={"Accept": JSON},
    )


def _invalid(error: ValidationError, content: bytes) -> RequestValidationError:
    problems: list[dict[str, Any]] = [
        {**problem, "loc": ("body", *problem["loc"])}
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    if not content:  # an empty body is no broken JSON
        problems = [{"type": "missing", "loc": ("body",), "msg": "Field required"}]
    return RequestValidationError(problems)
