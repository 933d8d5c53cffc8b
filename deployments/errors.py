"""Errors as {"error": {"code", "message", "details"}}, never with a stack trace."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deployments.bulkhead import FullError

_SHOWN_PROBLEMS = 10

OVERLOADED: Final = "overloaded"


class ApiError(Exception):
    """An error for the caller: `code` is stable, `details` are JSON-ready."""

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
        self.details = details or {}
        self.headers = headers
        super().__init__(message)


def retry_later(code: str, message: str, *, status: int = 503) -> ApiError:
    """Return an error that may be gone at the next attempt."""
    return ApiError(status, code, message, headers={"Retry-After": "1"})


def overloaded() -> ApiError:
    """Return the error for requests beyond a bound."""
    return retry_later(OVERLOADED, "The service is overloaded; try again later.")


def timed_out() -> ApiError:
    """Return the error for requests past their deadline."""
    return retry_later("timeout", "The deadline has passed; try again.", status=504)


def defect() -> ApiError:
    """Return the error for an unexpected exception, whose details are only logged."""
    return ApiError(
        500, "internal", "The service failed; see its log for the X-Request-ID of this answer."
    )


def error_response(error: ApiError) -> JSONResponse:
    """Return an error as a response."""
    content = {"code": error.code, "message": error.message, "details": error.details}
    return JSONResponse({"error": content}, error.status, error.headers)


def install(app: FastAPI) -> None:
    """Answer every error of an application but defects; `RequestContext` answers those."""

    async def answer(_: Request, error: Exception) -> JSONResponse:
        return error_response(_api_error(error))

    for kind in (ApiError, HTTPException, RequestValidationError, FullError, TimeoutError):
        app.add_exception_handler(kind, answer)


def _api_error(error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case HTTPException():
            code = HTTPStatus(error.status_code).name.lower()  # such as not_found
            return ApiError(error.status_code, code, str(error.detail), headers=error.headers)
        case RequestValidationError():
            return _invalid(error)
        case FullError():
            return overloaded()
        case _:
            return timed_out()


def _invalid(error: RequestValidationError) -> ApiError:
    problems = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return ApiError(400, "malformed_json", "The body is not valid JSON.")
    # The input is not repeated: it may be long or private.
    shown = [
        {"field": ".".join(map(str, problem["loc"][1:])), "problem": problem["msg"]}
        for problem in problems[:_SHOWN_PROBLEMS]
    ]
    return ApiError(
        422,
        "invalid_request",
        "The request is invalid for this endpoint; see /openapi.json.",
        details={"problems": shown, "count": len(problems)},
    )
