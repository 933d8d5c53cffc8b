"""No prompt, history or split may see what it is judged on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reki_ray.config import SplitConfig
from reki_ray.data.samples import SampleTables, build_samples, sort_interactions
from reki_ray.data.splits import (
    PROMPT_HISTORY,
    Timeline,
    cold_items,
    divide,
    prompt_cuts,
    time_thresholds,
    user_splits,
)
from reki_ray.errors import DataError
from reki_ray.schema import (
    CUT,
    INTERACTIONS_SCHEMA,
    ITEM_ID,
    LABEL,
    POSITION,
    RATING,
    SAMPLES_SCHEMA,
    SPLITS,
    TIMESTAMP,
    USER_ID,
)

USERS, ITEMS, ROWS = 30, 25, 900


def random_interactions(seed: int, rows: int = ROWS, times: int = 200) -> pa.Table:
    """Unsorted interactions with many equal times; RATING carries the source order."""
    generator = np.random.default_rng(seed)
    return pa.table(
        {
            USER_ID: [f"u{u}" for u in generator.integers(0, USERS, rows)],
            ITEM_ID: [f"i{i}" for i in generator.integers(0, ITEMS, rows)],
            TIMESTAMP: generator.integers(0, times, rows),
            RATING: np.arange(rows, dtype=np.float32),
            LABEL: generator.integers(0, 2, rows).astype(np.int8),
        },
        schema=INTERACTIONS_SCHEMA,
    )


def build(interactions: pa.Table, config: SplitConfig, extra_users: int = 1) -> SampleTables:
    users = [f"u{u}" for u in range(USERS + extra_users)]
    items = [f"i{i}" for i in range(ITEMS)]
    return build_samples(interactions, pa.array(users), pa.array(items), config)


CONFIGS = st.builds(
    SplitConfig,
    method=st.sampled_from(["user", "time"]),
    prompt_history=st.integers(1, 40),
    prompt_history_share=st.floats(0.05, 0.8),
    cold_item_share=st.sampled_from([0.0, 0.2, 0.4]),
    seed=st.integers(0, 5),
)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), config=CONFIGS)
def test_no_leak(seed: int, config: SplitConfig) -> None:
    interactions = sort_interactions(random_interactions(seed))
    tables = build(interactions, config)
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in interactions.to_pylist():
        rows.setdefault(row[USER_ID], []).append(row)
    cuts = dict(zip(*(tables.cuts[name].to_pylist() for name in (USER_ID, CUT)), strict=True))

    for own in rows.values():
        assert [r[TIMESTAMP] for r in own] == sorted(r[TIMESTAMP] for r in own)
    places = set()
    for split in SPLITS:
        for sample in tables.samples[split].to_pylist():
            user, position = sample[USER_ID], sample[POSITION]
            own = rows[user]
            # The sample is that very interaction, after everything a prompt may see ...
            assert own[position][ITEM_ID] == sample[ITEM_ID]
            assert own[position][TIMESTAMP] == sample[TIMESTAMP]
            assert position >= cuts[user]
            # ... and no prompt or model history is later than it.
            assert all(r[TIMESTAMP] <= sample[TIMESTAMP] for r in own[:position])
            assert (user, position) not in places
            places.add((user, position))
    after_cut = sum(max(len(own) - cuts[user], 0) for user, own in rows.items())
    assert len(places) + tables.cold_dropped == after_cut
    if config.method == "user":
        check_users_are_disjoint(tables)
    else:
        check_periods_are_ordered(tables, rows, cuts)
    check_cold_items(tables, config)


def check_users_are_disjoint(tables: SampleTables) -> None:
    seen = [set(tables.samples[split][USER_ID].to_pylist()) for split in SPLITS]
    assert len(set.union(*seen)) == sum(len(users) for users in seen)


def check_periods_are_ordered(
    tables: SampleTables, rows: dict[str, list[dict[str, Any]]], cuts: dict[str, int]
) -> None:
    spans = [pc.min_max(tables.samples[split][TIMESTAMP]).as_py() for split in SPLITS]
    assert spans[0]["max"] < spans[1]["min"]
    assert spans[1]["max"] < spans[2]["min"]
    shown = [r[TIMESTAMP] for user, own in rows.items() for r in own[: cuts[user]]]
    assert max(shown, default=0) < spans[1]["min"]


def check_cold_items(tables: SampleTables, config: SplitConfig) -> None:
    mask = cold_items(ITEMS, config.cold_item_share, config.seed)
    cold = set(np.array(sorted(f"i{i}" for i in range(ITEMS)))[mask])
    assert len(cold) == round(config.cold_item_share * ITEMS)
    for split in ("train", "valid"):
        assert not cold & set(tables.samples[split][ITEM_ID].to_pylist())
    assert bool(cold & set(tables.samples["test"][ITEM_ID].to_pylist())) == bool(cold)
    assert bool(tables.cold_dropped) == bool(cold)


def test_equal_times_keep_the_order_of_the_source() -> None:
    table = sort_interactions(random_interactions(0, times=3))
    keys = table.select([USER_ID, TIMESTAMP, RATING]).to_pydict()
    order = list(zip(*keys.values(), strict=True))
    assert order == sorted(order)


def test_the_order_of_the_rows_changes_nothing() -> None:
    interactions = random_interactions(1, rows=600, times=10**9)
    shuffled = interactions.take(pa.array(np.random.default_rng(0).permutation(600)))
    config = SplitConfig(cold_item_share=0.2)
    first, second = (build(sort_interactions(t), config) for t in (interactions, shuffled))
    assert first.cuts.equals(second.cuts)
    for split in SPLITS:
        assert first.samples[split].equals(second.samples[split])


def test_another_seed_gives_another_division_and_the_same_seed_the_same() -> None:
    interactions = sort_interactions(random_interactions(2))
    test = [
        build(interactions, SplitConfig(seed=seed)).samples["test"][USER_ID].unique().to_pylist()
        for seed in (0, 0, 1)
    ]
    assert test[0] == test[1] != test[2]


def test_users_are_divided_eight_to_one_to_one() -> None:
    eligible = np.ones(1000, dtype=bool)
    eligible[:100] = False
    split = user_splits(eligible, SplitConfig())
    assert np.bincount(split[eligible]).tolist() == [720, 90, 90]
    assert not split[:100].any()


def test_times_are_divided_eight_to_one_to_one() -> None:
    times = np.random.default_rng(0).permutation(1000)
    assert time_thresholds(times, SplitConfig()).tolist() == [800, 900]


@pytest.mark.parametrize(("count", "cut"), [(0, 0), (1, 0), (2, 1), (9, 4), (60, 30), (1000, 30)])
def test_the_prompt_history_is_bounded_twice(count: int, cut: int) -> None:
    assert prompt_cuts(np.array([count]), 30, 0.5).tolist() == [cut]


def test_a_share_that_binary_numbers_cannot_hold_loses_no_interaction() -> None:
    assert prompt_cuts(np.array([10, 100]), 30, 0.29).tolist() == [2, 29]


def test_a_small_division_by_hand() -> None:
    timeline = Timeline(
        user=np.array([0, 0, 0, 0, 1, 1, 2, 2]),
        timestamp=np.array([10, 20, 30, 40, 15, 35, 90, 95]),
        item=np.array([0, 1, 2, 3, 0, 1, 2, 3]),
        users=4,
        items=4,
    )
    config = SplitConfig(method="time", ratios=(0.4, 0.3, 0.3))
    cuts, code = divide(timeline, config)
    # Samples at first: 30, 40, 35, 95. The training period ends at 35, so user 2, who begins
    # after it, has no prompt history at all.
    assert cuts.tolist() == [2, 1, 0, 0]
    p = PROMPT_HISTORY
    assert code.tolist() == [p, p, 0, 2, p, 1, 2, 2]


def test_cold_items_leave_the_users_where_they_were() -> None:
    interactions = sort_interactions(random_interactions(3))
    warm = build(interactions, SplitConfig())
    cold = build(interactions, SplitConfig(cold_item_share=0.3))
    assert cold.samples["test"].equals(warm.samples["test"])
    assert len(cold.samples["train"]) < len(warm.samples["train"])
    lost = sum(len(warm.samples[split]) - len(cold.samples[split]) for split in SPLITS)
    assert lost == cold.cold_dropped


def test_samples_and_cuts_fit_their_schema() -> None:
    tables = build(sort_interactions(random_interactions(4)), SplitConfig())
    for split in SPLITS:
        assert tables.samples[split].cast(SAMPLES_SCHEMA).num_rows > 0
    assert tables.cuts[CUT].to_pylist()[-1] >= 0
    assert len(tables.cuts) == USERS + 1


def test_too_few_interactions_for_a_division_are_an_error() -> None:
    interactions = sort_interactions(random_interactions(5, rows=2))
    with pytest.raises(DataError, match="no samples for train"):
        build(interactions, SplitConfig())
