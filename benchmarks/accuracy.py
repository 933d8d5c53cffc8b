"""Benchmark of what knowledge is worth on MovieLens: test AUC, touched once with fixed settings.

<backbone>_auc           test AUC of fair_base, mean of the seeds; min and max are its interval over
                         users, items and seeds
below_best_<backbone>    the best backbone's fair_base minus this one's
<arm>_minus_fair_base    with 20 % of the items held out of training, DIN: paired difference of test
                         AUC and its interval, over all samples
<arm>_cold_items         the same on the items held out
<arm>_warm_items         the same on all others
<arm>_new_users          the same over all samples with three past interactions shown
imported_minus_title_text_<slice>   the same against the encoded titles
fair_base_auc_<slice>    test AUC of fair_base in that run

A figure is left out where a slice has a single label. An arm is ahead where the whole interval is
above zero.

Settings are those of configs/movielens-1m-backbones.yaml; the backbones have those of
configs/tuned/movielens-1m besides, which `reki tune` found on the validation split. The items held
out are measured with `COLD` and `ENCODER` below, which were chosen on training and validation
samples alone: another fifth of the items was held out of training and measured in validation.
`--texts` names item texts from elsewhere as `{id: text}`; without them arm imported is left out.
MovieLens-1M is read from `--ml1m` or REKI_ML1M; without it MovieLens-100K stands for it, and the
file says so in `runs`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks import harness
from benchmarks.harness import Figures, Found, Part
from reki_ray.config import RekiConfig
from reki_ray.config.files import read_mapping, read_tuned
from reki_ray.config.keys import merged
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.evaluation.comparison import METRICS
from reki_ray.extraction.import_report import import_knowledge
from reki_ray.models.backbones import BACKBONES
from reki_ray.stages.pipeline import run_stages, select

NAME = "accuracy"
_PARTS = ("backbones", "held_out")
_CONFIG: Final = harness.ROOT / "configs" / "movielens-1m-backbones.yaml"
_TUNED: Final = harness.ROOT / "configs" / "tuned" / "movielens-1m"
_SLICES = ("all", "cold_items", "warm_items", "new_users")
COLD: Final[dict[str, Any]] = {
    "history": 50,
    "weight_decay": 0.02,
    "id_dropout": 0.2,
    "gate": {"items": 20.0},
    "hein": {"enrich_items": True, "scaling": "principal", "components": 256},
}
ENCODER: Final = {"backend": "hashing"}
"""Of the items held out, chosen in the same way: against MiniLM the gain on cold items doubled."""


def run(arguments: Sequence[str] = ()) -> Path:
    """Measure everything and write the figures; returns the file."""
    options = _options(arguments)
    parts = {
        "backbones": Part(partial(_backbones, options), _backbones_figures),
        "held_out": Part(partial(_held_out, options), _held_out_figures),
    }
    return harness.run_parts(NAME, {name: parts[name] for name in options.parts}, vars(options))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="reki bench accuracy", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    parser.add_argument("--backbones", nargs="+", default=tuple(BACKBONES))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--ml1m", default=os.environ.get("REKI_ML1M", ""), help="MovieLens-1M")
    parser.add_argument("--texts", type=Path, help="JSON {id: text} about items")
    parser.add_argument("--folder", type=Path, help="workspaces, kept; a temporary folder")
    return parser.parse_args(arguments)


def _backbones(options: argparse.Namespace) -> Iterator[Found]:
    train = {"backbones": list(options.backbones), "tuned": read_tuned(_TUNED)}
    yield {"arms": _measure(options, "backbones", {"train": train})["arms"]}


def _held_out(options: argparse.Namespace) -> Iterator[Found]:
    arms = ["fair_base", "title_text", *(["imported"] if options.texts else [])]
    config = {
        "split": {"cold_item_share": 0.2},
        "train": {**COLD, "arms": arms, "backbones": ["din"]},
        "evaluate": {"cold_item_max": 0},
        "encode": ENCODER,
    }
    yield _measure(options, "held_out", config)


def _measure(options: argparse.Namespace, name: str, own: dict[str, Any]) -> dict[str, Any]:
    """Metrics of a run up to the test split."""
    source = (
        {"kind": "movielens_1m", "path": options.ml1m}
        if options.ml1m
        else {"kind": "movielens_100k"}
    )
    with tempfile.TemporaryDirectory(prefix="reki-bench-", dir=options.folder) as scratch:
        folder = Path(options.folder or scratch) / name
        found = {
            **own,
            "train": {**own["train"], "seeds": list(options.seeds)},
            "name": f"bench-accuracy-{name}",
            "workspace": str(folder),
        }
        settings = read_mapping(_CONFIG, todo="Restore it from the repository.")
        tree = {**merged(settings, found), "data": {"source": source}}
        config = RekiConfig.model_validate(tree)
        workspace, reporter = Workspace(folder), Reporter(quiet=True)
        run_stages(config, select(until="ingest"), reporter)
        if options.texts:
            import_knowledge(workspace, options.texts, kind="item")
        # Nothing is published: fair_base alone knows nothing that could be.
        run_stages(config, [*select(until="train"), *select(only="evaluate")], reporter)
        metrics: dict[str, Any] = workspace.read_json(METRICS)
        return metrics


def _backbones_figures(found: Found) -> Figures:
    measured = [entry for entry in found["arms"] if entry["auc"] is not None]
    best = max(entry["auc"] for entry in measured)
    figures: Figures = {}
    for entry in measured:
        figures |= _figure(f"{entry['backbone']}_auc", entry["auc"], entry["auc_ci"])
        figures |= _figure(f"below_best_{entry['backbone']}", best - entry["auc"])
    return figures


def _held_out_figures(found: Found) -> Figures:
    figures: Figures = {}
    for entry in found["arms"]:
        for name in _SLICES:
            part = entry["slices"][name]
            if entry["arm"] == "fair_base":
                figures |= _figure(f"fair_base_auc_{name}", part["auc"])
            else:
                place = "minus_fair_base" if name == "all" else name
                figure = f"{entry['arm']}_{place}"
                figures |= _figure(figure, part["delta_auc"], part["delta_ci"])
    for entry in found["controls"]:
        for name in _SLICES:
            part = entry["slices"][name]
            figure = f"{entry['arm']}_minus_{entry['control']}_{name}"
            figures |= _figure(figure, part["delta_auc"], part["delta_ci"])
    return figures


def _figure(name: str, value: float | None, interval: Sequence[float] | None = None) -> Figures:
    """A figure by its name; none where it is not defined."""
    if value is None:
        return {}
    low, high = interval or (value, value)
    return {name: {"value": round(value, 4), "min": round(low, 4), "max": round(high, 4)}}


if __name__ == "__main__":
    run(sys.argv[1:])
