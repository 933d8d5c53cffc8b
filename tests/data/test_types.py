"""Whatever type a column has: its cells convert, are masked, or the column is refused."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reki_ray.config.ingest import EPOCH_UNITS
from reki_ray.data.conversion import plain, to_id, to_number, to_text
from reki_ray.data.list_cells import to_lists
from reki_ray.data.raw_tables import RawTable, RejectedRow, quarantine_table
from reki_ray.data.times import to_times
from reki_ray.errors import DataError

UNITS = (*EPOCH_UNITS, "iso", "%Y-%m-%d", "%d.%m.%Y %H:%M:%S")


def integers(bits: int, *, signed: bool) -> st.SearchStrategy[int]:
    low = -(2 ** (bits - 1)) if signed else 0
    return st.integers(low, low + 2**bits - 1)


TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", " ", "1.0", "1e400", "-5", "1600000000", "1600000000123456789", "nan"]),
    st.sampled_from(["2020-09-13 12:26:40 UTC", "9999-12-31", "0001-01-01T00:00:00-23:59"]),
    st.sampled_from(["09.13.2020", '["a", ["b"]]', "['a' 'b'", "[a, b]", "{'x': 1}", "(1,)"]),
)
BYTES = st.one_of(st.binary(max_size=20), st.binary(min_size=16, max_size=16))
FLOATS = st.one_of(st.floats(), st.sampled_from([1.0, 1.6e9, 1.6e18, -0.0, 5e-324]))


def of_type(kind: pa.DataType, values: st.SearchStrategy[Any]) -> st.SearchStrategy[pa.Array]:
    cells = st.lists(st.none() | values, max_size=6)
    return cells.map(lambda found: pa.array(found, kind))


def viewed(kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
    """Values of a type that is 64 bits whatever they say."""
    return of_type(pa.int64(), integers(64, signed=True)).map(lambda array: array.view(kind))


def broken_text(cells: list[bytes | None]) -> pa.Array:
    """Strings of any bytes, as Parquet lets them pass."""
    return pa.array(cells, pa.binary()).view(pa.string())


SCALARS: dict[str, st.SearchStrategy[pa.Array]] = {
    "null": st.integers(0, 3).map(pa.nulls),
    "bool": of_type(pa.bool_(), st.booleans()),
    **{f"int{b}": of_type(getattr(pa, f"int{b}")(), integers(b, signed=True)) for b in (8, 32, 64)},
    **{f"uint{b}": of_type(getattr(pa, f"uint{b}")(), integers(b, signed=False)) for b in (8, 64)},
    "float16": st.lists(st.floats(width=16), max_size=5).map(
        lambda cells: pa.array(np.array(cells, np.float16))
    ),
    "float32": of_type(pa.float32(), st.floats(width=32)),
    "float64": of_type(pa.float64(), FLOATS),
    "decimal64": of_type(pa.decimal64(10, 2), st.decimals(-(10**7), 10**7, places=2)),
    "decimal128": of_type(pa.decimal128(38, 0), integers(120, signed=True).map(Decimal)),
    "decimal256": of_type(pa.decimal256(70, 9), st.decimals(-(10**20), 10**20, places=9)),
    "string": of_type(pa.string(), TEXTS),
    "large_string": of_type(pa.large_string(), TEXTS),
    "string_view": of_type(pa.string_view(), TEXTS),
    "broken": st.lists(st.none() | BYTES, max_size=6).map(broken_text),
    "json": of_type(pa.string(), TEXTS).map(pa.json_().wrap_array),
    "binary": of_type(pa.binary(), BYTES),
    "large_binary": of_type(pa.large_binary(), BYTES),
    "binary_view": of_type(pa.binary_view(), BYTES),
    "fixed8": of_type(pa.binary(8), st.binary(min_size=8, max_size=8)),
    "fixed16": of_type(pa.binary(16), st.binary(min_size=16, max_size=16)),
    "uuid": of_type(pa.binary(16), st.binary(min_size=16, max_size=16)).map(pa.uuid().wrap_array),
    "date32": of_type(pa.int32(), integers(32, signed=True)).map(lambda a: a.view(pa.date32())),
    "date64": viewed(pa.date64()),
    "time32": of_type(pa.time32("s"), st.times()),
    "time64": of_type(pa.time64("us"), st.times()),
    "duration": viewed(pa.duration("ns")),
    "interval": of_type(pa.month_day_nano_interval(), st.just((1, 2, 3))),
    **{
        f"timestamp[{unit}, {zone}]": viewed(pa.timestamp(unit, zone))
        for unit in EPOCH_UNITS
        for zone in (None, "UTC", "Europe/Nowhere")
    },
}


def lists_of(values: pa.Array) -> list[pa.Array]:
    """Lists of two, and of none: of all list types."""
    pairs = values.slice(0, len(values) // 2 * 2)
    offsets = pa.array(range(0, len(pairs) + 1, 2), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pairs)
    kind = lists.type.value_type
    targets = (pa.large_list(kind), pa.list_view(kind), pa.large_list_view(kind), pa.list_(kind, 2))
    return [lists, *(lists.cast(target) for target in targets)]


def wrapped(values: pa.Array) -> list[pa.Array]:
    """Values as they are, and as the encodings and nestings have them that take their type."""
    found = [values, pa.StructArray.from_arrays([values], ["x"])]
    attempts: tuple[Callable[[], list[pa.Array]], ...] = (
        lambda: [values.dictionary_encode()],
        lambda: [pc.run_end_encode(values)],
        lambda: lists_of(values),
        lambda: lists_of(values.dictionary_encode()),
        lambda: lists_of(lists_of(values)[0]),
    )
    for attempt in attempts:
        try:
            found += attempt()
        except (pa.ArrowException, TypeError):  # Arrow has no such type
            continue
    return found


@settings(max_examples=300)
@given(values=st.one_of(*SCALARS.values()), unit=st.sampled_from(UNITS), data=st.data())
def test_every_column_converts_or_is_refused(
    values: pa.Array, unit: str, data: st.DataObject
) -> None:
    array = data.draw(st.sampled_from(wrapped(values)), label="array")
    cut = data.draw(st.integers(0, len(array)))
    column = pa.chunked_array([array.slice(0, cut), array.slice(cut)], array.type)
    size = len(column)
    for convert in (to_text, to_id):
        try:
            text, bad = convert(column, where="here")
        except DataError:
            continue
        text.validate(full=True)
        assert text.type == pa.string()
        assert len(text) == len(bad) == size
        assert "" not in text.to_pylist()
    for decimal in (".", ","):
        try:
            numbers, missing, wrong = to_number(column, where="here", decimal=decimal)
        except DataError:
            continue
        assert len(numbers) == len(missing) == len(wrong) == size
        assert np.isfinite(numbers[~missing & ~wrong]).all()
    try:
        times = to_times(column, unit, where="here")
    except DataError:
        pass
    else:
        assert {len(part) for part in vars(times).values()} == {size}
        assert times.seconds.dtype == np.int64
        assert ((times.nanoseconds >= 0) & (times.nanoseconds < 10**9)).all()
    for separator in ("|", ""):
        try:
            lists, bad, nested = to_lists(column, separator, where="here")
        except DataError:
            continue
        assert len(lists) == len(bad) == len(nested) == size
        assert all(value == value.strip() != "" for cell in lists for value in cell)


@given(values=st.one_of(*SCALARS.values()), data=st.data())
def test_every_cell_can_be_put_into_quarantine(values: pa.Array, data: st.DataObject) -> None:
    array = data.draw(st.sampled_from(wrapped(values)), label="array")
    numbers = np.arange(len(array))
    rows = pa.table({"x": plain(pa.chunked_array([array]), where="here")})
    raw = RawTable("items", rows, ("f",), numbers.astype(np.int32) * 0, numbers, "#")
    found = [json.loads(row) for row in raw.raw(numbers)]
    assert [list(row) for row in found] == [["x"]] * len(array)
    quarantine_table("items", [RejectedRow("f#1", "bad", text) for text in raw.raw(numbers)])


KEYS = [uuid.UUID(int=number) for number in (0, 1, 2**127 + 5)]


@given(
    values=st.one_of(*(SCALARS[kind] for kind in ("string", "string_view", "int64", "uint64"))),
    data=st.data(),
)
def test_encodings_do_not_change_values(values: pa.Array, data: st.DataObject) -> None:
    array = data.draw(st.sampled_from(wrapped(values)), label="array")
    column = pa.chunked_array([array.slice(data.draw(st.integers(0, len(array))))], array.type)
    cells = column.to_pylist()
    inner = [value for cell in cells if isinstance(cell, list) for value in cell]
    if pa.types.is_struct(array.type) or any(isinstance(value, list) for value in inner):
        return
    if inner:
        expected = [
            {str(value).strip() for value in cell or () if value is not None} for cell in cells
        ]
        found = [set(map(str.strip, cell)) for cell in to_lists(column, "|", where="here")[0]]
        assert [cell - {""} for cell in found] == [cell - {""} for cell in expected]
        return
    if any(isinstance(cell, list) for cell in cells):
        return
    text = to_text(column, where="here")[0].to_pylist()
    assert [(cell or "").strip() for cell in text] == [
        "" if cell is None else str(cell).strip() for cell in cells
    ]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([key.bytes for key in KEYS], pa.binary(16)).cast(pa.uuid()),
        pa.array([key.bytes for key in KEYS], pa.binary(16)),
        pa.array([key.bytes for key in KEYS], pa.large_binary()),
        pa.array([key.bytes for key in KEYS], pa.binary_view()),
        pa.array([str(key) for key in KEYS]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_uuids_are_the_same_whatever_their_type(column: pa.Array) -> None:
    ids, bad = to_id(pa.chunked_array([column]), where="here")
    assert ids.to_pylist() == [str(key) for key in KEYS]
    assert not bad.any()


def test_other_keys_of_bytes_are_ids_in_hex_and_text_stays_text() -> None:
    keys, _ = to_id(pa.chunked_array([pa.array([b"\xff\x00\x01", None, b"\x80"])]), where="here")
    assert keys.to_pylist() == ["ff0001", None, "80"]
    text, bad = to_id(pa.chunked_array([pa.array([b"u1", b"u2", b"u\xff"])]), where="here")
    assert text.to_pylist() == ["u1", "u2", None]
    assert bad.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("cells", "kind", "expected"),
    [
        ([Decimal("12345678901234567890"), Decimal(1)], pa.decimal128(38, 0), None),
        ([Decimal("1.00"), Decimal("2.00")], pa.decimal128(12, 2), ["1", "2"]),
        ([Decimal("1.50"), Decimal("2.00")], pa.decimal128(12, 2), ["1.50", "2.00"]),
        ([2**64 - 1], pa.uint64(), ["18446744073709551615"]),
    ],
)
def test_ids_that_are_numbers(
    cells: list[Any], kind: pa.DataType, expected: list[str] | None
) -> None:
    ids, _ = to_id(pa.chunked_array([pa.array(cells, kind)]), where="here")
    assert ids.to_pylist() == (expected or [str(cell) for cell in cells])


def test_dictionaries_may_differ_from_part_to_part() -> None:
    parts = [pa.array(values).dictionary_encode() for values in (["a", "b"], ["b", "c", None])]
    column = pa.chunked_array(parts)
    assert to_text(column, where="here")[0].to_pylist() == ["a", "b", "b", "c", None]
    numbers = pa.chunked_array(
        [part.dictionary_encode() for part in ([pa.array([5]), pa.array([7])])]
    )
    assert to_number(numbers, where="here")[0].tolist() == [5, 7]
