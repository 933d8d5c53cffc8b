"""Compare small LLMs on the prompts of a workspace: form, echo, coverage, variety, speed.

    python benchmarks/llm_choice.py --workspace runs/movielens-100k \
        --candidate zero=packaged:smollm2-135m-instruct \
        --candidate few=packaged:smollm2-135m-instruct,few_shot

Needs the stages ingest and cluster. Writes benchmarks/out/llm_choice.json; docs/llm-choice.md
tells what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import ray.data

from reki_ray.config import ExtractConfig, PromptsConfig, RayConfig
from reki_ray.extraction.engines import build_engine
from reki_ray.extraction.engines.protocol import QUESTION_SCHEMA
from reki_ray.extraction.shards import Mode, cut_into_shards, load
from reki_ray.extraction.subjects import Subjects
from reki_ray.progress import Reporter
from reki_ray.prompts.parse import by_factor
from reki_ray.prompts.render import Prompt, Renderer, load_scenario
from reki_ray.runtime import ray_session
from reki_ray.schema import (
    BODY,
    GENERATED_TOKENS,
    PROMPT_HASH,
    REASON,
    SUBJECT_KIND,
    TEXTS,
    WHOLE_ANSWER,
)
from reki_ray.workspace import Workspace

OUT = Path("benchmarks/out/llm_choice.json")


class Candidate(NamedTuple):
    """A model and how it is asked, as `name=model[,few_shot][,constrain][,temperature=0.3]`."""

    name: str
    model: str
    few_shot: bool
    sampling: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> Candidate:
        name, _, rest = text.partition("=")
        model, *options = rest.split(",")
        sampling: dict[str, Any] = {"constrain": "constrain" in options}
        sampling |= dict(option.split("=") for option in options if "=" in option)
        return cls(name, model, "few_shot" in options, sampling)


def sample(workspace: Workspace, limits: PromptsConfig, count: int) -> list[Prompt]:
    """Half cluster prompts of both sides, half item prompts, evenly spread."""
    renderer = Renderer(load_scenario(limits.scenario), limits)

    def prompts(mode: Mode) -> list[Prompt]:
        shards = cut_into_shards(workspace, mode)
        subjects = (Subjects(load(workspace, shard), renderer, limits) for shard in shards)
        return [prompt for shard in subjects for prompt in shard]

    single = [p for p in prompts("individual") if p.subject_kind == "item"]
    chosen = []
    for group in (prompts("collective"), single):
        step = max(1, 2 * len(group) // count)
        chosen += group[::step][: count // 2]
    return chosen


def measure(texts: list[str], bodies: list[str], factors: tuple[str, ...]) -> dict[str, Any]:
    """Figures over all answers; shares lie in [0, 1]."""
    good = 0
    coverage: list[float] = []
    copied: list[float] = []
    bigrams: list[tuple[str, str]] = []
    for text, body in zip(texts, bodies, strict=True):
        found = by_factor(text, factors)
        coverage.append(len(found) / len(factors))
        good += len(found) * 2 >= len(factors) and len(set(found.values())) > 1
        copied.append(sum(value in body for value in found.values()) / max(len(found), 1))
        bigrams += pairwise(text.lower().split())
    return {
        "answers": len(texts),
        "right_form": round(good / len(texts), 3),
        "factor_coverage": round(sum(coverage) / len(texts), 3),
        "copied_from_subject": round(sum(copied) / len(texts), 3),
        "distinct_2": round(len(set(bigrams)) / max(len(bigrams), 1), 3),
        "different_answers": round(len(set(texts)) / len(texts), 3),
    }


def ask(candidate: Candidate, arguments: argparse.Namespace) -> dict[str, Any]:
    """Ask one candidate and measure it; answers that only repeat the prompt count as failed."""
    workspace = Workspace(arguments.workspace)
    limits = PromptsConfig(scenario=arguments.scenario, few_shot=candidate.few_shot)
    sampling = {"max_tokens": arguments.max_tokens, **candidate.sampling}
    extract = ExtractConfig.model_validate(
        {
            "engine": {"kind": "vllm", "model": candidate.model, "cpu_threads": arguments.threads},
            "sampling": sampling,
            "batch_size": 16,
        }
    )
    frame = Renderer(load_scenario(limits.scenario), limits).frame
    prompts = sample(workspace, limits, arguments.prompts)
    questions = pa.table(
        {
            PROMPT_HASH: [str(row) for row in range(len(prompts))],
            SUBJECT_KIND: [prompt.subject_kind for prompt in prompts],
            BODY: [prompt.body for prompt in prompts],
        },
        schema=QUESTION_SCHEMA,
    )
    blocks = [questions.slice(start, 8) for start in range(0, questions.num_rows, 8)]
    rows = build_engine(extract, frame).answer(ray.data.from_arrow(blocks)).take_all()
    answered = [row for row in rows if not row[REASON]]
    texts = [dict(row[TEXTS])[WHOLE_ANSWER] for row in answered]
    return {
        **measure(texts, [row[BODY] for row in answered], frame.factors),
        "kinds": sorted({prompt.subject_kind for prompt in prompts}),
        "failed": len(rows) - len(answered),
        "generated_tokens": sum(row[GENERATED_TOKENS] for row in answered),
        "samples": texts[:: max(1, len(texts) // 4)],
    }


def main() -> None:
    """Measure all candidates, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--scenario", default="movies")
    parser.add_argument("--candidate", action="append", type=Candidate.parse, required=True)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    reporter = Reporter()
    found = json.loads(OUT.read_text(encoding="utf-8"))["figures"] if OUT.exists() else {}
    for candidate in arguments.candidate:
        with ray_session(RayConfig()):
            found[candidate.name] = {"candidate": candidate._asdict(), **ask(candidate, arguments)}
        reporter.say(f"{candidate.name}: {json.dumps(found[candidate.name])}")
        OUT.parent.mkdir(parents=True, exist_ok=True)
        machine = {"platform": platform.platform(), "cpus": os.cpu_count()}
        OUT.write_text(json.dumps({"machine": machine, "figures": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
