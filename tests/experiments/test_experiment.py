"""Experiments: users divided by a stable hash, changed with as few moves as possible."""

from __future__ import annotations

import itertools
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from reki_ray.cli.views.published import experiment_table
from reki_ray.errors import ConfigError, StoreError
from reki_ray.experiments.experiment import (
    EXPERIMENT,
    SLOTS,
    Experiment,
    Ranges,
    Variant,
    allot,
    load_experiment,
    rounded,
    slot_of,
    start_experiment,
    stop_experiment,
)
from reki_ray.store.promotions import CURRENT
from reki_ray.store.versions import VersionStore
from tests.support import store_factory

USERS = [f"user-{number}" for number in range(20_000)]
HALVES = {"base": (1, 0.5), "reki": (2, 0.5)}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("publish")
    for seed in range(3):
        VersionStore(root).publish(partial(store_factory.fill, seed=seed))
    return root


@pytest.fixture
def root(published: Path) -> Path:
    for path in published.glob("EXPERIMENT*"):
        path.unlink()
    return published


def experiment(salt: str = "salt", **shares: float) -> Experiment:
    variants = [
        Variant(name=name, version=number, share=share)
        for number, (name, share) in enumerate(shares.items(), 1)
    ]
    return Experiment(name="test", salt=salt, variants=tuple(variants))


def assigned(division: Experiment) -> list[str]:
    return [division.assign(user).name for user in USERS]


def test_assignment_is_the_same_in_every_process() -> None:
    assert [slot_of("salt", user) for user in ("u0", "ü/2", "")] == [988_762, 980_125, 399_180]
    division = experiment(base=0.5, reki=0.5)
    read = Experiment.model_validate_json(division.model_dump_json())
    assert assigned(read) == assigned(division)


def test_slots_are_uniform() -> None:
    tenths = np.bincount([slot_of("salt", user) * 50 // SLOTS for user in USERS], minlength=50)
    assert chisquare(tenths).pvalue > 0.001


def test_variants_get_their_shares() -> None:
    names = assigned(experiment(base=0.6, reki=0.3, small=0.1))
    observed = [names.count(name) for name in ("base", "reki", "small")]
    assert chisquare(observed, [12_000, 6_000, 2_000]).pvalue > 0.001


def test_another_salt_divides_independently() -> None:
    first = assigned(experiment("salt", a=0.5, b=0.5))
    second = assigned(experiment("another", a=0.5, b=0.5))
    pairs = list(zip(first, second, strict=True))
    table = [[pairs.count((one, other)) for other in "ab"] for one in "ab"]
    assert chi2_contingency(table).pvalue > 0.001


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda shares: sum(shares) > 0))
def test_rounded_shares_use_every_slot(shares: list[float]) -> None:
    total = sum(shares)
    sizes = rounded({str(number): share / total for number, share in enumerate(shares)})
    assert sum(sizes.values()) == SLOTS
    for number, share in enumerate(shares):
        assert abs(sizes[str(number)] - share / total * SLOTS) <= 1


SIZES = st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(sum)


@settings(deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=5))
def test_a_change_moves_no_more_slots_than_it_must(changes: list[list[int]]) -> None:
    owned: dict[str, Ranges] = {}
    for weights in changes:
        sizes = rounded(
            {name: weight / sum(weights) for name, weight in zip("abcd", weights, strict=True)}
        )
        new = allot(owned, sizes)
        assert {name: count(ranges) for name, ranges in new.items()} == sizes
        ranges = sorted(itertools.chain.from_iterable(new.values()))
        assert [begin for begin, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
        for name, before in owned.items():
            kept = sum(overlap(one, other) for one in before for other in new[name])
            assert kept == min(count(before), sizes[name])
        owned = new


def count(ranges: Ranges) -> int:
    return sum(end - begin for begin, end in ranges)


def overlap(one: tuple[int, int], other: tuple[int, int]) -> int:
    return max(0, min(one[1], other[1]) - max(one[0], other[0]))


def test_users_stay_in_a_variant_that_grows(root: Path) -> None:
    before: list[str] = []
    for share in (0.05, 0.2, 0.5, 1.0):
        shares = {"base": (1, 1 - share), "reki": (2, share)}
        now = assigned(start_experiment(root, "ramp", shares))
        assert now.count("reki") == pytest.approx(share * len(USERS), rel=0.15)
        for earlier, later in zip(before, now, strict=bool(before)):
            assert later == "reki" or earlier == "base"
        before = now


def test_a_variant_that_keeps_its_share_keeps_its_users(root: Path) -> None:
    first = {"base": (1, 0.5), "old": (2, 0.3), "new": (3, 0.2)}
    before = assigned(start_experiment(root, "three", first))
    second = {"base": (1, 0.3), "old": (2, 0.3), "new": (3, 0.4)}
    now = assigned(start_experiment(root, "three", second))
    moves = {pair for pair in zip(before, now, strict=True) if pair[0] != pair[1]}
    assert moves == {("base", "new")}


def test_the_running_experiment_is_the_one_that_was_started(root: Path) -> None:
    assert load_experiment(root) is None
    started = start_experiment(root, "test", HALVES)
    assert load_experiment(root) == started
    assert len(started.salt) == 32
    assert started.changed_at > 0
    assert [path.name for path in root.glob(".EXPERIMENT*")] == []


def test_an_experiment_of_more_versions_than_replicas_keep_is_refused(root: Path) -> None:
    thirds = {"base": (1, 0.4), "reki": (2, 0.3), "other": (1, 0.3)}  # 3 is promoted
    with pytest.raises(
        ConfigError, match="versions 1, 2, 3 open at once, but replicas keep 2"
    ) as e:
        start_experiment(root, "test", thirds, kept_versions=2)
    assert (e.value.where, "Set it to 3" in e.value.todo) == ("serve.kept_versions", True)
    assert load_experiment(root) is None
    assert start_experiment(root, "test", thirds, kept_versions=3) == load_experiment(root)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_whoever_may_read_the_pointer_may_read_the_experiment(root: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        started = start_experiment(root, "test", HALVES)
        (root / CURRENT).unlink()
        VersionStore(root).promote(3)
        rights = [path.stat().st_mode & 0o777 for path in (root / CURRENT, root / EXPERIMENT)]
        stop_experiment(root)
        rights.append((root / f"EXPERIMENT-{started.name}.json").stat().st_mode & 0o777)
    finally:
        os.umask(before)
    assert len(set(rights)) == 1


def test_a_stopped_experiment_is_kept_and_goes_on_with_its_users(root: Path) -> None:
    started = start_experiment(root, "test", HALVES)
    ended = stop_experiment(root)
    assert load_experiment(root) is None
    assert load_experiment(root, "test") == ended
    assert ended.ended_at is not None
    assert [experiment_table(one).title for one in (started, ended)] == [
        "Experiment test, running",
        "Experiment test, ended",
    ]
    other = start_experiment(root, "other", HALVES, salt="mine")
    assert other.salt == "mine"
    assert load_experiment(root, "test") == ended
    stop_experiment(root)
    again = start_experiment(root, "test", HALVES)
    assert (again.salt, again.ended_at) == (started.salt, None)
    assert assigned(again) == assigned(started)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"base": (1, 0.5), "reki": (7, 0.5)}, "there is no version 7"),
        ({"base": (1, 0.5), "reki": (2, 0.4)}, "must sum to 1, not 0.9"),
        ({"base": (1, 1.5), "reki": (2, -0.5)}, "less than or equal to 1"),
        ({"b/se": (1, 1.0)}, "should match pattern"),
        ({}, "at least 1 item"),
    ],
)
def test_a_wrong_experiment_is_refused(
    root: Path, variants: dict[str, tuple[int, float]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        start_experiment(root, "test", variants)
    assert load_experiment(root) is None


def test_names_of_variants_are_distinct() -> None:
    twice = [Variant(name="base", version=1, share=0.5)] * 2
    with pytest.raises(ValueError, match="base is repeated"):
        Experiment(name="test", salt="s", variants=tuple(twice))


def test_slots_without_an_owner_are_refused() -> None:
    variants = (
        Variant(name="a", version=1, share=0.5, slots=((0, 10),)),
        Variant(name="b", version=2, share=0.5, slots=((11, SLOTS),)),
    )
    with pytest.raises(ValueError, match="without gaps"):
        Experiment(name="test", salt="s", variants=variants)


def test_two_experiments_do_not_run_at_once(root: Path) -> None:
    start_experiment(root, "test", HALVES)
    with pytest.raises(ConfigError, match="experiment test is running"):
        start_experiment(root, "other", HALVES)


def test_a_salt_does_not_change(root: Path) -> None:
    start_experiment(root, "test", HALVES, salt="one")
    with pytest.raises(ConfigError, match="another salt"):
        start_experiment(root, "test", HALVES, salt="two")


def test_a_name_that_leads_elsewhere_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="not a valid name"):
        load_experiment(root, "../secret")


def test_stopping_nothing_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="no experiment is running"):
        stop_experiment(root)


@pytest.mark.parametrize("content", ["", "{}", '{"name": "test"', '{"name": "t", "salt": "s"}'])
def test_a_damaged_experiment_is_told_of(root: Path, content: str) -> None:
    (root / EXPERIMENT).write_text(content)
    with pytest.raises(StoreError, match="cannot be read"):
        load_experiment(root)
