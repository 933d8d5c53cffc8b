"""vLLM pooling: the same embedding models, with vLLM's batching, kernels and parallelism.

vLLM runs inside the encoder actor through `LLM.embed`, not through `ray.data.llm`'s processor:
vectors do not travel through Ray Data, and one pool with one set of restart rules serves all
backends. The engine core is in the actor's process, so a killed actor leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from reki_ray.config import EncodeConfig
from reki_ray.encoding.encoders.protocol import EncoderIdentity, loading, source_of
from reki_ray.encoding.encoders.windows import DEFAULT_WINDOW, Window, WindowEncoder
from reki_ray.errors import EngineError

CPU_PRESET: Final[dict[str, Any]] = {
    # Compiling costs minutes of start-up and gains nothing for models that fit a CPU.
    "enforce_eager": True,
    # Without a fixed size vLLM demands most of the machine's memory, in bytes.
    "kv_cache_memory_bytes": 2**29,
}
GPU_PRESET: Final[dict[str, Any]] = {"gpu_memory_utilization": 0.9}

_ENV: Final = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    # Threads bound to cores starve where other work shares the cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class VllmEncoder(WindowEncoder):
    """Runs a model through vLLM's pooling runner.

    A sentence-transformers model keeps its own pooling. A decoder LLM is pooled at its last
    token; `pooler_config: {pooling_type: MEAN}` in `encode.engine_kwargs` gives the vectors of
    backend hidden_states.
    """

    def __init__(self, config: EncodeConfig, identity: EncoderIdentity) -> None:
        path, revision = source_of(config)
        window = config.window or _stated_window(path, revision)
        self._llm = _load(config, path, revision, window)
        tokenizer = self._llm.get_tokenizer()
        # A pooling head may change the hidden size: a forward pass shows the true dimension.
        size = int(self._forward([tokenizer("probe")["input_ids"]]).shape[1])
        super().__init__(config, identity, tokenizer, window, size)

    def _forward(self, windows: list[Window]) -> np.ndarray:
        prompts = [{"prompt_token_ids": window} for window in windows]
        outputs = self._llm.embed(prompts, use_tqdm=False)
        return np.array([output.outputs.embedding for output in outputs])


def _load(config: EncodeConfig, path: str, revision: dict[str, Any], window: int) -> Any:
    for name, value in _ENV.items():  # read when vLLM is imported
        os.environ.setdefault(name, value)
    if Path(path).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        from vllm import LLM  # optional, and its import takes seconds
    except ImportError as error:
        raise EngineError(
            f"vLLM is not installed: {error}",
            where="encode.backend = vllm",
            todo="Install reki-ray[cpu] or reki-ray[gpu], or choose another backend.",
        ) from error
    arguments: dict[str, Any] = {
        **(CPU_PRESET if config.device == "cpu" else GPU_PRESET),
        "runner": "pooling",
        "convert": "embed",
        "dtype": config.dtype,
        "max_model_len": window,
        "max_num_seqs": config.batch_size,
        "disable_log_stats": True,
        **revision,
        **config.engine_kwargs,
    }
    with loading(config), _without_llvmlite_handle():
        return LLM(path, **arguments)


@contextmanager
def _without_llvmlite_handle() -> Iterator[None]:
    """Hide a module of llvmlite that an earlier task in this process may have loaded.

    On a CPU vLLM searches all modules for its kernels, and fails at llvmlite's library handle,
    which answers to every name, even `__dict__`.
    """
    name = "llvmlite.binding.ffi"
    hidden = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if hidden is not None:
            sys.modules[name] = hidden


def _stated_window(path: str, revision: dict[str, Any]) -> int:
    """Window of a sentence-transformers model, as that library reads it, or the default."""
    from transformers.utils import cached_file  # its import takes seconds

    config_file = cached_file(
        path, "sentence_bert_config.json", _raise_exceptions_for_missing_entries=False, **revision
    )
    if config_file is None:
        return DEFAULT_WINDOW
    stated = json.loads(Path(config_file).read_text(encoding="utf-8")).get("max_seq_length")
    return int(stated or DEFAULT_WINDOW)
