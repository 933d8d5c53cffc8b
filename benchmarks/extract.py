"""Benchmark of stage extract.

pipeline_to_direct      generated tokens a second through the stage, from the first call to the
                        last answer kept, over those of vLLM called directly on the same prompts,
                        both with the default number of threads, which leaves one core to Ray
..._all_cores           the same with a thread of the engine on every core: its threads wait for
                        each other at each layer, so that all stand still when one of Ray's
                        processes takes the core of one
cached_prompt_share     share of the tokens of individual user prompts that vLLM took from its
                        prefix cache, as vLLM itself reports it
driver_memory_growth    peak resident memory of the driver at the large number of prompts over
                        that at the small one
scripted_prompts_per_s  prompts a second of the whole stage (plan, ask, settle), scripted answers
restart_seconds         the stage once more over the finished workspace of the large number, from
                        the start of Python to its end, without the manifest that would skip it

The driver keeps some 30 KiB for each work unit of a run, which Ray Data notes of its blocks: its
memory grows with the number of units, not of prompts. Scripted answers come by the thousand a
second, so units are of 4,096 prompts here, still saved twice a second.

Each run is a process of its own; runs that are compared take turns. `--parts` measures some figures
alone; the others stay as they were measured before.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from benchmarks import harness, synthetic
from benchmarks.harness import Figures, Found, Part
from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.extraction.answer_cache import LEDGER
from reki_ray.extraction.plan_table import PLAN
from reki_ray.schema import CACHED_TOKENS, PROMPT_HASH, PROMPT_TOKENS, SUBJECT_KIND

NAME = "extract"
_RUNS = "benchmarks.extract_runs"
_USER_EVENTS = 20
_SCRIPTED_EVENTS = 6
_ITEMS = 40
_PARTS = ("scripted", "vllm", "vllm_all_cores")
_MODEL = "packaged:smollm2-135m-instruct"


def run(arguments: Sequence[str] = ()) -> Path:
    """Measure everything and write the figures; returns the file."""
    options = _options(arguments)
    reporter = Reporter()
    with _scratch(options.folder) as folder:
        parts = {
            "scripted": Part(partial(_scripted, folder, options, reporter), _scripted_figures),
            "vllm": Part(partial(_vllm, folder, options, reporter, spare_cores=1), _vllm_figures),
            "vllm_all_cores": Part(
                partial(_vllm, folder, options, reporter, spare_cores=0), _all_cores_figures
            ),
        }
        chosen = {name: parts[name] for name in options.parts}
        return harness.run_parts(NAME, chosen, vars(options))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="reki bench extract", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", type=int, default=10_000, help="scripted prompts")
    parser.add_argument("--large", type=int, default=1_000_000, help="scripted prompts")
    parser.add_argument("--prompts", type=int, default=512, help="prompts to vLLM")
    parser.add_argument("--max-tokens", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--folder", type=Path, help="where workspaces go; a temporary folder")
    return parser.parse_args(arguments)


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="reki-bench-", dir=folder) as scratch:
        yield Path(scratch)


# --- scripted ------------------------------------------------------------------------------------


def _scripted(folder: Path, options: argparse.Namespace, reporter: Reporter) -> Iterator[Found]:
    extract = {"engine": {"kind": "scripted"}, "mode": "individual", "unit_rows": 4096}
    found: Found = {"small": [], "large": [], "restart": []}
    workspace = folder / "large"
    _fill(workspace, options.large)
    found["large"].append(_stage(workspace, extract))
    reporter.say(f"extract: {options.large} scripted prompts: {found['large'][-1]}")
    for repeat in range(options.repeats):
        found["restart"].append(_stage(workspace, extract))
        reporter.say(f"extract: restart: {found['restart'][-1]}")
        small = folder / f"small-{repeat}"
        _fill(small, options.small)
        found["small"].append(_stage(small, extract))
        reporter.say(f"extract: {options.small} scripted prompts: {found['small'][-1]}")
        yield found


def _fill(folder: Path, prompts: int) -> None:
    users = prompts // 2
    synthetic.fill(Workspace(folder), users, prompts - users, _SCRIPTED_EVENTS)


def _scripted_figures(found: Found) -> Figures:
    (large,) = found["large"]
    growth = [large["peak_rss_mib"] / small["peak_rss_mib"] for small in found["small"]]
    return {
        "driver_memory_growth": harness.figure(growth),
        "scripted_prompts_per_s": harness.figure([large["prompts"] / large["stage_seconds"]], 0),
        "restart_seconds": harness.figure([one["seconds"] for one in found["restart"]], 1),
    }


# --- vLLM ----------------------------------------------------------------------------------------


def _vllm(
    folder: Path, options: argparse.Namespace, reporter: Reporter, *, spare_cores: int
) -> Iterator[Found]:
    threads = max(1, len(os.sched_getaffinity(0)) - spare_cores)
    extract = {
        "engine": {"kind": "vllm", "model": _MODEL, "cpu_threads": threads},
        "mode": "individual",
        "unit_rows": 64,
        "batch_size": 64,
        "sampling": {"max_tokens": options.max_tokens},
        "max_dead_share": 1.0,
    }
    found: Found = {"pipeline": [], "direct": [], "cached_share": []}
    for repeat in range(options.repeats):
        workspace = folder / f"vllm-{threads}-{repeat}"
        synthetic.fill(
            Workspace(workspace), options.prompts - _ITEMS, _ITEMS, _USER_EVENTS, seed=repeat
        )
        found["pipeline"].append(_stage(workspace, extract))
        found["cached_share"].append(_cached_share(Workspace(workspace)))
        reporter.say(f"extract: pipeline: {found['pipeline'][-1]}")
        found["direct"].append(_run("direct", workspace, extract))
        reporter.say(f"extract: direct: {found['direct'][-1]}")
        yield found


def _vllm_figures(found: Found) -> Figures:
    return _rates(found) | {"cached_prompt_share": harness.figure(found["cached_share"])}


def _all_cores_figures(found: Found) -> Figures:
    return {f"{name}_all_cores": figure for name, figure in _rates(found).items()}


def _rates(found: Found) -> Figures:
    pairs = zip(found["pipeline"], found["direct"], strict=True)
    rate = "tokens_per_second"
    return {
        "pipeline_to_direct": harness.figure([one[rate] / other[rate] for one, other in pairs]),
        "pipeline_tokens_per_s": harness.figure([one[rate] for one in found["pipeline"]], 1),
        "direct_tokens_per_s": harness.figure([one[rate] for one in found["direct"]], 1),
    }


def _cached_share(workspace: Workspace) -> float:
    """Share of cached tokens over the prompts of single users."""
    plan = workspace.read_table(PLAN, columns=[SUBJECT_KIND, PROMPT_HASH])
    users = plan.filter(pc.equal(plan[SUBJECT_KIND], "user"))[PROMPT_HASH].combine_chunks()
    answers = workspace.read_table(LEDGER, columns=[PROMPT_HASH, PROMPT_TOKENS, CACHED_TOKENS])
    answers = answers.filter(pc.is_in(answers[PROMPT_HASH], value_set=users))
    return float(pc.sum(answers[CACHED_TOKENS]).as_py() / pc.sum(answers[PROMPT_TOKENS]).as_py())


# --- one run, in a process of its own ------------------------------------------------------------


def config(workspace: Path, extract: dict[str, Any]) -> RekiConfig:
    """The configuration of one run: a worked example first, as small models need it."""
    return RekiConfig.model_validate(
        {
            "name": "bench-extract",
            "workspace": str(workspace),
            "data": {"source": {"kind": "movielens_100k"}},
            "prompts": {"scenario": "movies", "few_shot": True},
            "extract": extract,
            "train": {"arms": ["fair_base", "reki_i"]},
        }
    )


def _stage(workspace: Path, extract: dict[str, Any]) -> dict[str, Any]:
    return _run("stage", workspace, extract)


def _run(what: str, workspace: Path, extract: dict[str, Any]) -> dict[str, Any]:
    return harness.process(_RUNS, what, workspace, json.dumps(extract))


def questions(workspace: Workspace) -> pa.Table:
    """The prompts of a workspace's plan, in its order."""
    return workspace.read_table(PLAN)


if __name__ == "__main__":
    run(sys.argv[1:])
