"""What makes two answers those of the same model: its weights, and how an engine loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from reki_ray.assets import PACKAGED
from reki_ray.config import ExtractConfig, OpenAiEngine, RekiConfig, VllmEngine
from reki_ray.errors import ConfigError
from reki_ray.extraction import imported
from reki_ray.file_digests import folder_digest

_OPERATIONAL: Final = frozenset(
    {
        "block_size",
        "cpu_offload_gb",
        "data_parallel_size",
        "disable_custom_all_reduce",
        "disable_log_stats",
        "distributed_executor_backend",
        "download_dir",
        "enable_chunked_prefill",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "load_format",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "num_gpu_blocks_override",
        "pipeline_parallel_size",
        "swap_space",
        "tensor_parallel_size",
    }
)
"""Engine arguments that change how fast an answer comes, and not which. All others, as
quantization, hf_overrides or dtype, are part of what was asked."""


def request_identity(extract: ExtractConfig) -> dict[str, Any]:
    """What decides an answer beside the prompt, the names of model and revision, and the sampling.

    Args:
        extract: The engine.

    Returns:
        JSON-ready fields; none where the names say all.

    Raises:
        ConfigError: A file of a local model folder cannot be read.
    """
    engine = extract.engine
    if isinstance(engine, OpenAiEngine):
        return {"structured": engine.structured, "extra_body": engine.extra_body}
    if not isinstance(engine, VllmEngine):
        return {}
    deciding = {
        key.replace("-", "_"): value
        for key, value in engine.engine_kwargs.items()
        if key.replace("-", "_") not in _OPERATIONAL
    }
    found: dict[str, Any] = {"engine_kwargs": deciding} if deciding else {}
    if engine.chat_template_kwargs:
        found["chat_template_kwargs"] = engine.chat_template_kwargs
    folder = Path(engine.model)
    if not engine.model.startswith(PACKAGED) and folder.is_dir():
        try:
            found["weights"] = folder_digest(folder)
        except OSError as error:
            raise ConfigError(
                f"a file of the model cannot be read: {error}",
                where=f"extract.engine.model = {engine.model}",
                todo="Check the folder and its rights.",
            ) from error
    return found


def identify_inputs(config: RekiConfig) -> object:
    """What decides the output of stage extract beside the tables and the configuration.

    Args:
        config: The run.

    Raises:
        ConfigError: A file of a local model folder cannot be read.
        DataError: A file of imported knowledge is damaged.
    """
    weights = request_identity(config.extract).get("weights")
    found = imported.identify(config)
    return {"imported": found, "weights": weights} if weights else found
