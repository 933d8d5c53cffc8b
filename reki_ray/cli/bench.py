"""`reki bench`: the benchmarks of a checkout."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from reki_ray.errors import ConfigError

NAMES = ("accuracy", "cluster", "extract", "serve", "train")
"""Benchmarks, each a module of the same name in `benchmarks/`."""


def run(name: str, arguments: Sequence[str]) -> Path:
    """Run a benchmark with its own options, and return the file of its results.

    Raises:
        ConfigError: The name is unknown, or this is not a checkout.
    """
    if name not in NAMES:
        raise ConfigError(
            f"there is no benchmark {name!r}",
            where="command line",
            todo=f"The benchmarks are {', '.join(NAMES)}.",
        )
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / f"{name}.py").is_file():
        raise ConfigError(
            "the benchmarks are not part of an installed wheel",
            where=str(root),
            todo="Clone the repository and run `make bench` there.",
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    results: Path = importlib.import_module(f"benchmarks.{name}").run(arguments)
    return results
