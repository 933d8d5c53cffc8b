"""Identity of a model beyond its name: its weights, and how an engine loads them."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from reki_ray.config import ExtractConfig, OpenAiEngine, RekiConfig, VllmEngine
from reki_ray.core.downloads import PACKAGED
from reki_ray.core.file_digests import file_digest, folder_digest
from reki_ray.errors import ConfigError
from reki_ray.extraction import knowledge_import

_OPERATIONAL: Final = frozenset(
    {
        "allowed_local_media_path",
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
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "num_gpu_blocks_override",
        "pipeline_parallel_size",
        "swap_space",
        "tensor_parallel_size",
    }
)
"""Engine arguments that change the speed of an answer but not its text. All others, such as
quantization, hf_overrides or dtype, are part of the identity."""

_LOCAL: Final = frozenset({"weights", "files"})
"""Fields with digests, which are not in the configuration."""


def request_identity(extract: ExtractConfig) -> dict[str, Any]:
    """JSON-ready fields that decide an answer beside prompt, model, revision and sampling.

    Raises:
        ConfigError: A local file of the model cannot be read.
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
    identity: dict[str, Any] = {"engine_kwargs": deciding} if deciding else {}
    if engine.chat_template_kwargs:
        identity["chat_template_kwargs"] = engine.chat_template_kwargs
    if not engine.model.startswith(PACKAGED):
        weights = _digest(engine.model, "model")
        if weights:
            identity["weights"] = weights
    files: dict[str, str] = dict(_local_files(deciding, "engine_kwargs"))
    if files:
        identity["files"] = files
    return identity


def _local_files(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Digests of files and folders in nested arguments: tokenizer, chat template, adapters."""
    if isinstance(value, str):
        digest = _digest(value, where)
        if digest:
            yield where, digest
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _local_files(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _local_files(inner, f"{where}.{index}")


def _digest(name: str, where: str) -> str | None:
    """Digest of a local file or folder; None for a name or the text of a template."""
    path = Path(name)
    try:
        if path.is_file():
            return file_digest(path)
        return folder_digest(path) if path.name and path.is_dir() else None
    except ValueError:  # a NUL
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise ConfigError(
            f"a file of the model cannot be read: {error}",
            where=f"extract.engine.{where} = {name}",
            todo="Check the path and its rights.",
        ) from error


def identify_inputs(config: RekiConfig) -> object:
    """Identity of the inputs of stage extract beside tables and configuration.

    Raises:
        ConfigError: A local file of the model cannot be read.
        DataError: A file of imported knowledge is damaged.
    """
    identity = request_identity(config.extract)
    known = knowledge_import.identify(config)
    local = {key: value for key, value in identity.items() if key in _LOCAL}
    return {**local, "imported": known} if local else known
