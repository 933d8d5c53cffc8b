"""Events as interactions: which count, with what rating, in which columns."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reki_ray.config import DataConfig, RefreshConfig
from reki_ray.events.batches import EventBatches
from reki_ray.events.event_mapping import EventRules
from reki_ray.events.log import Event

KNOWN = pa.chunked_array([pa.array(["m1", "m2"])])

Make = Callable[..., EventRules]


@pytest.fixture
def rules() -> Make:
    def make(columns: dict[str, Any] | None = None, **events: Any) -> EventRules:
        source: dict[str, Any] = {"kind": "movielens_100k"}
        if columns is not None:
            source = {"kind": "csv", "interactions": "i.csv", "items": "j.csv", "columns": columns}
        given = {"events": events} if events else {}
        config = RefreshConfig.model_validate(given)
        return EventRules(config.events, DataConfig.model_validate({"source": source}))

    return make


@pytest.mark.parametrize(
    ("kind", "rating", "expected"),
    [
        ("click", None, 4.0),
        ("click", 2.0, 2.0),
        ("rating", 3.5, 3.5),
        ("rating", None, None),
        ("rating", 7.0, None),
        ("impression", 4.0, None),
        ("dislike", None, 1.0),
    ],
)
def test_an_event_counts_with_the_rating_of_its_rule(
    rules: Make, kind: str, rating: float | None, expected: float | None
) -> None:
    made = rules(click="positive", rating="own", dislike=1.0)
    found = made.interaction(Event("u", "m", kind, 1, rating))
    assert (found.rating if found else None) == expected


def test_a_run_without_ratings_gets_none(rules: Make) -> None:
    made = rules({"rating": None, "label": "liked"}, click="positive", dislike=1.0)
    click, dislike = Event("u", "m", "click", 1), Event("u", "m", "dislike", 1, 2.0)
    found = [made.interaction(one) for one in (click, dislike)]
    assert [one and one.rating for one in found] == [None, None]
    assert [one and made.positive(one) for one in found] == [True, False]


def test_a_batch_has_the_columns_of_the_runs_own_files(tmp_path: Path) -> None:
    columns = {
        "user_id": "who",
        "item_id": "what",
        "timestamp": "when",
        "timestamp_unit": "iso",
        "rating": None,
        "label": "liked",
    }
    source = {"kind": "csv", "interactions": "i.csv", "items": "j.csv", "columns": columns}
    data = DataConfig.model_validate({"source": source})
    rules = EventRules(RefreshConfig().events, data)
    batches = EventBatches(rules, data, lambda: KNOWN)
    events = [Event("u0", "m1", "click", 5), Event("u0", "m2", "rating", 6, 1.0)]
    assert batches.write(events, tmp_path / "batch.parquet") == 2
    table = pq.read_table(tmp_path / "batch.parquet")
    assert table.column_names == ["who", "what", "when", "liked"]
    assert table["liked"].to_pylist() == [1, 0]
    assert table["when"].cast(pa.timestamp("s")).cast(pa.int64()).to_pylist() == [5, 6]


@pytest.mark.parametrize("rule", ["mine", float("nan")])
def test_an_unknown_rule_is_refused(rule: object) -> None:
    with pytest.raises(ValueError, match="click"):
        RefreshConfig.model_validate({"events": {"click": rule}})


@pytest.mark.parametrize("ahead", [0, 60, 7_200, 10**6])
def test_an_event_that_is_sent_again_is_the_same_row_in_any_batch(
    rules: Make, tmp_path: Path, ahead: int
) -> None:
    data = DataConfig.model_validate({"source": {"kind": "movielens_100k"}})
    batches = EventBatches(rules(), data, lambda: KNOWN)
    tables = []
    for number, received in enumerate((1_000, 1_001, 9_000)):
        event = Event("u0", "m1", "click", 1_000 + ahead, received_at=received)
        path = tmp_path / f"{number}.parquet"
        assert batches.write([event, event], path) == 1
        tables.append(pq.read_table(path))
    assert tables[0] == tables[1] == tables[2]
    [time] = tables[0]["timestamp"].cast(pa.timestamp("s")).cast(pa.int64()).to_pylist()
    assert time == (1_000 if ahead > 3_600 else 1_000 + ahead)


def test_of_several_in_one_second_the_same_one_counts_as_online(
    rules: Make, tmp_path: Path
) -> None:
    data = DataConfig.model_validate({"source": {"kind": "movielens_100k"}})
    made = rules()
    several = [
        Event("u0", "m1", "click", 10, received_at=11),
        Event(" u0", "m1 ", "rating", 10, 2.0, received_at=12),
        Event("u0", "m1", "rating", 10, 1.0, received_at=10),
    ]
    for order in permutations(several):
        EventBatches(made, data, lambda: KNOWN).write(order, tmp_path / "batch.parquet")
        [row] = pq.read_table(tmp_path / "batch.parquet").to_pylist()
        assert (row["user_id"], row["item_id"], row["rating"]) == ("u0", "m1", 2.0)
