"""Lists of candidates for rerankers: what may be in them, and in which order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reki_ray.config import RerankConfig
from reki_ray.errors import DataError
from reki_ray.schema import SPLITS, Split
from reki_ray.training.dataset import Dataset, Samples
from reki_ray.training.rerank_lists import NOTHING, build_lists, distinct_draws


def make(seed: int, users: int, items: int, events: int, liked: float) -> Dataset:
    """Users with histories of unequal length, now and then an item twice; splits by user."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, events + 1, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    past = generator.integers(0, items, offsets[-1])
    owner = np.repeat(np.arange(users), lengths)
    position = np.arange(len(past)) - offsets[owner]
    labels = (generator.random(len(past)) < liked).astype(np.float32)
    samples: dict[Split, Samples] = {}
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero((owner % 3 == number) & (position >= 2))
        rows = generator.permutation(rows)
        samples[split] = Samples(owner[rows], past[rows], position[rows], labels[rows])
    return Dataset(
        user_ids=[f"u{k}" for k in range(users)],
        user_attributes=[None] * users,
        item_ids=[f"m{k}" for k in range(items)],
        item_attributes=[None] * items,
        offsets=offsets,
        past_items=past,
        past_ratings=np.full(len(past), np.nan, dtype=np.float32),
        past_times=position.astype(np.int64),
        samples=samples,
    )


datasets = st.builds(
    make,
    seed=st.integers(0, 10_000),
    users=st.integers(3, 12),
    items=st.integers(2, 40),
    events=st.integers(3, 25),
    liked=st.floats(0.05, 0.95),
)
configs = st.tuples(st.integers(2, 12), st.integers(1, 6), st.integers(0, 3)).map(
    lambda drawn: RerankConfig(
        list_size=drawn[0], max_positives=min(drawn[1], drawn[0] - 1), seed=drawn[2]
    )
)


def lists_of(dataset: Dataset, config: RerankConfig, split: Split) -> Samples | None:
    if not (dataset.samples[split].labels > 0).any():
        with pytest.raises(DataError, match="no lists"):
            build_lists(dataset, split, config)
        return None
    return build_lists(dataset, split, config)


def rows_of(samples: Samples) -> set[tuple[int, int, float]]:
    return set(zip(samples.users, samples.items, samples.labels, strict=True))


@settings(max_examples=150, deadline=None)
@given(datasets, configs, st.sampled_from(SPLITS))
def test_a_list_holds_real_candidates_and_items_that_the_user_never_met(
    dataset: Dataset, config: RerankConfig, split: Split
) -> None:
    lists = lists_of(dataset, config, split)
    if lists is None:
        return
    samples = dataset.samples[split]
    pool = set(samples.items)
    for user, items, labels in zip(lists.users, lists.items, lists.labels, strict=True):
        met = set(dataset.past_items[dataset.offsets[user] : dataset.offsets[user + 1]])
        real = rows_of(samples)
        size = int((items != NOTHING).sum())
        assert (items[:size] != NOTHING).all()  # padding stands at the end
        assert (labels[size:] == NOTHING).all()
        assert 1 <= (labels > 0).sum() <= config.max_positives
        negatives = items[labels == 0]
        assert len(set(negatives)) == len(negatives)
        assert not set(negatives) & set(items[labels > 0])
        for item, label in zip(items[:size], labels[:size], strict=True):
            if item in met:
                assert (user, item, label) in real
            else:
                assert label == 0
                assert item in pool
        assert size == config.list_size or pool - met <= set(negatives)


@settings(max_examples=150, deadline=None)
@given(datasets, configs, st.sampled_from(SPLITS))
def test_every_positive_is_in_exactly_one_list(
    dataset: Dataset, config: RerankConfig, split: Split
) -> None:
    lists = lists_of(dataset, config, split)
    if lists is None:
        return
    samples = dataset.samples[split]
    owners = np.repeat(lists.users, (lists.labels > 0).sum(axis=1))
    found = sorted(zip(owners, lists.items[lists.labels > 0], strict=True))
    positive = samples.labels > 0
    assert found == sorted(zip(samples.users[positive], samples.items[positive], strict=True))


@settings(max_examples=100, deadline=None)
@given(datasets, configs, st.sampled_from(SPLITS))
def test_history_ends_before_every_real_candidate(
    dataset: Dataset, config: RerankConfig, split: Split
) -> None:
    lists = lists_of(dataset, config, split)
    if lists is None:
        return
    samples = dataset.samples[split]
    for row, user in enumerate(lists.users):
        items = lists.items[row]
        mine = samples.users == user
        places = {
            item: set(samples.positions[mine & (samples.items == item)]) for item in set(items)
        }
        at = lists.positions[row]
        assert any(at in found for found in places.values())
        for item in items[lists.labels[row] > 0]:
            assert max(places[item]) >= at


@settings(max_examples=50, deadline=None)
@given(datasets, configs)
def test_the_same_seed_gives_the_same_lists(dataset: Dataset, config: RerankConfig) -> None:
    one, other = (lists_of(dataset, config, "train") for _ in range(2))
    if one is None or other is None:
        return
    for name in ("users", "items", "positions", "labels"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_lists_follow_each_other_in_time_and_take_the_negatives_between() -> None:
    labels = np.array([0, 1, 0, 1, 1, 0, 0, 1, 0, 0], dtype=np.float32)
    ten = np.arange(10)
    samples = Samples(np.zeros(10, dtype=np.int64), ten, ten, labels)
    dataset = replace(
        make(0, 1, 30, 0, 0.5),
        offsets=np.array([0, 10]),
        past_items=ten,
        samples=dict.fromkeys(SPLITS, samples),
    )
    lists = build_lists(dataset, "train", RerankConfig(list_size=5, max_positives=2))
    assert [set(row[row >= 0]) for row in lists.items] == [{0, 1, 2, 3}, {4, 6, 7, 8, 9}]
    assert lists.positions.tolist() == [0, 4]


def test_initial_order_follows_popularity_among_other_users_and_tells_no_label() -> None:
    dataset = make(3, 600, 200, 30, 0.5)
    lists = build_lists(dataset, "train", RerankConfig())
    train = dataset.samples["train"]
    for row in range(0, len(lists), 7):
        others = train.items[train.users != lists.users[row]]
        counts = [(others == item).sum() for item in lists.items[row] if item != NOTHING]
        assert counts == sorted(counts, reverse=True)
    # Items of this data set are equally popular, so the place of a positive is anybody's guess.
    places = np.nonzero(lists.labels > 0)[1]
    assert places.mean() == pytest.approx(4.5, abs=0.25)


def test_other_seed_samples_other_negatives() -> None:
    dataset = make(1, 30, 200, 20, 0.5)
    one, other = (build_lists(dataset, "test", RerankConfig(seed=seed)) for seed in (0, 1))
    assert (one.items != other.items).any()
    np.testing.assert_array_equal(one.users, other.users)


def test_every_set_of_draws_is_equally_likely() -> None:
    free = np.full(30_000, 5)
    drawn = distinct_draws(free, np.full(len(free), 2), 3, np.random.default_rng(0))
    assert (drawn[:, 2] == NOTHING).all()
    pairs, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    assert len(pairs) == 10
    np.testing.assert_allclose(counts / len(free), 0.1, atol=0.008)
