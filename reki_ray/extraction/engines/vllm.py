"""vLLM inside Ray Data's batch inference processor, with presets for CPU and GPU."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig
from typing_extensions import override

from reki_ray.config import ExtractConfig, VllmEngine
from reki_ray.core.downloads import model_reference, resolve_model
from reki_ray.core.ray_cluster import capacity, quiet_libraries
from reki_ray.extraction.engines.protocol import TASK_CPUS, Engine
from reki_ray.extraction.engines.vllm_observer import OUTCOME, observing, outcome_of
from reki_ray.llm.chat_template import PLAIN_STOP, ChatRenderer
from reki_ray.llm.outcome import answer_table
from reki_ray.llm.prices import gpus_of
from reki_ray.prompts.template import PromptTemplate
from reki_ray.schema import BODY, PROMPT, QUESTION_SCHEMA, SUBJECT_KIND

if TYPE_CHECKING:
    import torch
    from ray.data import Dataset

# Whitespace between the fields of an answer only costs tokens. Constrained lines keep vLLM's own
# choice of a backend: xgrammar does not accept a line break inside a character class.
_JSON_OUTPUT = {
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}
}

CPU_PRESET: dict[str, Any] = {
    # Compilation takes minutes and gains nothing for models that fit a CPU.
    "enforce_eager": True,
    # The CPU default of 128 tokens per block never caches shorter shared prefixes.
    "block_size": 32,
    "enable_prefix_caching": True,
    # Bytes; without a fixed size vLLM takes most of the machine's memory.
    "kv_cache_memory_bytes": 2**30,
    "max_num_seqs": 32,
    # Inside Ray Data vLLM takes its default for online serving, half of that for batches.
    "max_num_batched_tokens": 4096,
}
GPU_PRESET: dict[str, Any] = {
    "enable_prefix_caching": True,
    "max_num_batched_tokens": 8192,  # as above: a quarter of it otherwise
    "gpu_memory_utilization": 0.9,
}
_ENV = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
}
_CPU_ENV = {
    # Threads bound to cores starve if other work shares the cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # The model runs inside the engine core's process: with a separate worker process, the core
    # spins on a shared buffer while the worker computes, and takes half of a two-core machine.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
_PRODUCTS = 8
_CLEARLY = 0.8
_PRELOADED = ("libiomp5.so", "libtcmalloc_minimal.so.4", "libtcmalloc.so.4")
_LIBRARY_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64")


@dataclass(frozen=True)
class VllmSetting:
    """How vLLM is started and called; the benchmark and the speed probe use the same.

    Attributes:
        source: Folder or id of the model on this node.
        sampling: Arguments of `SamplingParams`, structured output as a dict.
    """

    source: str
    engine_kwargs: dict[str, Any]
    sampling: dict[str, Any]
    environment: dict[str, str]
    chat: ChatRenderer


class VllmBatchEngine(Engine):
    """Engine that answers with vLLM."""

    name = "vllm"
    _config: VllmEngine

    def __init__(
        self, config: VllmEngine, extract: ExtractConfig, template: PromptTemplate
    ) -> None:
        super().__init__(config, extract, template)
        self.demand = {"CPU": 1.0, "GPU": float(gpus_of(extract))}

    def setting(self, threads: int) -> VllmSetting:
        """How vLLM is started and called, with OpenMP threads per replica on the CPU.

        Raises:
            EngineError: The model's tokenizer cannot be loaded.
        """
        source = resolve_model(self._config.model)
        config, local = self._config, Path(source).is_dir()
        chat = ChatRenderer(
            model_reference(config.model), config.revision, config.chat_template_kwargs
        )
        arguments = {
            **({**CPU_PRESET, "dtype": cpu_dtype()} if config.device == "cpu" else GPU_PRESET),
            **(_JSON_OUTPUT if self._template.form == "json" else {}),
            "max_model_len": config.max_model_len,
            **({} if local else {"revision": config.revision}),
            **config.engine_kwargs,
        }
        env = _ENV | ({"HF_HUB_OFFLINE": "1"} if local else {})
        if config.device == "cpu":
            env |= {**_CPU_ENV, "OMP_NUM_THREADS": str(threads)}
            if preload := preloaded_libraries():
                env["LD_PRELOAD"] = preload
        sampling = self._sampling_params(chat)
        return VllmSetting(source, arguments, sampling, env | config.env, chat)

    @override
    def answer(self, questions: Dataset) -> Dataset:
        with quiet_libraries():
            setting = self.setting(self._threads())
            processor = build_processor(
                self._processor_config(setting),
                preprocess=partial(
                    _to_request,
                    template=self._template,
                    chat=setting.chat,
                    sampling=setting.sampling,
                ),
                postprocess=_to_row,
                preprocess_map_kwargs={"num_cpus": TASK_CPUS},
                postprocess_map_kwargs={"num_cpus": TASK_CPUS},
            )
        for name, stage in processor.stages.items():  # only the engine's stage: the others are off
            # A copy: an assignment would make the stage compute its resources again, wrongly.
            processor.stages[name] = stage.model_copy(
                update={
                    "fn": observing(
                        stage.fn,
                        self._template,
                        setting.chat,
                        model=model_reference(self._config.model),
                    ),
                    "map_batches_kwargs": stage.map_batches_kwargs | self.restarts,
                }
            )
        return processor(questions).map_batches(
            _to_answers, batch_size=None, batch_format="pyarrow", num_cpus=TASK_CPUS
        )

    def _processor_config(self, setting: VllmSetting) -> vLLMEngineProcessorConfig:
        extract = self._extract
        return vLLMEngineProcessorConfig(
            model_source=setting.source,
            engine_kwargs=setting.engine_kwargs,
            runtime_env={"env_vars": setting.environment},
            batch_size=extract.batch_size,
            concurrency=(extract.min_replicas, self.largest_pool),
            placement_group_config=(
                {"bundles": [{"CPU": 1}]} if self._config.device == "cpu" else None
            ),
            # Other tasks render and the engine tokenizes: three fewer actors to start.
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            # A prompt longer than the context fails alone, with its reason.
            should_continue_on_error=True,
            log_engine_metrics=False,
        )

    def _sampling_params(self, chat: ChatRenderer) -> dict[str, Any]:
        sampling = self._extract.sampling
        stop = list(sampling.stop) + ([] if chat.has_template else [PLAIN_STOP])
        structured = self._template.structured(sampling.constrain)
        numbers = {"max_tokens", "temperature", "top_p", "repetition_penalty", "seed"}
        return {
            **sampling.model_dump(include=numbers),
            **({"stop": stop} if stop else {}),
            **({"structured_outputs": structured} if structured else {}),
        }

    def _threads(self) -> int:
        """OpenMP threads per replica: its share of all cores but one, unless configured."""
        if self._config.cpu_threads:
            return self._config.cpu_threads
        node = max(
            (node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=1
        )
        share = (capacity().get("CPU", 1) - 1) / self.largest_pool
        return max(1, int(min(node - 1, share)))


@cache
def cpu_dtype() -> str:
    """The faster precision on this machine's CPU, found by a short trial.

    Some processors with AVX512-BF16 multiply twice as fast with bfloat16, others at 0.8 times the
    speed of float32; without such units a product takes a hundred times as long. All nodes are
    assumed to be alike; `engine_kwargs.dtype` overrides it.
    """
    import torch  # seconds, and only needed here

    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")):
        return "float32"
    single = _product_seconds(torch.float32)
    return "bfloat16" if _product_seconds(torch.bfloat16) < _CLEARLY * single else "float32"


def _product_seconds(dtype: torch.dtype) -> float:
    """Shortest time of a matrix product of the size of a small model's."""
    import torch  # takes seconds, and only needed here

    rows, weights = torch.ones(256, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
    best = math.inf
    for _ in range(_PRODUCTS):
        started = time.perf_counter()
        rows @ weights
        best = min(best, time.perf_counter() - started)
    return best


def preloaded_libraries() -> str:
    """Value of LD_PRELOAD: Intel's OpenMP of this environment and tcmalloc, as far as installed."""
    folders = [Path(sys.prefix, "lib"), *map(Path, _LIBRARY_FOLDERS)]
    candidates = (
        next((folder / name for folder in folders if (folder / name).is_file()), None)
        for name in _PRELOADED
    )
    paths = [path for path in candidates if path is not None]
    # The two tcmalloc builds collide: take the first.
    allocators = [path for path in paths if "tcmalloc" in path.name]
    return ":".join(str(path) for path in paths if path not in allocators[1:])


def _to_request(
    row: dict[str, Any], template: PromptTemplate, chat: ChatRenderer, sampling: dict[str, Any]
) -> dict[str, Any]:
    messages = template.messages(row[SUBJECT_KIND], row[BODY])
    return {PROMPT: chat.text(messages), "sampling_params": dict(sampling)}


def _to_row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in (*QUESTION_SCHEMA.names, OUTCOME)}


def _to_answers(block: pa.Table) -> pa.Table:
    return answer_table(block, [outcome_of(text) for text in block[OUTCOME].to_pylist()])
