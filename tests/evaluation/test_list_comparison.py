"""Training of rerankers by the same loop, and their comparison on the lists of a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reki_ray.config import Arm, HeinConfig, NetworkConfig, RerankConfig, TrainConfig
from reki_ray.core.workspace import Workspace
from reki_ray.evaluation.list_comparison import ListComparison
from reki_ray.metrics.ranking import ndcg, ranked
from reki_ray.models.artifact import RerankBundle
from reki_ray.training.arms import read_representations
from reki_ray.training.batches import BatchBuilder, encode_dataset
from reki_ray.training.checkpoint import Epoch, RunState, read_state, write_state
from reki_ray.training.dataset import Dataset, Samples
from reki_ray.training.loop import Trainer, Workers, predict
from reki_ray.training.objectives import LISTS
from reki_ray.training.rerank_lists import NOTHING, build_lists
from reki_ray.training.runs import Run, fingerprint, planned
from reki_ray.training.worker import TrainingData, new_trainer

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = TrainConfig(
    network=NetworkConfig(embedding=8, attention=(8,), mlp=(16, 8)),
    hein=HeinConfig(hidden=8, output=8, dedicated_experts=2),
    history=6,
    rerankers=("prm",),
    rerank=RerankConfig.model_validate(
        {
            "batch_size": 16,
            "epochs": 3,
            "patience": 3,
            "learning_rate": 0.01,
            "network": {"hidden": 16, "feed_forward": 16},
        }
    ),
)


def trainer(
    workspace: Workspace,
    dataset: Dataset,
    config: TrainConfig = CONFIG,
    arm: Arm = "reki_c",
    name: str = "prm",
) -> tuple[Trainer, RerankBundle]:
    found = read_representations(workspace, arm, dataset.user_ids, dataset.item_ids)
    data = TrainingData.of(dataset, {arm: found}, config)
    run = Run(name, arm, seed=0, fingerprint="x", reranks=True)
    return new_trainer(run, config.for_reranking(), data, torch.device("cpu"))


def ignore(epoch: Epoch, state: RunState) -> None:
    """A run that saves nothing."""


@pytest.mark.parametrize("name", ["dlcm", "prm", "setrank", "mir"])
def test_training_learns_what_users_like(filled: Workspace, dataset: Dataset, name: str) -> None:
    rates = {"epochs": 40, "patience": 40}
    config = CONFIG.model_copy(update={"rerank": CONFIG.rerank.model_copy(update=rates)})
    trained, bundle = trainer(filled, dataset, config, "fair_base", name)
    trained.run(ignore)
    assert trained.epochs[-1].loss < trained.epochs[0].loss - 0.05
    assert trained.best.quality == max(epoch.valid_ndcg or 0.0 for epoch in trained.epochs)
    assert trained.best.valid_auc is None
    assert not bundle.model.training


def test_resumed_run_ends_where_an_unbroken_one_does(
    filled: Workspace, dataset: Dataset, tmp_path: Path
) -> None:
    def save_second(epoch: Epoch, state: RunState) -> None:
        if epoch.epoch == 2:
            write_state(tmp_path, state)

    unbroken, _ = trainer(filled, dataset)
    unbroken.run(save_second)
    resumed, bundle = trainer(filled, dataset)
    resumed.resume(read_state(tmp_path))
    assert len(resumed.epochs) == 2
    resumed.run(ignore)
    assert resumed.epochs[2].loss == pytest.approx(unbroken.epochs[2].loss, abs=1e-5)
    assert resumed.epochs[2].valid_logloss == pytest.approx(
        unbroken.epochs[2].valid_logloss, abs=1e-4
    )
    assert all(torch.isfinite(p).all() for p in bundle.model.parameters())


def test_the_same_seed_trains_the_same_reranker(filled: Workspace, dataset: Dataset) -> None:
    one, two = (trainer(filled, dataset) for _ in range(2))
    for trained, _ in (one, two):
        trained.run(ignore)
    losses = [[epoch.loss for epoch in trained.epochs] for trained, _ in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    scores = [predict(b.model, t._valid, objective=LISTS) for t, b in (one, two)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)


def test_batch_of_lists_holds_candidates_and_what_came_before_them(
    filled: Workspace, dataset: Dataset
) -> None:
    features = dataset.train_features()
    encoded = encode_dataset(dataset, features)
    lists = build_lists(dataset, "test", RerankConfig(list_size=30, max_positives=9))
    found = read_representations(filled, "reki_c", dataset.user_ids, dataset.item_ids)
    assert found is not None
    builder = BatchBuilder(encoded, lists, 6, found)
    indices = np.arange(len(lists))
    batch = builder.build(indices)
    assert (lists.items == NOTHING).any()  # every user has met too many items to leave 30
    assert batch.item_knowledge is not None
    assert batch.user_knowledge is not None
    for row in indices:
        items, user = lists.items[row], lists.users[row]
        known = items != NOTHING
        expected = encoded.item_ids[items[known] + 1]
        np.testing.assert_array_equal(batch.item_ids[batch.targets[row]][known], expected)
        assert not batch.targets[row][~known].any()
        start = dataset.offsets[user]
        at = start + lists.positions[row]
        past = dataset.past_items[max(start, at - 6) : at]
        shown = batch.item_ids[batch.history.items[row]]
        np.testing.assert_array_equal(shown[shown > 0], encoded.item_ids[past + 1])
        vectors = batch.item_knowledge.vectors[batch.item_knowledge.index[batch.targets[row]]]
        np.testing.assert_array_equal(vectors[known], found.items.gather(items[known]))
        of_user = batch.user_knowledge.vectors[batch.user_knowledge.index[row]]
        np.testing.assert_array_equal(of_user[None], found.users.gather(np.array([user])))
    labels = builder.labels(indices)
    np.testing.assert_array_equal(labels, lists.labels)


def test_listwise_loss_is_the_cross_entropy_of_the_real_candidates() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, requires_grad=True)
    labels = torch.tensor([[1.0, 0, 1, 0], [0, 1, -1, -1], [1, -1, -1, -1]])
    loss = LISTS.loss(logits, labels)
    losses = []
    for row, wanted in zip(logits, labels, strict=True):
        shares = torch.log_softmax(row[wanted >= 0], dim=0)
        losses.append(-shares[wanted[wanted >= 0] > 0].mean())
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[labels < 0].any()


def test_predictions_of_several_workers_come_in_the_order_of_the_lists(
    filled: Workspace, dataset: Dataset
) -> None:
    class OneOfTwo(Workers):
        """The first of two workers; the second one's part is known."""

        rank, world = 0, 2

        def __init__(self, other: torch.Tensor) -> None:
            self.other = other

        def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
            return [values, self.other]

    trained, bundle = trainer(filled, dataset)
    batches = trained._valid
    whole = predict(bundle.model, batches, objective=LISTS)
    assert whole.shape == (len(batches), CONFIG.rerank.list_size)
    assert len(whole) > 2
    second = np.resize(whole, (len(whole) + len(whole) % 2, whole.shape[1]))[1::2]
    parts = predict(bundle.model, batches, OneOfTwo(torch.from_numpy(second)), LISTS)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_fingerprints_follow_the_rates_of_their_own_kind() -> None:
    click, lists = planned(CONFIG)[0], planned(CONFIG, reranks=True)[0]
    rates = CONFIG.rerank.model_copy(update={"learning_rate": 0.5})
    other_lists = CONFIG.model_copy(update={"rerank": rates})
    other_clicks = CONFIG.model_copy(update={"learning_rate": 0.5, "batch_size": 7})
    more = CONFIG.model_copy(update={"rerankers": ("prm", "mir")})
    for config, changed in ((other_lists, lists), (other_clicks, click), (more, None)):
        for run in (click, lists):
            same = fingerprint(config, run, ["data"]) == fingerprint(CONFIG, run, ["data"])
            assert same == (run != changed)


@pytest.fixture(scope="module")
def test_lists() -> Samples:
    generator = np.random.default_rng(0)
    labels = (generator.random((400, 10)) < 0.3).astype(np.float32)
    labels[:, 0] = 1
    labels = generator.permuted(labels, axis=1)
    users = np.repeat(np.arange(80), 5)
    items = generator.integers(0, 120, labels.shape)
    return Samples(users, items, np.zeros(400, dtype=np.int64), labels)


def compared(
    lists: Samples, scores: dict[Arm, dict[int, np.ndarray]]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], list[dict[str, Any]]]:
    comparison = ListComparison(lists, 200, 0.95)
    rows, controls = comparison.rows("prm", scores)
    return comparison.initial(), {row["arm"]: row for row in rows}, controls


def test_rows_tell_the_gain_over_the_fair_base_and_over_the_initial_order(
    test_lists: Samples,
) -> None:
    noise = np.random.default_rng(1).normal(size=(2, 400, 10)).astype(np.float32)
    base = {seed: test_lists.labels + 2 * noise[seed] for seed in (0, 1)}
    better = {seed: test_lists.labels + noise[seed] for seed in (0, 1)}
    initial, rows, controls = compared(
        test_lists, {"fair_base": base, "reki_c": better, "reki_c_shuffled": base}
    )
    fair, knowing = rows["fair_base"], rows["reki_c"]
    assert fair["delta_ci"] == [0.0, 0.0]
    assert fair["seeds"] == [0, 1]
    expected = np.mean([ndcg(ranked(test_lists.labels, base[seed]), 7).mean() for seed in (0, 1)])
    assert fair["ndcg"]["7"] == pytest.approx(expected)
    assert fair["per_seed"][1]["ndcg"]["7"] == pytest.approx(
        ndcg(ranked(test_lists.labels, base[1]), 7).mean()
    )
    low, high = knowing["delta_ci"]
    assert 0 < low < knowing["delta_ndcg_7"] < high
    assert knowing["delta_ndcg_7"] == pytest.approx(knowing["ndcg"]["7"] - fair["ndcg"]["7"])
    assert knowing["delta_map_7"] == pytest.approx(knowing["map"]["7"] - fair["map"]["7"])
    spread = knowing["ndcg_7_ci"][1] - knowing["ndcg_7_ci"][0]
    assert high - low < spread  # paired
    gain = knowing["ndcg"]["7"] - initial["ndcg"]["7"]
    assert knowing["delta_initial_ndcg_7"] == pytest.approx(gain)
    assert initial["lists"] == 400
    assert set(initial) == set(knowing)
    assert [(row["control"], row["apart"]) for row in controls] == [("reki_c_shuffled", True)]


def test_initial_order_is_the_control_row(test_lists: Samples) -> None:
    initial, _, _ = compared(test_lists, {"fair_base": {0: np.zeros((400, 10), np.float32)}})
    expected = ndcg((test_lists.labels > 0).astype(np.float64), 5).mean()
    assert initial["ndcg"]["5"] == pytest.approx(expected)
    assert (initial["reranker"], initial["arm"], initial["delta_ndcg_7"]) == (
        "initial_order",
        None,
        None,
    )
