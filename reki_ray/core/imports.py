"""Imports by path, and of packages that only an extra of reki-ray installs."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, Final

from reki_ray.errors import ConfigError

EXTRAS: Final = {
    "accelerate": "cpu",
    "fastapi": "serve",
    "gguf": "cpu",
    "lmdb": "stores",
    "matplotlib": "report",
    "mlflow": "mlflow",
    "openai": "extract",
    "opentelemetry": "tracing",
    "optuna": "tune",
    "redis": "stores",
    "sentence_transformers": "encode",
    "starlette": "serve",
    "tensorboardX": "train",
    "transformers": "encode",
    "uvicorn": "serve",
    "vllm": "cpu",
}
"""Extra that installs a package, by the package's import name."""


def require(module: str, where: str = "", instead: str = "") -> ModuleType:
    """Import a module that needs a package of an extra.

    Args:
        where: Key of the configuration, or command, that asks for it.
        instead: What else the user can do, as "; or set ... to null".

    Raises:
        ConfigError: The package is not installed; the message names its extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise ConfigError(
            f"{f'{where} needs {package}, which' if where else package} is not installed",
            where=where or module,
            todo=f"Install it: pip install 'reki-ray[{EXTRAS[package]}]'{instead}.",
        ) from error


def load(path: str) -> Any:
    """Import the object `module:name`.

    Raises:
        ConfigError: There is no such object, or a package that its module needs is missing.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(require(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(
            f"cannot import {path!r}: {error}",
            where=path,
            todo="Write it as package.module:name, and install the package here.",
        ) from error
