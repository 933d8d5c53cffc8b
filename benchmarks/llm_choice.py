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
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from reki_ray.config import PromptsConfig, RayConfig, SamplingConfig, VllmEngine
from reki_ray.extraction.engines import Answer, Question
from reki_ray.extraction.engines.vllm import VllmBatchEngine
from reki_ray.extraction.subjects import Subjects
from reki_ray.progress import Reporter
from reki_ray.prompts.parse import by_factor, clean
from reki_ray.prompts.render import Prompt
from reki_ray.runtime import ray_session
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
    collective = list(Subjects(workspace, limits, "collective"))
    single = [p for p in Subjects(workspace, limits, "individual") if p.subject_kind == "item"]
    chosen = []
    for prompts in (collective, single):
        step = max(1, 2 * len(prompts) // count)
        chosen += prompts[::step][: count // 2]
    return chosen


def measure(
    answers: list[Answer], prompts: dict[str, Prompt], factors: list[str]
) -> dict[str, Any]:
    """Figures over all answers; shares lie in [0, 1]."""
    good = echo = 0
    coverage: list[float] = []
    copied: list[float] = []
    bigrams: list[tuple[str, str]] = []
    texts = set()
    for answer in answers:
        asked = {line.strip() for line in answer.prompt.splitlines()}
        lines = [line.strip() for line in answer.text.splitlines() if line.strip()]
        echo += sum(line in asked for line in lines) * 2 > len(lines)
        text = clean(answer.text, answer.finish_reason, answer.prompt, factors).text or ""
        found = by_factor(text, factors)
        coverage.append(len(found) / len(factors))
        good += bool(text) and len(found) * 2 >= len(factors) and len(set(found.values())) > 1
        copied.append(
            sum(f"{key}: {value}" in answer.prompt for key, value in found.items())
            / max(len(found), 1)
        )
        bigrams += pairwise(text.lower().split())
        texts.add(text)
    return {
        "answers": len(answers),
        "right_form": round(good / len(answers), 3),
        "echo": round(echo / len(answers), 3),
        "factor_coverage": round(sum(coverage) / len(answers), 3),
        "copied_from_prompt": round(sum(copied) / len(answers), 3),
        "distinct_2": round(len(set(bigrams)) / max(len(bigrams), 1), 3),
        "different_answers": round(len(texts) / len(answers), 3),
        "kinds": sorted({prompt.subject_kind for prompt in prompts.values()}),
    }


def ask(candidate: Candidate, arguments: argparse.Namespace) -> dict[str, Any]:
    """Ask one candidate and measure it."""
    workspace = Workspace(arguments.workspace)
    limits = PromptsConfig(scenario=arguments.scenario, few_shot=candidate.few_shot)
    sampling = SamplingConfig.model_validate(
        {"max_tokens": arguments.max_tokens, **candidate.sampling}
    )
    factors = Subjects(workspace, limits, "collective").factors
    settings = VllmEngine(model=candidate.model, cpu_threads=arguments.threads)
    engine = VllmBatchEngine(settings, sampling, factors, batch_size=16, concurrency=1)
    prompts = {
        str(row): prompt for row, prompt in enumerate(sample(workspace, limits, arguments.prompts))
    }
    questions = [Question(row, prompt.messages) for row, prompt in prompts.items()]
    started = time.monotonic()
    arrivals: list[float] = []
    answers: list[Answer] = []
    for unit in engine.ask(questions, 8):
        arrivals.append(time.monotonic() - started)
        answers += unit
    answered = [answer for answer in answers if not answer.error]
    generated = sum(answer.generated_tokens for answer in answered)
    return {
        **measure(answered, prompts, factors),
        "failed": len(answers) - len(answered),
        "generated_tokens": generated,
        "seconds_with_start": round(arrivals[-1], 1),
        "tokens_per_second_with_start": round(generated / arrivals[-1], 1),
        "samples": [answer.text for answer in answered[:: max(1, len(answered) // 4)]],
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
