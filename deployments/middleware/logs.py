"""Logs as JSON lines; they tell of requests, never of the people behind them.

Standard logging: a formatter, and a handler for the loggers of this project. Every line holds
time, level, logger, message, replica and the id of the request in which it was written.
"""

from __future__ import annotations

import datetime
import logging
import sys
import traceback
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, TextIO

from reki_ray.core.strict_json import strict_json
from reki_ray.errors import RekiError

LOGGERS: Final = ("deployments", "reki_ray")
REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)
"""Id of the request being answered; tasks and threads that it starts inherit it."""

_HANDLER: Final = "reki-json"
FIELDS: Final = (
    *("route", "method", "status", "milliseconds", "variant", "version", "trace_id"),
    "caller",
)
"""What the `extra` of a record may add; anything else stays out."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line.

    An exception is told by its types and the lines it passed. Its message is left out, as ids
    get into messages (`KeyError: 'u17'`); a `RekiError` is written for operators and keeps its.

    Args:
        replica: Name of the replica.
    """

    def __init__(self, replica: str) -> None:
        super().__init__()
        self._replica = replica

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": REQUEST_ID.get(),
            "replica": self._replica,
        }
        line |= {
            name: value for name in FIELDS if (value := getattr(record, name, None)) is not None
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["errors"] = [_told(error) for error in _chain(record.exc_info[1])]
        return strict_json(line, ensure_ascii=False)


class _StandardError(logging.StreamHandler[TextIO]):
    """Follows standard error to where it leads now; a stream that is kept may be closed."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure(replica: str) -> None:
    """Let this project's loggers write JSON lines to standard error; again replaces the first.

    Args:
        replica: Name of the replica.
    """
    handler = _StandardError()
    handler.set_name(_HANDLER)
    handler.setFormatter(JsonFormatter(replica))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for old in [known for known in logger.handlers if known.get_name() == _HANDLER]:
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in found:
        found.append(following)
        following = following.__cause__ or following.__context__
    return found


def _told(error: BaseException) -> dict[str, Any]:
    told: dict[str, Any] = {"type": type(error).__qualname__, "lines": _lines(error.__traceback__)}
    if isinstance(error, RekiError):
        told["message"] = str(error)
    return told


def _lines(trace: TracebackType | None) -> list[str]:
    return [
        f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)
    ]
