"""Errors as {"error": {"code", "message", "details"}}, never with a stack trace."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deployments.bulkhead import FullError
from deployments.schemas import ErrorBody, ErrorResponse

_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
}
_SHOWN_PROBLEMS = 10

RETRY_LATER: Final = {"Retry-After": "1"}
OVERLOADED: Final = "overloaded"

logger = logging.getLogger(__name__)


class ApiError(Exception):
    """An error for the caller.

    Args:
        status: HTTP status.
        code: Stable, for programs.
        message: For people.
        details: JSON-ready.
        headers: Further headers, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.details = dict(details or {})
        self.headers = dict(headers or {})
        super().__init__(message)


def overloaded() -> ApiError:
    """Return the error for requests beyond a bound."""
    return ApiError(
        503,
        OVERLOADED,
        "The service is overloaded; try again later.",
        headers=RETRY_LATER,
    )


def timed_out() -> ApiError:
    """Return the error for requests past their deadline."""
    return ApiError(504, "timeout", "The deadline has passed; try again.", headers=RETRY_LATER)


def error_response(error: ApiError) -> JSONResponse:
    """Return an error as a response."""
    body = ErrorResponse(
        error=ErrorBody(code=error.code, message=error.message, details=error.details)
    )
    return JSONResponse(body.model_dump(), status_code=error.status, headers=error.headers)


def defect_response() -> JSONResponse:
    """Return the response for an unexpected error, whose details are only logged."""
    return error_response(
        ApiError(
            500,
            "internal",
            "The service failed; see its log for the X-Request-ID of this answer.",
        )
    )


def install(app: FastAPI) -> None:
    """Register handlers that give every error of an application this form."""

    async def on_api_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error_response(error)

    async def on_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = _CODES.get(error.status_code, f"http_{error.status_code}")
        return error_response(
            ApiError(error.status_code, code, str(error.detail), headers=error.headers)
        )

    async def on_invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(_invalid(error))

    async def on_full(_: Request, __: Exception) -> JSONResponse:
        return error_response(overloaded())

    async def on_timeout(_: Request, __: Exception) -> JSONResponse:
        return error_response(timed_out())

    async def on_defect(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s request failed", request.method, exc_info=error)  # paths hold ids
        return defect_response()

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(FullError, on_full)
    app.add_exception_handler(TimeoutError, on_timeout)
    app.add_exception_handler(Exception, on_defect)


def _invalid(error: RequestValidationError) -> ApiError:
    problems = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return ApiError(400, "malformed_json", "The body is not valid JSON.")
    if any(problem["type"] == "model_attributes_type" for problem in problems):
        return ApiError(
            422,
            "invalid_request",
            "The body must be a JSON object, sent with Content-Type: application/json.",
            details={"problems": [], "count": 1},
        )
    # The input is not repeated: it may be long or private.
    shown = [
        {
            "field": ".".join(str(part) for part in problem["loc"][1:]),
            "problem": problem["msg"],
        }
        for problem in problems[:_SHOWN_PROBLEMS]
    ]
    return ApiError(
        422,
        "invalid_request",
        "The request is invalid for this endpoint; see /openapi.json.",
        details={"problems": shown, "count": len(problems)},
    )
