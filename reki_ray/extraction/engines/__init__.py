"""Engines that answer prompts; a new one is a file here and a line in `build_engine`."""

from __future__ import annotations

from collections.abc import Sequence

from reki_ray.config import ExtractConfig, ScriptedEngine
from reki_ray.extraction.engines.protocol import Answer, Engine, Question

__all__ = ["Answer", "Engine", "Question", "build_engine"]


def build_engine(config: ExtractConfig, factors: Sequence[str]) -> Engine:
    """The engine that a configuration names.

    Args:
        config: Engine, sampling and batching.
        factors: Keys of the factors that are asked for.
    """
    # Only the chosen engine is imported: the scripted one must work without vLLM.
    if isinstance(config.engine, ScriptedEngine):
        from reki_ray.extraction.engines import scripted  # noqa: PLC0415

        return scripted.ScriptedEngine(config.engine, config.batch_size)
    from reki_ray.extraction.engines import vllm  # noqa: PLC0415

    return vllm.VllmBatchEngine(
        config.engine, config.sampling, factors, config.batch_size, config.concurrency
    )
