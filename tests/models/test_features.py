"""Vocabularies: time gaps, numbers in buckets."""

from __future__ import annotations

import json
from dataclasses import asdict
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from reki_ray.models.embeddings import AttributeEmbedding, ItemEmbedding, row_embedding
from reki_ray.models.features import (
    GAP_BOUNDS,
    GAP_ROWS,
    MAX_RATING_LEVELS,
    MAX_VALUES,
    NO_TIME,
    UNKNOWN,
    FeatureSpace,
    describe_amounts,
    encode_gaps,
    read_amount,
)

DAY = 86_400


def test_time_gaps_count_back_from_the_latest_interaction() -> None:
    times = np.array([[NO_TIME, 0, 100 * DAY, 100 * DAY + 30], [5, 6, 7, NO_TIME]])
    passed = [seconds for seconds in GAP_BOUNDS if seconds <= 100 * DAY]
    assert encode_gaps(times).tolist() == [[0, 1 + len(passed), 1, 1], [0, 0, 0, 0]]


def test_gap_longer_than_any_bound_has_the_last_row() -> None:
    assert encode_gaps(np.array([[0, 4000 * DAY]])).tolist() == [[GAP_ROWS - 1, 1]]


def test_numbers_go_into_quantile_buckets() -> None:
    prices = [str(price) for price in (1, 2, 3, 4, 10, 20, 30, 1000)]
    features = FeatureSpace.build(
        items={f"m{k}": {"price": [price]} for k, price in enumerate(prices)},
        users=[],
        ratings=np.zeros(0, dtype=np.float32),
        buckets={"price": 4},
    )
    field = features.item_fields["price"]
    assert field.bounds == (1.0, 3.0, 10.0, 30.0)
    assert field.rows == 2 + 4
    asked = [["0"], ["2.9"], ["3"], ["999999"], ["cheap"], ["nan"], []]
    assert field.encode(asked)[:, 0].tolist() == [2, 2, 3, 5, 0, 0, 0]
    saved = json.loads(json.dumps(asdict(features)))
    assert TypeAdapter(FeatureSpace).validate_python(saved) == features


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("9.99", (9.99, "")),
        (" 1e3 ", (1000.0, "")),
        ("$9.99", (9.99, "$")),
        ("-$1,234.50", (-1234.5, "$")),
        ("12,34,567", (1234567.0, "")),
        ("1.234,50 €", (1234.5, "€")),
        ("1.234.567", (1234567.0, "")),
        ("1 234,5", (1234.5, "")),
        ("1\u00a0234\u00a0567", (1234567.0, "")),
        ("1'234", (1234.0, "")),
        ("9,99", (9.99, "")),
        ("45 %", (45.0, "%")),
        ("12kg", (12.0, "kg")),
        ("USD 5", (5.0, "USD")),
        ("R$ 10", (10.0, "R$")),
        *((word, None) for word in ("", "cheap", "nan", "inf", "1e999", "A4", "1:30", "10-20")),
        *((word, None) for word in ("1,2,3", "$", "1 2", "5/5", "(5)", "0x1", "1.2.3")),
    ],
)
def test_amounts_are_read_as_people_write_them(text: str, amount: tuple[float, str] | None) -> None:
    assert read_amount(text) == amount


@given(st.text(max_size=20))
def test_any_text_is_a_finite_number_or_none(text: str) -> None:
    amount = read_amount(text)
    assert amount is None or np.isfinite(amount[0])


@given(st.decimals(-(10**9), 10**9, allow_nan=False, places=2))
def test_a_price_is_the_same_however_it_is_written(price: Decimal) -> None:
    english = f"${price:,.2f}"
    german = f"{price:,.2f} EUR".translate(str.maketrans(",.", ".,"))
    for text in (str(price), english, german):
        amount = read_amount(text)
        assert amount is not None
        assert amount[0] == float(price)


def test_what_is_odd_about_numbers_is_told_with_counts() -> None:
    assert describe_amounts({"1": 5, "2.5": 1}) == ""
    odd = describe_amounts({"$5": 6, "5 €": 2, "cheap": 3})
    assert "3 of 11 are not numbers, as 'cheap'" in odd
    assert "their units differ: $ (6), € (2)" in odd


def test_prices_with_a_currency_go_into_buckets() -> None:
    prices = [f"${price:,}.00" for price in (1, 2, 3, 4, 10, 20, 30, 1000)]
    features = FeatureSpace.build(
        items={f"m{k}": {"price": [price]} for k, price in enumerate(prices)},
        users=[],
        ratings=np.zeros(0, dtype=np.float32),
        buckets={"price": 4},
    )
    assert features.item_fields["price"].bounds == (1.0, 3.0, 10.0, 30.0)
    assert features.item_fields["price"].encode([["$1,000.00"], ["3"]])[:, 0].tolist() == [5, 3]


def of_ratings(ratings: npt.NDArray[np.float32]) -> FeatureSpace:
    return FeatureSpace.build(items={}, users=[], ratings=ratings)


def test_few_ratings_have_a_level_each() -> None:
    assert of_ratings(np.array([3, 1, 3, np.nan, 5], np.float32)).rating_levels == (1.0, 3.0, 5.0)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 200)), min_size=1, max_size=60),
    st.integers(2, MAX_RATING_LEVELS),
)
def test_buckets_hold_equally_many_however_often_a_number_occurs(
    drawn: list[tuple[int, int]], buckets: int
) -> None:
    numbers = np.repeat(*(np.array(column) for column in zip(*drawn, strict=True)))
    prices = {f"m{place}": {"price": [str(number)]} for place, number in enumerate(numbers)}
    found = FeatureSpace.build(
        items=prices, users=[], ratings=numbers.astype(np.float32), buckets={"price": buckets}
    )
    rows = found.item_fields["price"].encode([[str(number)] for number in numbers])[:, 0]
    ratings = found.encode_ratings(numbers.astype(np.float32))
    assert set(ratings) == set(range(2, found.rating_rows))
    share = {int(number): (numbers == number).sum() for number in numbers}
    wanted = [(rows, buckets)]
    if len(share) > MAX_RATING_LEVELS:
        wanted.append((ratings, MAX_RATING_LEVELS))
    for encoded, most in wanted:
        for row in np.unique(encoded):
            inside = numbers[encoded == row]
            # More than its share only by its first number, which may occur more often than that.
            assert len(inside) <= -(-len(numbers) // most) + share[int(inside.min())]


def test_many_ratings_of_one_value_do_not_share_its_level() -> None:
    generator = np.random.default_rng(0)
    plays = np.ceil(generator.pareto(1.0, 5000) * 3).astype(np.float32)  # half of them 1 to 3
    rows = of_ratings(plays).encode_ratings(plays)
    largest = np.bincount(rows).max() / len(plays)
    assert largest <= (plays == 1).mean() + 0.05


# --- what training never saw ---------------------------------------------------------------------

KNOWN = FeatureSpace.build(
    items={"m0": {"genre": ["A", "B"]}, "m1": {"genre": ["C"], "year": ["1990"]}},
    users=[{"gender": ["F"]}],
    ratings=np.array([1, 5], dtype=np.float32),
    buckets={"year": 2},
)
ROWS = {name: field.rows for name, field in KNOWN.item_fields.items()}


@pytest.mark.parametrize(
    ("unseen", "absent"),
    [
        ({"genre": ["A", "new"]}, {"genre": ["A"]}),
        ({"genre": ["new", "newer"]}, {}),
        ({"genre": ["new", "newer", "A", "B"]}, {"genre": ["A", "B"]}),
        ({"genre": ["A"], "year": ["soon"]}, {"genre": ["A"]}),
        ({"genre": ["A"], "director": ["new"]}, {"genre": ["A"]}),
    ],
)
def test_an_unseen_value_is_as_an_absent_one(
    unseen: dict[str, list[str]], absent: dict[str, list[str]]
) -> None:
    embedding = AttributeEmbedding(ROWS, 4)
    one, other = (
        embedding({k: torch.from_numpy(v) for k, v in rows.items()}, 1)
        for rows in (KNOWN.encode_items(["m0"], [record]).attributes for record in (unseen, absent))
    )
    torch.testing.assert_close(one, other)


def test_rows_that_training_cannot_reach_start_as_nothing() -> None:
    assert not row_embedding(KNOWN.rating_rows, 4, UNKNOWN).weight[UNKNOWN].any()
    assert not ItemEmbedding(KNOWN.item_rows, ROWS, 4).ids.weight[UNKNOWN].any()
    assert ItemEmbedding(KNOWN.item_rows, ROWS, 4, 0.1).ids.weight[UNKNOWN].any()  # it is trained


def test_values_that_are_always_cut_have_no_row() -> None:
    many = [f"v{k:02}" for k in range(MAX_VALUES + 3)]
    field = FeatureSpace.build(
        items={"m": {"tag": many}}, users=[], ratings=np.zeros(0, np.float32)
    ).item_fields["tag"]
    assert field.values == tuple(many[:MAX_VALUES])
    assert set(field.encode([many])[0]) == set(range(2, field.rows))
