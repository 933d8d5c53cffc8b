"""Compare small LLMs, and ways of asking them, on the prompts of a workspace.

    reki run -c configs/movielens-100k.yaml --until cluster
    python benchmarks/llm_choice.py -c configs/movielens-100k.yaml \
        --candidate demo \
        --candidate lines=extract.sampling.constrain=true,prompts.few_shot=true

A candidate is a name and the keys in which it differs from the configuration. Writes
benchmarks/out/llm_choice.json; docs/results/llm-choice.md says what was found.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from reki_ray.config import RekiConfig, load_config
from reki_ray.config.files import parse_yaml
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import ray_session
from reki_ray.core.workspace import Workspace
from reki_ray.extraction.engines import build_engine
from reki_ray.extraction.engines.vllm import cpu_dtype
from reki_ray.extraction.planner import prompting
from reki_ray.extraction.shards import cut_into_shards, load
from reki_ray.extraction.subjects import Subjects
from reki_ray.prompts.quality import problem_of
from reki_ray.prompts.renderer import Prompt
from reki_ray.prompts.reply_parser import by_factor
from reki_ray.schema import (
    BODY,
    CACHED_TOKENS,
    FLAWS,
    GENERATED_TOKENS,
    PROMPT_HASH,
    PROMPT_TOKENS,
    QUESTION_SCHEMA,
    REASON,
    RETRY_REASON,
    SUBJECT_KIND,
    TEXTS,
)

OUT = Path("benchmarks/out/llm_choice.json")
SHOWN = ("loop", "cut", "copy", "missing")
_TOP_GENRE = re.compile(r"genre in the group: ([^%\n]*?) \d+%")


class Candidate(NamedTuple):
    """A way of asking, as `name=key=value,key=value`."""

    name: str
    changes: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> Candidate:
        name, _, rest = text.partition("=")
        pairs = [change.partition("=")[::2] for change in rest.split(",") if change]
        return cls(name, {key: parse_yaml(value) for key, value in pairs})

    def applied(self, config: RekiConfig) -> RekiConfig:
        tree = config.model_dump(mode="json")
        for key, value in self.changes.items():
            *sections, last = key.split(".")
            place = tree
            for section in sections:
                place = place[section]
            place[last] = value
        return RekiConfig.model_validate(tree)


def prompts_of(config: RekiConfig, workspace: Workspace) -> list[Prompt]:
    """All prompts of the configured mode."""
    renderer = prompting(config, workspace).renderer
    shards = cut_into_shards(workspace, config.extract.mode)
    subjects = (Subjects(load(workspace, shard), renderer, config.prompts) for shard in shards)
    return [prompt for shard in subjects for prompt in shard]


def measure(rows: Sequence[Mapping[str, Any]], factors: Sequence[str]) -> dict[str, Any]:
    """Figures over all answers; shares lie in [0, 1]."""
    count = len(rows)
    first = Counter(problem_of(row[RETRY_REASON]) for row in rows if row[RETRY_REASON])
    empty = Counter(problem for row in rows for _, problem in row[FLAWS])
    texts = {
        row[PROMPT_HASH]: by_factor("\n".join(text for _, text in row[TEXTS]), factors)
        for row in rows
        if row[TEXTS]
    }
    named = [len(found) for found in texts.values()]
    tops = {row[PROMPT_HASH]: _TOP_GENRE.search(row[BODY]) for row in rows}
    known = [(key, top[1].lower()) for key, top in tops.items() if top and key in texts]
    genre = factors[0]
    return {
        "prompts": count,
        "asked_again": {problem: round(n / count, 3) for problem, n in first.most_common()},
        "quarantined": round(sum(not row[TEXTS] for row in rows) / count, 3),
        **{
            f"factors_{problem}": round(empty[problem] / count / len(factors), 3)
            for problem in SHOWN
        },
        "all_but_one_factor": round(sum(n >= len(factors) - 1 for n in named) / count, 3),
        "different_answers": round(len({str(found) for found in texts.values()}) / count, 3),
        "genre_is_the_most_frequent": round(
            sum(_begins(texts[key].get(genre, ""), top) for key, top in known) / max(len(known), 1),
            3,
        ),
        "bits_per_factor": {
            factor: round(_bits([found.get(factor, "") for found in texts.values()]), 2)
            for factor in factors
        },
        "prompt_tokens": sum(row[PROMPT_TOKENS] for row in rows),
        "cached_tokens": sum(row[CACHED_TOKENS] for row in rows),
        "generated_tokens": sum(row[GENERATED_TOKENS] for row in rows),
    }


def _begins(text: str, genre: str) -> bool:
    return text.lower().replace("science fiction", "sci-fi").startswith(genre)


def _bits(texts: Sequence[str]) -> float:
    """Entropy of a factor's first phrase over all subjects: 0 where it is the same for all."""
    counts = Counter(text.partition(",")[0] for text in texts)
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values())


def ask(config: RekiConfig) -> dict[str, Any]:
    """Ask all prompts as a configuration does, and measure the answers."""
    import ray.data  # after the environment that it reads

    workspace = Workspace(config.root)
    template = prompting(config, workspace).renderer.template
    prompts = prompts_of(config, workspace)
    questions = pa.table(
        {
            PROMPT_HASH: [str(row) for row in range(len(prompts))],
            SUBJECT_KIND: [prompt.subject_kind for prompt in prompts],
            BODY: [prompt.body for prompt in prompts],
        },
        schema=QUESTION_SCHEMA,
    )
    step = config.extract.unit_rows
    blocks = [questions.slice(start, step) for start in range(0, questions.num_rows, step)]
    started = time.monotonic()
    rows = build_engine(config.extract, template).answer(ray.data.from_arrow(blocks)).take_all()
    texts = ["\n".join(text for _, text in row[TEXTS]) for row in rows if row[TEXTS]]
    return {
        **measure(rows, template.factors),
        "seconds": round(time.monotonic() - started, 1),
        "reasons": Counter(row[REASON] for row in rows if row[REASON]).most_common(3),
        "samples": texts[:: max(1, len(texts) // 4)],
    }


def main() -> None:
    """Measure all candidates, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-c", "--config", required=True, type=Path)
    parser.add_argument("--workspace")
    parser.add_argument("--candidate", action="append", type=Candidate.parse, required=True)
    arguments = parser.parse_args()
    base = load_config(arguments.config, workspace=arguments.workspace)
    reporter = Reporter()
    found = json.loads(OUT.read_text(encoding="utf-8"))["figures"] if OUT.exists() else {}
    for candidate in arguments.candidate:
        config = candidate.applied(base)
        with ray_session(config.ray):
            found[candidate.name] = {"changes": candidate.changes, **ask(config)}
        reporter.say(f"{candidate.name}: {json.dumps(found[candidate.name])}")
        OUT.parent.mkdir(parents=True, exist_ok=True)
        machine = {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "dtype": cpu_dtype(),
        }
        OUT.write_text(json.dumps({"machine": machine, "figures": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
