"""Routes that read and write JSON in one pass.

FastAPI parses a body into Python objects and validates these, then copies the answer into models
and these into JSON-ready objects. With a hundred candidates that takes longer than the model's
forward. Here pydantic validates the bytes, and endpoints return bytes; /openapi.json is FastAPI's.
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
from typing_extensions import override

from deployments.errors import ApiError

JSON: Final = "application/json"

Endpoint = Callable[[Request, Any], Awaitable[Response]]


class JsonRoute(APIRoute):
    """A route whose endpoint takes the request and its validated JSON body.

    The annotation of the endpoint's second parameter is the type of the body, its default makes the
    body optional. The endpoint returns a `Response`; `response_model` only documents it.
    """

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Endpoint = self.endpoint
        _, body = inspect.signature(endpoint, eval_str=True).parameters.values()
        optional = body.default is not inspect.Parameter.empty
        adapter: TypeAdapter[Any] = TypeAdapter(body.annotation)

        async def handle(request: Request) -> Response:
            content = await request.body()
            if not content and optional:
                return await endpoint(request, body.default)
            if not _is_json(request.headers.get("content-type", "")):
                raise ApiError(
                    415,
                    "unsupported_media_type",
                    "The body must be JSON, sent with Content-Type: application/json.",
                    headers={"Accept": JSON},
                )
            try:
                value = adapter.validate_json(content)
            except ValidationError as error:
                raise _invalid(error, content) from error
            return await endpoint(request, value)

        return handle


def json_response(content: Mapping[str, Any]) -> Response:
    """Return JSON-ready content, unvalidated, as a response.

    Raises:
        ValueError: It contains a number that is not valid JSON.
    """
    body = to_json(content)
    if b"NaN" in body or b"Infinity" in body:  # in a string or as a number
        json.dumps(content, allow_nan=False)
    return Response(body, media_type=JSON)


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == JSON or (kind.startswith("application/") and kind.endswith("+json"))


def _invalid(error: ValidationError, content: bytes) -> RequestValidationError:
    problems: list[dict[str, Any]] = [
        {**problem, "loc": ("body", *problem["loc"])}
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    if not content:  # missing rather than malformed
        problems = [{"type": "missing", "loc": ("body",), "msg": "Field required"}]
    return RequestValidationError(problems)
