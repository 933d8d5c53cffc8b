"""Log lines with the id of the run and the node, in the driver and in its workers on every node."""

from __future__ import annotations

import functools
import logging
import os
import secrets
import socket
import sys
import time
from typing import Any, Final, TextIO

from typing_extensions import override

RUN_ID: Final = "REKI_RUN_ID"
"""Environment variable with the id of the run, inherited by its workers."""
HANDLER: Final = "reki"
"""Name of this project's handler."""
SETUP_HOOK: Final = "reki_ray.core.run_log.configure"
"""What a worker calls before its first task, as Ray's runtime environments name it."""
_LOGGERS: Final = ("actors", "deployments", "reki_ray")


def run_id() -> str:
    """Id of this run: that of the environment, or a new one of the time and some random digits."""
    if not os.environ.get(RUN_ID):
        os.environ[RUN_ID] = (
            f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        )
    return os.environ[RUN_ID]


@functools.cache
def node() -> str:
    """Name of this host, as in the heartbeat."""
    return socket.gethostname()


def configure() -> None:
    """Make this project's loggers write lines with run and node, unless others write them."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not logger.hasHandlers():
            handler = StandardError()
            handler.set_name(HANDLER)
            handler.setFormatter(logging.Formatter(line_format()))
            logger.addHandler(handler)


def line_format() -> str:
    """Format of a log line, for `logging`."""
    return f"%(asctime)s %(levelname)s run={run_id()} node={node()} %(name)s: %(message)s"


class StandardError(logging.StreamHandler[TextIO]):
    """Looks up standard error per line; a stored stream may be closed."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def runtime_env() -> dict[str, Any]:
    """Runtime environment of a job whose workers log with the run's id."""
    return {"env_vars": {RUN_ID: run_id()}, "worker_process_setup_hook": SETUP_HOOK}
