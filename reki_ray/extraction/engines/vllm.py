"""vLLM inside Ray Data's batch inference processor; one code for CPU and GPU, two presets."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

from reki_ray.assets import resolve_model
from reki_ray.config import SamplingConfig, VllmEngine
from reki_ray.errors import EngineError
from reki_ray.extraction.engines.chat import PLAIN_STOP, ChatRenderer
from reki_ray.extraction.engines.protocol import (
    Answer,
    Question,
    answer_blocks,
    question_blocks,
)
from reki_ray.prompts.parse import factor_lines
from reki_ray.schema import (
    FINISH_REASON,
    GENERATED_TOKENS,
    PROMPT,
    PROMPT_HASH,
    PROMPT_TOKENS,
    REASON,
    TEXT,
)

CPU_PRESET: dict[str, Any] = {
    "dtype": "bfloat16",
    # Compiling costs minutes of start-up and gains nothing for models that fit a CPU.
    "enforce_eager": True,
    # The CPU default of 128 tokens a block never caches shorter shared prefixes.
    "block_size": 32,
    "enable_prefix_caching": True,
    # Without a fixed size vLLM demands most of the machine's memory, in bytes.
    "kv_cache_memory_bytes": 2**30,
    "max_num_seqs": 32,
}
GPU_PRESET: dict[str, Any] = {
    "enable_prefix_caching": True,
    "gpu_memory_utilization": 0.9,
}
_ENV = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
}
# Threads bound to cores starve where other work shares the cores. (The engine core always runs in
# a process of its own under Ray Data: vLLM's switch for that serves the synchronous engine alone.)
_CPU_ENV = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
_PRELOADED = ("libiomp5.so", "libtcmalloc_minimal.so.4", "libtcmalloc.so.4")
_LIBRARY_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64")


class VllmBatchEngine:
    """Engine that answers with vLLM.

    Args:
        config: Model, preset and overrides.
        sampling: Sampling of the answers.
        factors: Keys of the factors that are asked for.
        batch_size: Prompts a call of the engine.
        concurrency: Engine replicas.
    """

    name = "vllm"

    def __init__(
        self,
        config: VllmEngine,
        sampling: SamplingConfig,
        factors: Sequence[str],
        batch_size: int,
        concurrency: int,
    ) -> None:
        self.model = config.model
        self.revision = config.revision
        self._config = config
        self._sampling = sampling
        self._factors = factors
        self._batch_size = batch_size
        self._concurrency = concurrency

    def ask(self, questions: Iterable[Question], unit_rows: int) -> Iterator[list[Answer]]:
        """See `Engine.ask`."""
        threads = self._threads()
        self._require_resources(threads)
        source = resolve_model(self._config.model)
        chat = ChatRenderer(source, self._config.revision)
        dataset = question_blocks(
            ((question.prompt_hash, chat.text(question.messages)) for question in questions),
            unit_rows,
        )
        if dataset is None:
            return
        processor = build_processor(
            self._processor_config(source, threads),
            preprocess=partial(_to_request, sampling=self._sampling_params(chat)),
            postprocess=partial(
                _to_answer,
                max_tokens=self._sampling.max_tokens,
                max_model_len=self._config.max_model_len,
            ),
        )
        yield from answer_blocks(processor(dataset), f"{self.name}: {self.model}")

    def _processor_config(self, source: str, threads: int) -> vLLMEngineProcessorConfig:
        cpu = self._config.device == "cpu"
        return vLLMEngineProcessorConfig(
            model_source=source,
            engine_kwargs={
                **(CPU_PRESET if cpu else GPU_PRESET),
                "max_model_len": self._config.max_model_len,
                **({} if Path(source).is_dir() else {"revision": self._config.revision}),
                **self._config.engine_kwargs,
            },
            runtime_env={"env_vars": self._environment(source, threads)},
            batch_size=self._batch_size,
            concurrency=(self._concurrency, self._concurrency),
            placement_group_config={"bundles": [{"CPU": 1}]} if cpu else None,
            # The driver renders and the engine tokenises: three actors less to start.
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            # A prompt longer than the context fails alone and comes back with its reason.
            should_continue_on_error=True,
            log_engine_metrics=False,
        )

    def _sampling_params(self, chat: ChatRenderer) -> dict[str, Any]:
        sampling = self._sampling
        stop = list(sampling.stop) + ([] if chat.has_template else [PLAIN_STOP])
        return {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "repetition_penalty": sampling.repetition_penalty,
            "seed": sampling.seed,
            **({"stop": stop} if stop else {}),
            **(
                {"structured_outputs": {"regex": factor_lines(self._factors)}}
                if sampling.constrain
                else {}
            ),
        }

    def _environment(self, source: str, threads: int) -> dict[str, str]:
        env = dict(_ENV)
        if Path(source).is_dir():
            env["HF_HUB_OFFLINE"] = "1"
        if self._config.device == "cpu":
            env |= {**_CPU_ENV, "OMP_NUM_THREADS": str(threads)}
            if preload := preloaded_libraries():
                env["LD_PRELOAD"] = preload
        return env | self._config.env

    def _threads(self) -> int:
        """OpenMP threads of a replica: its share of all cores but one, unless configured."""
        if self._config.cpu_threads:
            return self._config.cpu_threads
        node = max(
            (node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=1
        )
        share = (ray.cluster_resources().get("CPU", 1) - 1) / self._concurrency
        return max(1, int(min(node - 1, share)))

    def _require_resources(self, threads: int) -> None:
        """A dataset whose actors do not all find a place would wait for ever.

        Raises:
            EngineError: The cluster is too small.
        """
        total = ray.cluster_resources()
        kwargs = self._config.engine_kwargs
        devices = kwargs.get("tensor_parallel_size", 1) * kwargs.get("pipeline_parallel_size", 1)
        needed = {"CPU": self._concurrency + 1}
        if self._config.device == "gpu":
            needed["GPU"] = self._concurrency * devices
        for resource, amount in needed.items():
            if total.get(resource, 0) < amount:
                raise EngineError(
                    f"{self._concurrency} engine replicas need {amount} {resource} "
                    f"(one CPU stays free for Ray Data), the cluster has "
                    f"{total.get(resource, 0):g}",
                    where="extract.concurrency, extract.engine",
                    todo=f"Add nodes, lower extract.concurrency, or raise ray.num_cpus; "
                    f"each replica would run {threads} threads.",
                )


def preloaded_libraries() -> str:
    """Value of LD_PRELOAD: Intel's OpenMP of this environment, and tcmalloc, where they exist."""
    folders = [Path(sys.prefix, "lib"), *map(Path, _LIBRARY_FOLDERS)]
    found = (
        next((folder / name for folder in folders if (folder / name).is_file()), None)
        for name in _PRELOADED
    )
    paths = [path for path in found if path is not None]
    # Both tcmalloc builds at once would collide: the first found is enough.
    allocators = [path for path in paths if "tcmalloc" in path.name][:1]
    return ":".join(
        str(path) for path in [*(p for p in paths if "tcmalloc" not in p.name), *allocators]
    )


def _to_request(row: dict[str, Any], sampling: dict[str, Any]) -> dict[str, Any]:
    return {PROMPT: row[PROMPT], "sampling_params": dict(sampling)}


def _to_answer(row: dict[str, Any], max_tokens: int, max_model_len: int) -> dict[str, Any]:
    prompt_tokens, generated = row["num_input_tokens"], row["num_generated_tokens"]
    # The processor does not hand the finish reason on; the counts tell.
    cut = generated >= max_tokens or prompt_tokens + generated >= max_model_len
    return {
        PROMPT_HASH: row[PROMPT_HASH],
        PROMPT: row[PROMPT],
        TEXT: row["generated_text"],
        PROMPT_TOKENS: prompt_tokens,
        GENERATED_TOKENS: generated,
        FINISH_REASON: "length" if cut else "stop",
        REASON: "",
    }
