"""Stage evaluate: the test split, touched once per trained run."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reki_ray.config import RekiConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.stage import StageResult
from reki_ray.core.workspace import Workspace
from reki_ray.evaluation.comparison import (
    ALL,
    METRICS,
    NEW_USERS,
    Comparison,
    Marks,
    controls_of,
    slices,
)
from reki_ray.evaluation.list_comparison import measure_rerankers
from reki_ray.evaluation.predictions import Scores, predict_test
from reki_ray.schema import ARM, BACKBONE, ITEM_ID, LABEL, PREDICTIONS, SCORE, SEED, USER_ID
from reki_ray.training.dataset import Dataset, Samples
from reki_ray.training.runs import Run, planned, seeds_of, trained
from reki_ray.training.sample_stream import load_dataset


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Measure every arm on the test split and compare it with the fair base model.

    Raises:
        DataError: A table is missing or damaged, or there are no test samples.
        StoreError: A trained run is missing or damaged.
    """
    dataset = load_dataset(config, workspace)
    runs, diverged = trained(workspace, planned(config.train))
    samples = dataset.samples["test"]
    rerankers, lost = trained(workspace, planned(config.train, reranks=True))
    shown = config.evaluate.new_user_history
    steps = len(runs) + len(config.train.backbones) * len(config.train.arms)
    steps += len(rerankers) + len(config.train.rerankers)
    with reporter.task("evaluate: runs and arms", steps, "steps") as task:
        lengths = (None,) if shown is None else (None, shown)
        scores, *of_new_users = predict_test(
            workspace, dataset, samples, runs, task.advance, shown=lengths
        )
        entries, controls = _compare(config, samples, slices(dataset, config.evaluate), scores)
        for row in entries:
            row["diverged"] = seeds_of(diverged, row["backbone"], row["arm"])
        for new in of_new_users:
            everywhere = {ALL: np.ones(len(samples), dtype=bool)}
            new_entries, new_controls = _compare(config, samples, everywhere, new)
            for row, of_new in zip(entries + controls, new_entries + new_controls, strict=True):
                row["slices"][NEW_USERS] = of_new["slices"][ALL]
        task.advance(len(entries))
        reranking = measure_rerankers(config, workspace, dataset, rerankers, task.advance)
        for row in reranking["reranking"]:
            row["diverged"] = seeds_of(lost, row["reranker"], row["arm"])
    with workspace.replacing("evaluate") as scratch:
        for each in runs:
            table = _table(dataset, each, scores[each.backbone, each.arm][each.seed])
            scratch.write_table(PREDICTIONS, table, part=each.name)
        metrics = {"arms": entries, "controls": controls, **reranking}
        scratch.write_json(METRICS, metrics)
    figures = [
        {key: row[key] for key in ("backbone", "arm", "auc", "delta_auc")} for row in entries
    ]
    rows = len(samples) * len(runs)
    return StageResult(rows, rows, details={"test_samples": len(samples), "arms": figures})


def _compare(
    config: RekiConfig, samples: Samples, marks: dict[str, Marks], scores: Scores
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Entries `arms` and `controls` of the report, in the order of the configuration."""
    entries, controls = [], []
    for backbone in config.train.backbones:
        by_arm = {arm: scores.get((backbone, arm), {}) for arm in config.train.arms}
        comparison = Comparison(samples, marks, by_arm, config.evaluate)
        entries += [comparison.entry(arm, backbone) for arm in config.train.arms]
        controls += [
            {"backbone": backbone, **comparison.control(arm, control)}
            for arm, control in controls_of(config.train.arms)
        ]
    return entries, controls


def _table(dataset: Dataset, trained_run: Run, scores: npt.NDArray[np.float32]) -> pa.Table:
    samples = dataset.samples["test"]
    return pa.table(
        {
            BACKBONE: pa.array([trained_run.backbone] * len(samples)),
            ARM: pa.array([trained_run.arm] * len(samples)),
            SEED: pa.array(np.full(len(samples), trained_run.seed, dtype=np.int64)),
            USER_ID: pa.array(dataset.user_ids).take(pa.array(samples.users)),
            ITEM_ID: pa.array(dataset.item_ids).take(pa.array(samples.items)),
            LABEL: pa.array(samples.labels.astype(np.int8)),
            SCORE: pa.array(scores),
        }
    )
