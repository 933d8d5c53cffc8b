"""The scorer of the service gives what training computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reki_ray.config import HeinConfig, TrainConfig
from reki_ray.core.workspace import Workspace
from reki_ray.errors import StoreError
from reki_ray.models.artifact import ModelBundle
from reki_ray.models.candidate_scorer import CandidateScorer, HistoryEvent, UserInput
from reki_ray.training.arms import read_representations
from reki_ray.training.batches import BatchBuilder, encode_dataset
from reki_ray.training.dataset import Dataset
from reki_ray.training.loop import predict
from reki_ray.training.runs import Run
from reki_ray.training.worker import TrainingData, new_bundle

CONFIG = TrainConfig(history=6, base_history=3, hein=HeinConfig(enrich_items=True))


def make(arm: str, workspace: Workspace, dataset: Dataset) -> tuple[ModelBundle, BatchBuilder]:
    run = Run("din", arm, 0)  # type: ignore[arg-type]
    found = read_representations(workspace, run.arm, dataset.user_ids, dataset.item_ids)
    data = TrainingData.of(dataset, {run.arm: found}, CONFIG)
    bundle = new_bundle(run, CONFIG, data)
    encoded = encode_dataset(dataset, bundle.features)
    builder = BatchBuilder(
        encoded,
        dataset.samples["test"],
        bundle.history,
        found,
        enriched=bundle.model.enriches,
    )
    bundle.model.train()
    for _ in range(20):  # running statistics as after training
        bundle.model(builder.build(np.arange(len(builder))))
    bundle.model.eval()
    return bundle, builder


def history(dataset: Dataset, user: int, position: int) -> list[HistoryEvent]:
    start = dataset.offsets[user]
    return [
        HistoryEvent(
            dataset.item_ids[dataset.past_items[k]],
            float(dataset.past_ratings[k]),
            int(dataset.past_times[k]),
        )
        for k in range(start, start + position)
    ]


@pytest.mark.parametrize("arm", ["base", "fair_base", "title_text", "reki_c"])
def test_scorer_agrees_with_the_training_path(
    arm: str, filled: Workspace, dataset: Dataset
) -> None:
    bundle, builder = make(arm, filled, dataset)
    found = read_representations(filled, bundle.arm, dataset.user_ids, dataset.item_ids)  # type: ignore[arg-type]
    h_users = h_items = fallback = None
    if found is not None:
        h_users = bundle.augment_users(found.users.gather(np.arange(len(dataset.user_ids))))
        h_items = bundle.augment_items(found.items.gather(np.arange(len(dataset.item_ids))))
        fallback = h_items.mean(axis=0)
    scorer = CandidateScorer(bundle, dataset.item_ids, dataset.item_attributes, h_items, fallback)
    offline = predict(bundle.model, builder)
    samples = dataset.samples["test"]
    for k in (0, 7, len(offline) - 1):
        user = int(samples.users[k])
        asked = UserInput(
            attributes=dataset.user_attributes[user],
            history=history(dataset, user, int(samples.positions[k])),
            augmented=None if h_users is None else h_users[user],
        )
        item = dataset.item_ids[samples.items[k]]
        candidates = ["m00", item, "m01", "not in the catalogue"]
        scores = scorer.score(asked, candidates)
        assert scores[1] == pytest.approx(offline[k], abs=1e-6)
        assert scorer.score(asked, [item])[0] == pytest.approx(scores[1], abs=1e-6)
        assert np.isfinite(scores).all()


@pytest.fixture
def scorer(filled: Workspace, dataset: Dataset) -> CandidateScorer:
    bundle, _ = make("reki_c", filled, dataset)
    random = np.random.default_rng(0).normal(size=(len(dataset.item_ids), bundle.augmented_dim))
    h_items = random.astype(np.float32)
    return CandidateScorer(
        bundle, dataset.item_ids, dataset.item_attributes, h_items, h_items.mean(axis=0)
    )


def asked(scorer: CandidateScorer, events: list[HistoryEvent] | None = None) -> UserInput:
    h_user = np.full(scorer.bundle.augmented_dim, 0.1, dtype=np.float32)
    return UserInput(attributes=None, history=events or [], augmented=h_user)


def test_scores_come_in_the_order_of_the_candidates(scorer: CandidateScorer) -> None:
    events = [HistoryEvent("m03", 5.0), HistoryEvent("gone", None), HistoryEvent("m04", None)]
    forward = scorer.score(asked(scorer, events), ["m01", "m02", "m01"])
    backward = scorer.score(asked(scorer, events), ["m02", "m01"])
    assert forward[0] == pytest.approx(forward[2], abs=1e-6)
    np.testing.assert_allclose(forward[:2], backward[::-1], atol=1e-6)
    assert len(scorer.score(asked(scorer), [])) == 0


def test_only_the_latest_events_count(scorer: CandidateScorer) -> None:
    events = [HistoryEvent(f"m{k:02}", 5.0) for k in range(10)]
    latest = events[-scorer.bundle.history :]
    np.testing.assert_allclose(
        scorer.score(asked(scorer, events), ["m20"]),
        scorer.score(asked(scorer, latest), ["m20"]),
        atol=1e-6,
    )


def test_vectors_that_do_not_fit_are_refused(scorer: CandidateScorer) -> None:
    with pytest.raises(StoreError, match="augmented vector"):
        scorer.score(UserInput(None, [], None), ["m01"])
    with pytest.raises(StoreError, match="fallback"):
        CandidateScorer(
            scorer.bundle,
            ["m01"],
            [None],
            np.zeros((1, scorer.bundle.augmented_dim), dtype=np.float32),
            None,
        )


def test_one_thread_or_two_give_the_same_scores(scorer: CandidateScorer) -> None:
    before = torch.get_num_threads()
    scores = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        scores.append(scorer.score(asked(scorer), [f"m{k:02}" for k in range(40)]))
    torch.set_num_threads(before)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
