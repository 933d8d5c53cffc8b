"""Unusable rows are set aside with their place and reason, and counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deployments.schemas import ScoreRequest
from reki_ray.config import DataConfig
from reki_ray.core.workspace import Workspace
from reki_ray.data.delimited import read_delimited
from reki_ray.data.dialects import TextFormat
from reki_ray.data.quarantine import (
    FAILED_QUARANTINE,
    CheckedTable,
    Rejections,
    enforce_threshold,
    require_reasons,
)
from reki_ray.data.raw_tables import MappedTable, RawTable, RejectedRow, TableKind
from reki_ray.data.samples import sort_interactions
from reki_ray.data.validation import check_interactions, check_items, check_users
from reki_ray.errors import ConfigError, DataError
from reki_ray.schema import (
    ATTRIBUTES,
    ITEM_ID,
    LOCATION,
    MAX_ID_CHARS,
    RATING,
    RAW,
    REASON,
    TABLE,
    TIMESTAMP,
    TITLE,
    USER_ID,
)

CONFIG = DataConfig.model_validate({"source": {"kind": "movielens_100k"}})
NAMES = (USER_ID, ITEM_ID, RATING, TIMESTAMP)
GOOD = ("u", "i", "4", "1000")


def allowing(share: float, **shares: float) -> DataConfig:
    limits = {"max_quarantine_share": share, "max_quarantine_shares": shares}
    return DataConfig.model_validate({"source": {"kind": "movielens_100k"}, **limits})


def draft(
    kind: TableKind, names: tuple[str, ...], rows: list[tuple[str | None, ...]]
) -> MappedTable:
    table = pa.table(
        {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)}
    )
    raw = RawTable(
        kind=kind,
        rows=table,
        files=("f.csv",),
        file_of=np.zeros(len(rows), dtype=np.int32),
        number_of=np.arange(2, len(rows) + 2),
        mark=":",
    )
    return MappedTable(raw, {name: table.column(name) for name in names})


def check(
    rows: list[tuple[str | None, ...]], config: DataConfig = CONFIG, unit: str = "s"
) -> CheckedTable:
    return check_interactions(
        draft("interactions", NAMES, rows),
        config,
        unit,
        users=pa.array(["u", "v"]),
        items=pa.array(["i", "j"]),
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("", "i", "4", "1"), "user_id is missing"),
        (("u", None, "4", "1"), "item_id is missing"),
        (("w", "i", "4", "1"), "unknown user_id"),
        (("u", "k", "4", "1"), "unknown item_id"),
        (("u", "i", "", "1"), "rating is missing"),
        (("u", "i", "four", "1"), "rating is no number"),
        (("u", "i", "5.5", "1"), "rating is out of range"),
        (("u", "i", "0", "1"), "rating is out of range"),
        (("u", "i", "4", ""), "timestamp is missing"),
        (("u", "i", "4", "noon"), "timestamp is no number"),
        (("u", "i", "4", "-1"), "timestamp is out of range"),
        (("u", "i", "4", "1e17"), "timestamp is out of range"),
        (("u", "i", "4", "978300760000"), "looks like milliseconds"),
        (GOOD, "duplicate interaction"),
    ],
)
def test_each_fault_has_its_reason(row: tuple[str | None, ...], reason: str) -> None:
    checked = check([GOOD, row])
    assert checked.rows[USER_ID].to_pylist() == ["u"]
    (rejected,) = checked.rejected
    assert reason in rejected.reason
    assert rejected.location == "f.csv:3"
    assert str(row[3]) in rejected.raw


@pytest.mark.parametrize(
    ("cells", "unit", "reason", "hint"),
    [
        (["978300760000000"], "s", "looks like microseconds", "timestamp_unit: us"),
        (["978300760000000000"], "ms", "looks like nanoseconds, not milli", "timestamp_unit: ns"),
        (["637134336000000000"], "s", "looks like ticks of .NET", "timestamp_unit: s."),
        (["637134336000000000"], "ms", "looks like ticks of .NET", "621355968000000000"),
        (["637134336000000000", "x"], "iso", "no ISO 8601 time", ""),
        (["2001-01-01"], "s", "timestamp is no number", "timestamp_unit: 'iso'"),
        (["978300760,5"], "s", "timestamp is no number", "decimal: ','"),
        (["NULL", "1"], "s", "timestamp is no number", 'null_words: ["NULL"]'),
        (["1.1.2001"], "iso", "no ISO 8601 time", "'%d.%m.%Y'"),
        (["2001-01-01"], "%d.%m.%Y", "does not fit '%d.%m.%Y'", "'iso'"),
        (["01/13/2001 1:00 PM"], "iso", "no ISO 8601 time", "'%m/%d/%Y %I:%M %p'"),
    ],
)
def test_times_in_another_unit_name_the_key_to_set(
    cells: list[str], unit: str, reason: str, hint: str
) -> None:
    checked = check([("u", "i", "4", cell) for cell in cells], unit=unit)
    found = next(iter(checked.reasons()))
    assert reason in found
    assert hint in checked.hints.get(found, "")
    assert "timestamp_unit: 'ns'" not in checked.hints.get(found, "")


@pytest.mark.parametrize(
    ("cells", "hint"),
    [(["4,5", "3,0"], "decimal: ','"), (["NULL"], 'null_words: ["NULL"]'), (["4/5"], "")],
)
def test_ratings_that_are_no_numbers_name_the_key_to_set(cells: list[str], hint: str) -> None:
    checked = check([("u", "i", cell, str(n)) for n, cell in enumerate(cells)])
    assert checked.reasons() == {"rating is no number": len(cells)}
    assert hint in checked.hints.get("rating is no number", "")


@pytest.mark.parametrize(
    ("times", "unit", "message"),
    [
        (["978300760", "978300761"], "ms", "look like seconds, not milliseconds"),
        (["978300760"] * 3 + ["978300760000"], "ns", "look like seconds"),
        (["20010101", "20010215"], "s", "look like %Y%m%d"),
        (["1970-01-12 07:45:00"], "iso", None),
        (["1970-01-01 00:16:18"], "iso", "numbers read in another unit"),
        (["1000000", "1000500"], "s", None),
        (["978300760", "5"], "s", None),
    ],
)
def test_times_of_1970_that_another_unit_makes_recent_are_refused(
    times: list[str], unit: str, message: str | None
) -> None:
    rows: list[tuple[str | None, ...]] = [("u", "i", "4", cell) for cell in times]
    if message is None:
        checked = check(rows, unit=unit)
        assert len(checked.rows) == len(rows)
        assert len(checked.notes) == (times[0] != "978300760")
        return
    with pytest.raises(DataError, match=message) as caught:
        check(rows, unit=unit)
    assert "column for timestamp" in caught.value.where
    ended = CONFIG.model_copy(update={"latest": 50_000_000})
    assert check(rows, ended, unit).rows_in == len(rows)  # the way out that the message names


@pytest.mark.parametrize(("unit", "wrong"), [("ms", "s"), ("us", "ms"), ("ns", "s"), ("s", "ms")])
@pytest.mark.parametrize("share", [1, 3, 4])
def test_a_minority_of_times_in_another_unit_is_rejected(unit: str, wrong: str, share: int) -> None:
    size = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
    seconds = [1_600_000_000 + n for n in range(10)]
    units = [wrong] * share + [unit] * (10 - share)
    cells = [str(s * size[u]) for s, u in zip(seconds, units, strict=True)]
    checked = check([("u", "i", "4", cell) for cell in cells], unit=unit)
    assert checked.rows[TIMESTAMP].to_pylist() == seconds[share:]
    [(reason, count)] = checked.reasons().items()
    names = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
    assert f"it looks like {names[wrong]}, not {names[unit]}" in reason
    assert (count, checked.hints[reason][:25]) == (share, "Write all times in one un")


@pytest.mark.parametrize("late", [0, 1])
def test_times_since_a_first_event_are_kept(late: int) -> None:
    cells = [n * 86_400_000 * 20 for n in range(20)] + [700_000_000_000] * late
    checked = check([("u", "i", "4", str(cell)) for cell in cells], unit="ms")
    assert not checked.rejected


def test_rows_of_one_second_are_in_the_order_of_their_full_precision() -> None:
    order = ["1600000000900", "1600000000100", "1600000001000", "1600000000500"]
    checked = check([("u", "ij"[n % 2], "4", ms) for n, ms in enumerate(order)], unit="ms")
    assert checked.rejected[0].location == "f.csv:5"  # the same item in the same second
    assert checked.rows[TIMESTAMP].to_pylist() == [1600000000, 1600000000, 1600000001]
    assert checked.rows[ITEM_ID].to_pylist() == ["j", "i", "i"]


@given(st.lists(st.integers(1_600_000_000_000_000_000, 1_600_000_003_000_000_000), max_size=20))
def test_any_times_keep_their_order_within_a_user(nanoseconds: list[int]) -> None:
    items = [f"i{number}" for number in range(len(nanoseconds))]
    rows: list[tuple[str | None, ...]] = [
        ("u", item, "4", str(time)) for item, time in zip(items, nanoseconds, strict=True)
    ]
    checked = check_interactions(
        draft("interactions", NAMES, rows),
        CONFIG,
        "ns",
        users=None,
        items=pa.array(items, pa.string()),
    )
    expected = [
        item for _, item in sorted(zip(nanoseconds, items, strict=True), key=lambda p: p[0])
    ]
    assert sort_interactions(checked.rows)[ITEM_ID].to_pylist() == expected


@pytest.mark.parametrize(
    ("written", "known", "found"),
    [
        (["1.0", "2.0"], ["1", "2"], ["1", "2"]),
        (["1", "2"], ["1.0", "2.0"], ["1.0", "2.0"]),
        (["1.0", "2"], ["1", "2"], ["1", "2"]),
        (["1.0", "1"], ["1.0", "1"], ["1.0", "1"]),
        (["1.5", "1.00"], ["1", "2"], []),
    ],
)
def test_ids_that_became_floating_point_find_the_catalogue(
    written: list[str], known: list[str], found: list[str]
) -> None:
    rows = draft(
        "interactions", NAMES, [("u", item, "4", str(n)) for n, item in enumerate(written)]
    )
    checked = check_interactions(rows, CONFIG, "s", users=None, items=pa.array(known))
    assert checked.rows[ITEM_ID].to_pylist() == found
    if not found:
        assert checked.hints["unknown item_id"] == (
            "Interactions have item_id as '1.5', the catalogue as '1', '2'."
        )
    taken = [note for note in checked.notes if "item_id" in note]
    assert len(taken) == (bool(found) and found != written)


def test_users_without_a_table_are_written_as_integers_where_all_are() -> None:
    rows = draft("interactions", NAMES, [("1.0", "i", "4", "1"), ("2.0", "i", "4", "1")])
    checked = check_interactions(rows, CONFIG, "s", users=None, items=pa.array(["i"]))
    assert checked.rows[USER_ID].to_pylist() == ["1", "2"]
    rows = draft("interactions", NAMES, [("1.0", "i", "4", "1"), ("1.1", "i", "4", "1")])
    checked = check_interactions(rows, CONFIG, "s", users=None, items=pa.array(["i"]))
    assert checked.rows[USER_ID].to_pylist() == ["1.0", "1.1"]


@pytest.mark.parametrize("char", ["x", "é", "🎬"])
def test_ids_are_as_long_as_requests_may_name_them(char: str) -> None:
    for size, fits in ((MAX_ID_CHARS, True), (MAX_ID_CHARS + 1, False)):
        name = char * size
        items = check_items(draft("items", (ITEM_ID, TITLE), [(name, "A"), ("i", "B")]))
        assert len(items.rejected) == 1 - fits
        request = {"user_id": name, "candidates": [name]}
        if fits:
            ScoreRequest.model_validate(request)
        else:
            assert items.reasons() == {f"item_id has more than {MAX_ID_CHARS} characters": 1}
            with pytest.raises(ValidationError):
                ScoreRequest.model_validate(request)


def test_of_duplicates_the_first_usable_row_stays() -> None:
    checked = check([("u", "i", "9", "1000"), GOOD, ("u", "i", "2", "1000"), GOOD])
    assert checked.rows[RATING].to_pylist() == [4.0]
    assert [r.location for r in checked.rejected] == ["f.csv:2", "f.csv:4", "f.csv:5"]


def test_the_same_item_at_another_time_is_no_duplicate() -> None:
    assert len(check([GOOD, ("u", "i", "4", "1001"), ("v", "i", "4", "1000")]).rows) == 3


def test_milliseconds_are_fine_where_the_configuration_says_so() -> None:
    checked = check([("u", "i", "4", "978300760000")], unit="ms")
    assert checked.rows[TIMESTAMP].to_pylist() == [978300760]


def test_duplicate_and_nameless_items_and_users() -> None:
    items = check_items(
        draft("items", (ITEM_ID, TITLE), [("1", ""), ("1", "A"), ("1", "B"), ("", "C")])
    )
    assert items.rows[TITLE].to_pylist() == ["A"]
    assert items.rows[ATTRIBUTES].null_count == 1
    assert [r.reason for r in items.rejected] == [
        "title is missing",
        "duplicate item_id",
        "item_id is missing",
    ]
    users = check_users(draft("users", (USER_ID,), [("1",), ("2",), ("1",)]))
    assert users.rows[USER_ID].to_pylist() == ["1", "2"]
    assert users.reasons() == {"duplicate user_id": 1}


CELL = st.sampled_from(["u", "i", "j", "v", "", "4", "9", "1000", "978300760000", "x", " "])


@given(rows=st.lists(st.tuples(CELL, CELL, CELL, CELL), min_size=1, max_size=30))
def test_every_row_goes_out_or_into_quarantine(rows: list[tuple[str | None, ...]]) -> None:
    checked = check(rows)
    assert len(checked.rows) + len(checked.rejected) == checked.rows_in == len(rows)
    assert sum(checked.reasons().values()) == len(checked.rejected)
    keys = checked.rows.select([USER_ID, ITEM_ID, TIMESTAMP]).to_pylist()
    assert len({tuple(key.values()) for key in keys}) == len(keys)
    assert not any(column.null_count for column in checked.rows.columns)


def test_the_first_reason_of_a_row_stands() -> None:
    rejections = Rejections(3)
    rejections.reject(np.array([True, False, False]), "first")
    rejections.reject(np.array([True, True, False]), "second")
    assert rejections.accepted.tolist() == [False, False, True]
    assert rejections.reasons(np.array([0, 1])) == ["first", "second"]


def test_too_many_rows_stop_the_run_and_are_kept(workspace: Workspace) -> None:
    tables: dict[TableKind, CheckedTable] = {
        "interactions": check([GOOD, *[("w", "i", "4", "1")] * 3])
    }
    with pytest.raises(DataError) as caught:
        enforce_threshold(workspace, tables, allowing(0.5))
    error = caught.value
    assert error.exit_code == 3
    assert "3 of 4 rows of interactions are unusable (75.0%, allowed 50.0%)" in error.what
    assert "3 x unknown user_id" in error.what
    assert error.where == "first at f.csv:3"
    assert workspace.path(FAILED_QUARANTINE.path) in error.todo
    kept = workspace.read_table(FAILED_QUARANTINE)
    assert kept.select([TABLE, LOCATION, REASON]).to_pylist()[0] == {
        TABLE: "interactions",
        LOCATION: "f.csv:3",
        REASON: "unknown user_id",
    }
    assert kept[RAW][0].as_py().startswith('{"user_id": "w"')


def test_a_reason_may_have_a_share_of_its_own(workspace: Workspace) -> None:
    good: list[tuple[str | None, ...]] = [("u", "i", "4", str(n)) for n in range(8)]
    tables: dict[TableKind, CheckedTable] = {
        "interactions": check([*good, ("w", "i", "4", "1"), ("u", "i", "9", "1")])
    }
    shares = {"unknown user_id": 0.1}
    enforce_threshold(workspace, tables, allowing(0.1, **shares))
    for config, problem in (
        (allowing(0.0, **shares), "2 of 10 rows of interactions are unusable"),
        (allowing(0.1), "2 of 10 rows"),
        (allowing(1.0, **{"unknown user_id": 0.05}), "as 'unknown user_id' .10.0%, allowed 5.0%"),
    ):
        with pytest.raises(DataError, match=problem):
            enforce_threshold(workspace, tables, config)
    require_reasons(tables, shares)
    with pytest.raises(ConfigError, match="nearest is 'unknown user_id'"):
        require_reasons(tables, ["unknown user"])


def test_a_share_at_the_threshold_is_allowed(workspace: Workspace) -> None:
    tables: dict[TableKind, CheckedTable] = {"interactions": check([GOOD, ("w", "i", "4", "1")])}
    enforce_threshold(workspace, tables, allowing(0.5))
    assert not workspace.has_table(FAILED_QUARANTINE)


@pytest.mark.parametrize("rejected", [(), (RejectedRow("f.csv:2", "bad", ""),)])
def test_a_table_without_a_usable_row_is_an_error_at_any_threshold(
    workspace: Workspace, rejected: tuple[RejectedRow, ...]
) -> None:
    empty = CheckedTable("items", pa.table({ITEM_ID: []}), rejected, len(rejected), ("f.csv",))
    with pytest.raises(DataError, match=r"f\.csv"):
        enforce_threshold(workspace, {"items": empty}, allowing(1.0))


def test_undecodable_bytes_reach_the_quarantine_with_their_content(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes(b"item_id,title\n1,A\n2,\xff\n")
    raw = read_delimited("items", [tmp_path / "f.csv"], TextFormat(), [ITEM_ID, TITLE])
    columns = {name: raw.rows.column(name) for name in (ITEM_ID, TITLE)}
    checked = check_items(MappedTable(raw, columns))
    assert checked.rows_in == 2
    assert checked.rejected[0].raw == "2,\\xff"
