"""Logs as JSON lines, without personal data.

A standard formatter and handler for this project's loggers. Every line has time, level, logger,
message, replica, node, the id of the run that started the service, and that of the current request.
"""

from __future__ import annotations

import datetime
import logging
import traceback
from contextvars import ContextVar
from typing import Any, Final

from typing_extensions import override

from reki_ray.core import run_log
from reki_ray.core.strict_json import strict_json
from reki_ray.errors import RekiError

LOGGERS: Final = ("deployments", "reki_ray")
REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)
"""Id of the current request; its tasks and threads inherit it."""

FIELDS: Final = (
    *("route", "method", "status", "milliseconds", "variant", "version", "trace_id"),
    "caller",
)
"""Allowed keys in the `extra` of a record."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line.

    Exceptions appear as types and traceback lines, without messages, which may contain ids
    (`KeyError: 'u17'`). A `RekiError` is for operators and keeps its message.
    """

    def __init__(self, replica: str) -> None:
        super().__init__()
        self._replica = replica
        self._run_id = run_log.run_id()

    @override
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": REQUEST_ID.get(),
            "replica": self._replica,
            "node": run_log.node(),
            "run_id": self._run_id,
        }
        line |= {
            name: value for name in FIELDS if (value := getattr(record, name, None)) is not None
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["errors"] = [_describe(error) for error in _chain(record.exc_info[1])]
        return strict_json(line, ensure_ascii=False)


def configure(replica: str) -> None:
    """Make this project's loggers write JSON lines to standard error; may be called repeatedly."""
    handler = run_log.StandardError()
    handler.set_name(run_log.HANDLER)
    handler.setFormatter(JsonFormatter(replica))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for old in [known for known in logger.handlers if known.get_name() == run_log.HANDLER]:
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def _describe(error: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    message = {"message": str(error)} if isinstance(error, RekiError) else {}
    return {"type": type(error).__qualname__, "lines": lines, **message}
