"""Benchmark of stage train.

to_reference          samples a second of DIN with HEIN through the stage over those of a plain
                      vectorised loop (benchmarks/train_reference.py: batch 1,024, HEIN on every
                      row, d = 768, 2 shared and 6 dedicated experts, 32 numbers out, history 10,
                      float32, AdamW), on the same samples and representations
auc_difference        validation AUC of the stage minus that of the loop, best epoch of each, mean
                      over seeds; min and max are those of single seeds
to_base_din           samples a second with knowledge over those of the fair base model, which is
                      the same without HEIN, trained by the same worker in the same stage
input_wait_share      share of the time of the steps in which they waited for their batches
peak_rss_gib          peak resident memory of the driver and of the worker together
stage_bfloat16        1 where the stage multiplied HEIN's matrices in bfloat16, as it does where the
                      processor has units for it, 0 where in float32
stream_samples        training samples that stage train streamed from Parquet in one epoch
stream_samples_per_s  how fast, with a network so small that reading counts
stream_input_wait_share   as above, of the stream
stream_memory_growth  resident memory of the worker at the end of the stream over that at a tenth
stream_peak_rss_gib   peak resident memory of the driver and of the worker together

The stage trains with a configuration of its own choice, `STAGE` below. Representations of MovieLens
are a fixed random projection of titles and attributes. MovieLens-1M is read from `--ml1m` or
REKI_ML1M; without it MovieLens-100K stands for it, and the file says so in `runs.data`. Each run is
a process of its own; loop and stage take turns. The stream is one file of samples under many names.
`--parts` measures some figures alone; the others stay as they were measured before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks import harness
from benchmarks.harness import Figures, Found, Part
from reki_ray.core.progress import Reporter

NAME = "train"
_RUNS = "benchmarks.train_runs"
_PARTS = ("speed", "stream")
STAGE: Final[dict[str, Any]] = {
    "arms": ["fair_base", "reki_i"],
    "history": 10,
    "batch_size": 8192,
    "learning_rate": 6e-3,
    "weight_decay": 0.1,
    "epochs": 4,  # in large batches it needs one more than the loop, whose best one is the second
    "precision": "auto",  # what the processor multiplies fast
    "hein": {"scaling": "length"},  # as the loop has it; projections have no mean to be taken out
}


def run(arguments: Sequence[str] = ()) -> Path:
    """Measure everything and write the figures; returns the file."""
    options = _options(arguments)
    # As the stage's worker has it: a thread that spins is no fair reference on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _scratch(options.folder) as folder:
        parts = {
            "speed": Part(partial(_speed, folder, options), _speed_figures),
            "stream": Part(partial(_stream, folder, options), _stream_figures),
        }
        chosen = {name: parts[name] for name in options.parts}
        return harness.run_parts(NAME, chosen, vars(options))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="reki bench train", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    parser.add_argument("--repeats", type=int, default=5, help="pairs, each with its own seed")
    parser.add_argument("--epochs", type=int, default=3, help="of the loop")
    parser.add_argument("--ml1m", default=os.environ.get("REKI_ML1M", ""), help="MovieLens-1M")
    parser.add_argument("--stream-samples", type=int, default=100_000_000)
    parser.add_argument("--stage", type=json.loads, default={}, help="further keys of train, JSON")
    parser.add_argument("--folder", type=Path, help="where workspaces go; a temporary folder")
    return parser.parse_args(arguments)


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="reki-bench-", dir=folder) as scratch:
        yield Path(scratch)


def _speed(folder: Path, options: argparse.Namespace) -> Iterator[Found]:
    workspace = folder / "movielens"
    found: Found = {"reference": [], "stage": []}
    found["data"] = _run("movielens", workspace, options.ml1m)
    for seed in range(options.repeats):
        stage = {**STAGE, "seeds": [seed], **options.stage}
        found["reference"].append(_run("reference", workspace, seed, options.epochs))
        found["stage"].append(_run("stage", workspace, json.dumps(stage)))
        yield found


def _speed_figures(found: Found) -> Figures:
    pairs = list(zip(found["stage"], found["reference"], strict=True))
    rate = "samples_per_second"
    differences = [one["reki_i"]["auc"] - other["auc"] for one, other in pairs]
    return {
        "to_reference": harness.figure([one["reki_i"][rate] / other[rate] for one, other in pairs]),
        "auc_difference": {
            **harness.figure(differences, 5),
            "value": round(statistics.mean(differences), 5),
        },
        "to_base_din": harness.figure(
            [one["reki_i"][rate] / one["fair_base"][rate] for one, _ in pairs]
        ),
        "input_wait_share": harness.figure(
            [one["reki_i"]["input_wait_share"] for one, _ in pairs], 4
        ),
        "peak_rss_gib": harness.figure([one["peak_rss_gib"] for one, _ in pairs], 2),
        "stage_bfloat16": harness.figure(
            [float(one["reki_i"]["precision"] == "bfloat16") for one, _ in pairs], 0
        ),
        "stage_samples_per_s": harness.figure([one["reki_i"][rate] for one, _ in pairs], 0),
        "reference_samples_per_s": harness.figure([other[rate] for _, other in pairs], 0),
    }


def _stream(folder: Path, options: argparse.Namespace) -> Iterator[Found]:
    workspace = folder / "stream"
    filled = _run("fill_stream", workspace, options.stream_samples)
    yield {"filled": filled, "run": _run("stream", workspace)}


def _stream_figures(found: Found) -> Figures:
    measured = found["run"]
    figures = {
        "stream_samples": harness.figure([measured["samples"]], 0),
        "stream_samples_per_s": harness.figure([measured["samples_per_second"]], 0),
    }
    for name, digits in (("input_wait_share", 4), ("memory_growth", 3), ("peak_rss_gib", 2)):
        figures[f"stream_{name}"] = harness.figure([measured[name]], digits)
    return figures


def _run(what: str, *values: object) -> dict[str, Any]:
    found = harness.process(_RUNS, what, *values)
    Reporter().say(f"train: {what}: {json.dumps(found)}")
    return found


if __name__ == "__main__":
    run(sys.argv[1:])
