"""On the hosts of `tests/cluster`: the scripted engine notes its calls in ~/calls.

A line has a prompt's hash, the time, and the process: what `tests.support.faulty_engine.calls`
reads. Python imports this module at its start, from a folder of PYTHONPATH.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_ENGINE = "reki_ray.extraction.engines.scripted"


class _Finder(importlib.abc.MetaPathFinder):
    """Changes the engine's module once it is imported, which most processes never do."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _ENGINE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def changed(module: ModuleType) -> None:
            execute(module)
            _note_calls(module)

        spec.loader.exec_module = changed  # type: ignore[method-assign]
        return spec


def _note_calls(module: Any) -> None:
    actor = module.ScriptedActor
    answer = actor.__call__

    def noted(self: Any, questions: Any) -> Any:
        with (Path.home() / "calls").open("a", encoding="utf-8") as file:
            for prompt in questions["prompt_hash"].to_pylist():
                file.write(f"{prompt} {time.time()} {os.getpid()}\n")
        return answer(self, questions)

    actor.__call__ = noted


sys.meta_path.insert(0, _Finder())
