from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reki_ray import schema
from reki_ray.config import Arm, HeinConfig, NetworkConfig, TrainConfig
from reki_ray.core.stage import CODE_VERSIONS
from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError, DataError
from reki_ray.models.artifact import ModelBundle
from reki_ray.training import runs
from reki_ray.training.arms import permute, read_representations
from reki_ray.training.batches import BatchBuilder, distinct, encode_dataset, shuffled
from reki_ray.training.checkpoint import Epoch, RunState, read_state, write_state
from reki_ray.training.dataset import Dataset
from reki_ray.training.loop import Schedule, Trainer
from reki_ray.training.runs import Run, fingerprint
from reki_ray.training.worker import TrainingData, new_trainer
from tests.support.trained_workspace import CUT, EVENTS, item_ids, user_ids

CONFIG = TrainConfig(
    network=NetworkConfig(embedding=8, attention=(8,), mlp=(16, 8)),
    hein=HeinConfig(hidden=8, output=8, dedicated_experts=2),
    history=6,
    base_history=3,
    batch_size=64,
    epochs=3,
    patience=3,
    learning_rate=0.01,
)


pytestmark = pytest.mark.usefixtures("one_thread")


def trainer(
    workspace: Workspace, dataset: Dataset, config: TrainConfig, arm: Arm = "reki_c"
) -> tuple[Trainer, ModelBundle]:
    found = read_representations(workspace, arm, dataset.user_ids, dataset.item_ids)
    data = TrainingData.of(dataset, {arm: found}, config)
    run = Run("din", arm, seed=0, fingerprint="x")
    return new_trainer(run, config, data, torch.device("cpu"))


def ignore(epoch: Epoch, state: RunState) -> None:
    """A run that saves nothing."""


def test_training_learns_what_users_like(filled: Workspace, dataset: Dataset) -> None:
    config = CONFIG.model_copy(update={"epochs": 20, "patience": 20})
    trained, bundle = trainer(filled, dataset, config, "fair_base")
    trained.run(ignore)
    assert trained.epochs[-1].loss < trained.epochs[0].loss - 0.05
    assert trained.best.valid_auc == max(epoch.valid_auc or 0.0 for epoch in trained.epochs)
    assert not bundle.model.training


def test_batches_of_one_sample_train(filled: Workspace, dataset: Dataset) -> None:
    config = CONFIG.model_copy(update={"batch_size": 1, "epochs": 1})
    trained, bundle = trainer(filled, dataset, config)
    trained.run(ignore)
    assert np.isfinite(trained.epochs[0].loss)
    assert all(torch.isfinite(p).all() for p in bundle.model.parameters())


def test_resumed_run_ends_where_an_unbroken_one_does(
    filled: Workspace, dataset: Dataset, tmp_path: Path
) -> None:
    def save_second(epoch: Epoch, state: RunState) -> None:
        if epoch.epoch == 2:
            write_state(tmp_path, state)

    unbroken, _ = trainer(filled, dataset, CONFIG)
    unbroken.run(save_second)
    resumed, bundle = trainer(filled, dataset, CONFIG)
    resumed.resume(read_state(tmp_path))
    assert len(resumed.epochs) == 2
    resumed.run(ignore)
    assert resumed.epochs[2].loss == pytest.approx(unbroken.epochs[2].loss, abs=1e-5)
    assert resumed.best.valid_logloss == pytest.approx(unbroken.best.valid_logloss, abs=1e-4)
    assert torch.isfinite(next(iter(bundle.model.parameters()))).all()


def test_state_of_another_run_is_ignored(
    filled: Workspace, dataset: Dataset, tmp_path: Path
) -> None:
    trained, _ = trainer(filled, dataset, CONFIG.model_copy(update={"epochs": 1}))
    trained.run(lambda epoch, state: write_state(tmp_path, replace(state, fingerprint="other")))
    fresh, _ = trainer(filled, dataset, CONFIG)
    fresh.resume(read_state(tmp_path))
    assert fresh.epochs == []


def test_rate_rises_then_falls_to_zero_over_the_steps() -> None:
    schedule = Schedule(peak=1.0, steps=110, warmup=10)
    rates = [schedule.rate(step) for step in range(111)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0.0)


def test_hein_learns_at_a_multiple_of_the_rate_and_the_rest_at_the_rate(
    filled: Workspace, dataset: Dataset
) -> None:
    def moved(multiple: float) -> dict[str, float]:
        hein = CONFIG.hein.model_copy(update={"rate": multiple, "enrich_items": True})
        # One step: the second one's gradients differ, and with them what the others learn.
        update = {"hein": hein, "epochs": 1, "batch_size": 10_000, "weight_decay": 0.0}
        trained, bundle = trainer(filled, dataset, CONFIG.model_copy(update=update))
        before = {name: p.detach().clone() for name, p in bundle.model.named_parameters()}
        trained.run(ignore)
        after = bundle.model.named_parameters()
        return {name: float((p.detach() - before[name]).abs().max()) for name, p in after}

    slow, fast = moved(1.0), moved(3.0)
    assert {name.partition(".")[0] for name in slow} >= {"hein", "enrichment", "items", "backbone"}
    for name, distance in slow.items():
        learns_faster = name.partition(".")[0] in ("hein", "enrichment")
        assert fast[name] == pytest.approx(distance * (3 if learns_faster else 1), rel=1e-3)


@pytest.mark.parametrize(("samples", "world"), [(10, 1), (10, 3), (1, 2), (7, 7)])
def test_ranks_get_equally_many_samples_and_miss_none(samples: int, world: int) -> None:
    parts = [shuffled(samples, 0, 1, rank, world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert set(np.concatenate(parts)) == set(range(samples))
    again = [shuffled(samples, 0, 1, rank, world) for rank in range(world)]
    np.testing.assert_array_equal(parts, again)


def test_history_holds_what_lies_before_the_sample_and_nothing_later(
    filled: Workspace, dataset: Dataset
) -> None:
    features = dataset.train_features()
    builder = BatchBuilder(encode_dataset(dataset, features), dataset.samples["test"], 6, None)
    indices = np.array([0, 20, 40])
    batch = builder.build(indices)
    past = filled.read_table(schema.INTERACTIONS).to_pylist()
    for row, k in enumerate(indices):
        user = dataset.user_ids[dataset.samples["test"].users[k]]
        position = int(dataset.samples["test"].positions[k])
        items = [event[schema.ITEM_ID] for event in past if event[schema.USER_ID] == user]
        expected = features.encode_items(items[max(0, position - 6) : position], [None] * 6)
        seen = batch.item_ids[batch.history.items[row]].tolist()
        assert [k for k in seen if k] == expected.ids.tolist()
        assert position >= CUT


def test_vocabulary_holds_nothing_that_training_never_saw(dataset: Dataset) -> None:
    first = dataset.samples["train"].positions == CUT
    train = dataset.samples["train"]
    few = replace(
        train,
        users=train.users[first][:1],
        items=train.items[first][:1],
        positions=train.positions[first][:1],
        labels=train.labels[first][:1],
    )
    features = replace(dataset, samples={**dataset.samples, "train": few}).train_features()
    assert features.items == (dataset.item_ids[few.items[0]],)  # histories give no rows
    assert features.item_counts == (1,)
    assert len(features.user_fields["gender"].values) == 1


def test_attribute_that_is_nowhere_cannot_be_put_in_buckets(dataset: Dataset) -> None:
    assert dataset.train_features({"gender": 2}).user_fields["gender"].bounds
    with pytest.raises(ConfigError, match="no attribute 'price'"):
        dataset.train_features({"price": 2})


def test_shuffled_arm_deals_the_same_vectors_to_other_ids(filled: Workspace) -> None:
    found = read_representations(filled, "reki_c_shuffled", user_ids(), item_ids())
    assert found is not None
    dealt = permute(found, "reki_c_shuffled", seed=1)
    assert dealt is not None
    ids = np.arange(len(item_ids()))
    before, after = found.items.gather(ids), dealt.items.gather(ids)
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(np.sort(before, axis=0), np.sort(after, axis=0))
    assert permute(found, "reki_c", seed=1) is found
    again = permute(found, "reki_c_shuffled", seed=1)
    assert again is not None
    np.testing.assert_array_equal(again.items.gather(ids), after)


def test_title_text_knows_nothing_of_users(filled: Workspace) -> None:
    found = read_representations(filled, "title_text", user_ids(), item_ids())
    assert found is not None
    assert not found.users.gather(np.arange(len(user_ids()))).any()
    assert read_representations(filled, "fair_base", user_ids(), item_ids()) is None


def test_id_without_representation_is_named(filled: Workspace) -> None:
    with pytest.raises(DataError, match="'nobody'"):
        read_representations(filled, "reki_c", ["u01", "nobody"], item_ids())


def test_fingerprint_follows_what_changes_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    run, read = Run("din", "reki_c", 0), ["data", "vectors"]
    first = fingerprint(CONFIG, run, read)
    more = {"arms": ("fair_base", "reki_c"), "backbones": ("din", "dien"), "max_failures": 9}
    assert fingerprint(CONFIG.model_copy(update=more), run, read) == first
    other_rate = CONFIG.model_copy(update={"learning_rate": 0.5})
    assert fingerprint(other_rate, run, read) != first
    assert fingerprint(CONFIG, run, ["data", "other"]) != first
    assert fingerprint(CONFIG, Run("dien", "reki_c", 0), read) != first
    newer = {**CODE_VERSIONS, "train": CODE_VERSIONS["train"] + 1}
    monkeypatch.setattr(runs, "CODE_VERSIONS", newer)
    assert fingerprint(CONFIG, run, read) != first  # other code trains another model


def test_distinct_agrees_with_sorting() -> None:
    values = np.random.default_rng(0).integers(0, 50, 200)
    found, places = distinct(values, 60)
    expected, inverse = np.unique(values, return_inverse=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(places, inverse)


def test_samples_of_every_split_are_read(dataset: Dataset) -> None:
    assert {split: len(part) for split, part in dataset.samples.items()} == {
        "train": 24 * (EVENTS - CUT),
        "valid": 3 * (EVENTS - CUT),
        "test": 3 * (EVENTS - CUT),
    }
