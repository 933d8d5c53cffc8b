"""The towers learn from training samples alone what users like next, the same every time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from reki_ray.config import RetrievalConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.workspace import Workspace
from reki_ray.retrieval.builder import CANDIDATES, recall
from reki_ray.retrieval.positives import Likes, held_positives, streamed_positives
from reki_ray.retrieval.tower_trainer import all_item_vectors, fit
from reki_ray.retrieval.two_tower import TwoTower
from reki_ray.training.dataset import Dataset

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = RetrievalConfig(dimension=8, batch_size=64, epochs=150, id_dropout=0.0)


def towers(dataset: Dataset, config: RetrievalConfig = CONFIG, seed: int = 0) -> TwoTower:
    content = np.random.default_rng(1).normal(size=(len(dataset.item_ids), 5)).astype(np.float32)
    likes = Likes(dataset, 3.0, config.history)
    positives = held_positives(dataset, "train")
    return fit(content, likes, positives, config, seed, Reporter(quiet=True))


def test_items_that_the_same_users_like_come_together(dataset: Dataset) -> None:
    model = towers(dataset)
    content = np.random.default_rng(1).normal(size=(len(dataset.item_ids), 5)).astype(np.float32)
    vectors = all_item_vectors(model, content)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    genre = np.arange(len(vectors)) % 4
    alike = vectors @ vectors.T
    same = genre[:, None] == genre[None]
    np.fill_diagonal(same, val=False)
    assert alike[same].mean() > alike[~same].mean() + 0.1


def test_the_same_seed_gives_the_same_towers_and_leaves_others_random(dataset: Dataset) -> None:
    config = CONFIG.model_copy(update={"epochs": 2})
    torch.manual_seed(5)
    one = towers(dataset, config)
    after = torch.rand(1)
    two, other = towers(dataset, config), towers(dataset, config, seed=1)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, two.state_dict()[name])
    assert not torch.allclose(one.ids.weight, other.ids.weight)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)


def test_validation_and_test_have_no_part_in_it(dataset: Dataset) -> None:
    config = CONFIG.model_copy(update={"epochs": 2})
    train = dataset.samples["train"]
    blind = dataclasses.replace(dataset, samples={"train": train})
    for one, two in zip(
        towers(dataset, config).parameters(), towers(blind, config).parameters(), strict=True
    ):
        torch.testing.assert_close(one, two)


def test_no_more_samples_are_shown_than_allowed(dataset: Dataset) -> None:
    # A sample alone has no negatives: nothing is learned from it.
    drawn, shown = (
        towers(dataset, CONFIG.model_copy(update={"max_samples": most, "history": 1}))
        for most in (1, 6)
    )
    touched = (shown.ids.weight != drawn.ids.weight).any(dim=1)
    assert 2 <= int(touched.sum()) <= 12  # six items, and what was liked before each


def test_likes_are_the_latest_before_the_sample(dataset: Dataset) -> None:
    likes, samples = Likes(dataset, 3.0, 4), held_positives(dataset, "train")
    items, there = likes.before(samples)
    for k in range(0, len(samples), 7):
        start = dataset.offsets[samples.users[k]]
        before = slice(start, start + samples.positions[k])
        liked = dataset.past_items[before][dataset.past_ratings[before] > 3]
        assert items[k][there[k] > 0].tolist() == liked[-4:].tolist()


def test_a_negative_is_never_the_item_itself() -> None:
    model = TwoTower(3, 2, 4, 0.0)
    users, items = torch.eye(4)[:3], torch.eye(4)[[0, 0, 1]]
    targets, none = torch.tensor([0, 0, 1]), torch.zeros(3)
    scale = float(model.scale.detach().exp())
    # Rows: the item's logit, and of the one other item; the twin is no negative.
    logits = [(scale, 0.0), (0.0, 0.0), (0.0, 0.0, 0.0)]
    logits[1], logits[2] = (0.0, scale), (0.0, 0.0, 0.0)
    expected = np.mean([np.log(np.exp(row).sum()) - row[0] for row in np.array(logits[:2])])
    expected = (2 * expected + np.log(3)) / 3
    assert float(model.loss(users, items, targets, none).detach()) == pytest.approx(
        expected, rel=1e-5
    )


def test_streamed_samples_are_the_held_ones(filled: Workspace, dataset: Dataset) -> None:
    held = held_positives(dataset, "train")
    streamed = streamed_positives(filled, dataset, 10**6, seed=0)
    rows = [
        sorted(zip(one.users.tolist(), one.items.tolist(), one.positions.tolist(), strict=True))
        for one in (held, streamed)
    ]
    assert rows[0] == rows[1]
    assert len(streamed_positives(filled, dataset, 1, seed=0)) >= 1


def test_recall_counts_unseen_items_that_stand_before(dataset: Dataset) -> None:
    samples = held_positives(dataset, "valid").take(np.arange(3))
    scores = np.zeros((3, len(dataset.item_ids)), dtype=np.float32)
    assert recall(dataset, samples, scores) == 1.0  # of 40 items, all are among the candidates
    many = dataclasses.replace(dataset, item_ids=[str(k) for k in range(3 * CANDIDATES)])
    scores = np.ones((3, 3 * CANDIDATES), dtype=np.float32)
    scores[0, samples.items[0]] = 2.0
    scores[1:, samples.items[1:]] = 0.0
    assert recall(many, samples, scores) == pytest.approx(1 / 3)
    assert recall(many, samples.take(np.arange(0)), scores[:0]) is None
