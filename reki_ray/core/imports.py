"""Imports by path."""

from __future__ import annotations

import importlib
from typing import Any

from reki_ray.errors import ConfigError


def load(path: str) -> Any:
    """Import the object `module:name`.

    Raises:
        ConfigError: It does not exist.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(
            f"cannot import {path!r}: {error}",
            where=path,
            todo="Write it as package.module:name, and install the package here.",
        ) from error
