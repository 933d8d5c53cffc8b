"""Scores of every trained run on the test split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from reki_ray.config import Arm, Backbone, Reranker
from reki_ray.core.workspace import Workspace
from reki_ray.errors import DataError
from reki_ray.training.arms import Representations, permute, read_representations
from reki_ray.training.batches import BatchBuilder, EncodedDataset, encode_dataset
from reki_ray.training.dataset import Dataset, Samples
from reki_ray.training.loop import predict
from reki_ray.training.objectives import CLICKS, LISTS
from reki_ray.training.runs import Run, read_bundle

Scores = dict[tuple[Backbone | Reranker, Arm], dict[int, npt.NDArray[np.float32]]]
"""Scores of the test samples (N,) or lists (N, K), by model and arm, then seed."""


def predict_test(
    workspace: Workspace,
    dataset: Dataset,
    samples: Samples,
    runs: Sequence[Run],
    after_run: Callable[[], None],
    *,
    shown: Sequence[int | None] = (None,),
) -> list[Scores]:
    """Predict the test split with every run.

    Args:
        samples: Its test samples or, for rerankers, the lists made of them.
        runs: Trained runs, all of them rerankers or none.
        shown: Largest history lengths to predict with; None is the model's own.

    Returns:
        Scores for each of `shown`.

    Raises:
        DataError: There are no test samples, or a score is not finite.
        StoreError: A run is missing or damaged.
    """
    if not len(samples):
        raise DataError(
            "there are no test samples",
            where=workspace.path("ingest/samples/test"),
            todo="Give more data, or a larger share of it in split.ratios.",
        )
    vectors: dict[Arm, Representations | None] = {}
    encoded: dict[bool, EncodedDataset] = {}
    scores: list[Scores] = [{} for _ in shown]
    for run in runs:
        bundle = read_bundle(workspace, run)
        if run.arm not in vectors:
            vectors[run.arm] = read_representations(
                workspace, run.arm, dataset.user_ids, dataset.item_ids
            )
        profile = bool(bundle.features.user_fields)
        if profile not in encoded:  # runs of one stage share their vocabularies
            encoded[profile] = encode_dataset(dataset, bundle.features)
        representations = permute(vectors[run.arm], run.arm, run.seed)
        for most, by_run in zip(shown, scores, strict=True):
            batches = BatchBuilder(
                encoded[profile],
                samples,
                min(bundle.history, most or bundle.history),
                representations,
                enriched=bundle.model.enriches,
            )
            predicted = predict(bundle.model, batches, objective=LISTS if run.reranks else CLICKS)
            if not np.isfinite(predicted).all():
                raise DataError(
                    f"run {run.name} scores {int((~np.isfinite(predicted)).sum())} test samples "
                    "with NaN or infinity",
                    where=workspace.path(run.folder),
                    todo="Lower train.learning_rate and train it again, or leave out its arm.",
                )
            by_run.setdefault((run.backbone, run.arm), {})[run.seed] = predicted
        after_run()
    return scores
