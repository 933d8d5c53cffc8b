"""Engines that answer prompts; to add one, add a file and a branch in `build_engine`."""

from __future__ import annotations

from reki_ray.config import ExtractConfig, OpenAiEngine, ScriptedEngine
from reki_ray.core.ray_cluster import quiet_libraries
from reki_ray.extraction.engines.protocol import Engine
from reki_ray.prompts.template import PromptTemplate

__all__ = ["Engine", "build_engine"]


def build_engine(config: ExtractConfig, template: PromptTemplate) -> Engine:
    """Build the configured engine; only its module is imported, since vLLM is optional."""
    if isinstance(config.engine, ScriptedEngine):
        from reki_ray.extraction.engines import scripted

        return scripted.ScriptedBatchEngine(config.engine, config, template)
    if isinstance(config.engine, OpenAiEngine):
        from reki_ray.extraction.engines import openai

        return openai.OpenAiBatchEngine(config.engine, config, template)
    with quiet_libraries():
        from reki_ray.extraction.engines import vllm

    return vllm.VllmBatchEngine(config.engine, config, template)
