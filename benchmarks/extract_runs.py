"""Single runs of the extract benchmark; each prints one line of JSON and ends."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.extract import config, questions
from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import set_environment
from reki_ray.core.workspace import Workspace


def stage(loaded: RekiConfig, workspace: Workspace) -> dict[str, Any]:
    """The stage as `reki extract` runs it."""
    from reki_ray.stages import extract  # after set_environment

    started = time.monotonic()
    result = extract.run(loaded, workspace, Reporter(workspace, quiet=True))
    return {
        "stage_seconds": round(time.monotonic() - started, 2),
        "prompts": result.details["prompts"],
        "cache_hits": result.details["cache_hits"],
        "dead": result.dead,
        "generated_tokens": result.generated_tokens,
        "cached_share": round(result.details["cached_tokens"] / max(result.prompt_tokens, 1), 4),
        "tokens_per_second": result.details["tokens_per_second"],
        "peak_rss_mib": harness.peak_rss_mib(),
    }


def direct(loaded: RekiConfig, workspace: Workspace) -> dict[str, Any]:
    """The same model, settings, threads and prompts, with nothing around vLLM."""
    from reki_ray.extraction.engines import build_engine
    from reki_ray.extraction.planner import prompting

    template = prompting(loaded, workspace).renderer.template
    engine: Any = build_engine(loaded.extract, template)
    setting = engine.setting(loaded.extract.engine.cpu_threads)  # type: ignore[union-attr]
    if os.environ.get("REKI_BENCH_DIRECT") is None:  # libraries are preloaded at the start alone
        os.environ.update(setting.environment, REKI_BENCH_DIRECT="1")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.extract_runs", *sys.argv[1:]])
    from vllm import LLM, SamplingParams

    model = LLM(model=setting.source, **setting.engine_kwargs)
    rows = questions(workspace).to_pylist()
    prompts = [setting.chat.text(template.messages(r["subject_kind"], r["body"])) for r in rows]
    started = time.monotonic()
    outputs = model.generate(prompts, SamplingParams(**setting.sampling), use_tqdm=False)
    seconds = time.monotonic() - started
    generated = sum(len(output.outputs[0].token_ids) for output in outputs)
    read = sum(len(output.prompt_token_ids) for output in outputs)
    return {
        "generated_tokens": generated,
        "cached_share": round(sum(output.num_cached_tokens for output in outputs) / read, 4),
        "generate_seconds": round(seconds, 2),
        "tokens_per_second": round(generated / seconds, 2),
    }


def main() -> None:
    """`stage` or `direct`, the workspace, and the extract section as JSON."""
    what, folder, extract = sys.argv[1:]
    set_environment()
    loaded, workspace = config(Path(folder), json.loads(extract)), Workspace(folder)
    found = {"stage": stage, "direct": direct}[what](loaded, workspace)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
