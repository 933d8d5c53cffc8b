"""The process that measures an engine: a job in, two rates out. See `speeds.measure`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from reki_ray.core import atomic


def probe(job: dict[str, Any]) -> dict[str, float]:
    """Read some prompts, then answer them.

    The prompts are read first, with a single token each for an answer; when they are asked once
    more, all of them come from the prefix cache, and what takes time is the answers.

    Args:
        job: Model, arguments of the engine, sampling and prompts.

    Returns:
        `prefill` and `generation`, tokens per second.
    """
    # Half a minute, and in this process alone.
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    def sampling(**changed: Any) -> Any:
        options = {**job["sampling"], **changed}
        structured = options.pop("structured_outputs", None)
        if structured:
            options["structured_outputs"] = StructuredOutputsParams(**structured)
        return SamplingParams(**options)

    model = LLM(model=job["model"], **job["engine_kwargs"])
    prompts: list[str] = job["prompts"]
    model.generate(prompts[:1], sampling(max_tokens=1), use_tqdm=False)  # prepares what all need
    started = time.monotonic()
    read = model.generate(prompts, sampling(max_tokens=1), use_tqdm=False)
    middle = time.monotonic()
    answers = model.generate(prompts, sampling(), use_tqdm=False)
    end = time.monotonic()
    tokens = sum(len(out.prompt_token_ids) - (out.num_cached_tokens or 0) for out in read)
    generated = sum(len(out.outputs[0].token_ids) for out in answers)
    return {
        "prefill": max(tokens, 1) / max(middle - started, 1e-3),
        "generation": max(generated, 1) / max(end - middle, 1e-3),
    }


def main() -> None:
    """A job on standard input; the file of the answer as the argument."""
    found = probe(json.load(sys.stdin))
    atomic.replace_file(Path(sys.argv[1]), json.dumps(found).encode())


if __name__ == "__main__":
    main()
