"""Reading text files: exact line numbers, and one bad line costs one line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reki_ray.data.delimited import read_delimited
from reki_ray.data.dialects import TextFormat
from reki_ray.data.raw_tables import RawTable
from reki_ray.errors import DataError

HEADER = ("a", "b")


def read(path: Path, content: bytes, layout: TextFormat | None = None) -> RawTable:
    path.write_bytes(content)
    return read_delimited("items", [path], layout or TextFormat(), HEADER)


def found(table: RawTable) -> list[tuple[str, str]]:
    return [(r.location.rpartition("/")[2], r.reason) for r in table.rejected]


def test_rows_know_their_line_also_after_quoted_line_breaks(tmp_path: Path) -> None:
    table = read(tmp_path / "f.csv", b'a,b\n1,"x\ny"\n\n2,z\n')
    assert table.rows.to_pydict() == {"a": ["1", "2"], "b": ["x\ny", "z"]}
    assert list(table.number_of) == [2, 5]
    assert table.location(1) == f"{tmp_path / 'f.csv'}:5"


def test_a_wrong_number_of_fields_costs_its_own_line(tmp_path: Path) -> None:
    table = read(tmp_path / "f.csv", b"a,b\n1,x\n2\n3,y,z\n4,w\n")
    assert table.rows.column("a").to_pylist() == ["1", "4"]
    assert found(table) == [
        ("f.csv:3", "wrong number of fields"),
        ("f.csv:4", "wrong number of fields"),
    ]
    assert table.rejected[1].raw == "3,y,z"


@pytest.mark.parametrize("tail", [b'4,"fine"\n', b""])
def test_a_stray_quote_does_not_swallow_the_lines_after_it(tmp_path: Path, tail: bytes) -> None:
    table = read(tmp_path / "f.csv", b'a,b\n1,x\n2,"bad\n3,y\n' + tail)
    assert table.rows.column("a").to_pylist() == ["1", "3", "4"][: 3 if tail else 2]
    assert found(table) == [("f.csv:3", "broken quotes")]


def test_undecodable_bytes_put_their_row_aside_with_readable_content(tmp_path: Path) -> None:
    table = read(tmp_path / "f.csv", "a,b\n1,é\n2,".encode() + b"\xe9\n3,z\n")
    assert table.rows.to_pydict() == {"a": ["1", "3"], "b": ["é", "z"]}
    assert found(table) == [("f.csv:3", "wrong encoding")]
    assert table.rejected[0].raw == "2,\\xe9"


def test_a_byte_order_mark_and_windows_line_ends_are_no_content(tmp_path: Path) -> None:
    table = read(tmp_path / "f.csv", b"\xef\xbb\xbfa,b\r\n1,x\r\n")
    assert table.rows.to_pydict() == {"a": ["1"], "b": ["x"]}


def test_long_separators_and_gzip(tmp_path: Path) -> None:
    layout = TextFormat("::", quote=None, encoding="latin-1", header=HEADER)
    content = gzip.compress(b'1::Mis\xe9rables "Les"\n2::x::y\n')
    table = read(tmp_path / "f.dat.gz", content, layout)
    assert table.rows.to_pydict() == {"a": ["1"], "b": ['Misérables "Les"']}
    assert found(table) == [("f.dat.gz:2", "wrong number of fields")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.csv", b"", "the file is empty"),
        ("f.csv", b"a,c\n1,2\n", "columns are missing: b; the file has a, c"),
        ("f.csv", b"a,b,b\n1,2,3\n", "repeated: b"),
        ("f.csv", b"\xff\xfea\x00,\x00b\x00", "header is not utf-8"),
        ("f.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 999)[:-12], "cannot be read"),
        ("f.csv.gz", b"no gzip", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name, content)
    assert name in caught.value.where


def test_files_may_order_their_columns_differently(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("a,b\n1,x\n")
    (tmp_path / "2.csv").write_text("b,a,c\ny,2,extra\n")
    paths = [tmp_path / "1.csv", tmp_path / "2.csv"]
    table = read_delimited("items", paths, TextFormat(), HEADER)
    assert table.rows.to_pydict() == {"a": ["1", "2"], "b": ["x", "y"], "c": [None, "extra"]}
    assert table.location(1).endswith("2.csv:2")


def test_a_cell_may_be_longer_than_csv_s_own_limit(tmp_path: Path) -> None:
    cell = "x, " * 100_000
    table = read(tmp_path / "f.csv", f'a,b\n1,"{cell}"\n2,z\n'.encode())
    assert table.rows.to_pydict() == {"a": ["1", "2"], "b": [cell, "z"]}


def test_an_open_quote_at_the_end_of_a_long_file_costs_its_own_line(tmp_path: Path) -> None:
    lines = "".join(f"{number},x\n" for number in range(50_000))
    table = read(tmp_path / "f.csv", f'a,b\n0,"open\n{lines}'.encode())
    assert len(table.rows) == 50_000
    assert found(table) == [("f.csv:2", "broken quotes")]


def test_empty_parts_are_left_out_and_others_must_have_the_columns(tmp_path: Path) -> None:
    contents = ["a,b\n1,x\n", "", "c\n", "b,a\ny,2\n"]
    paths = [tmp_path / f"{number}.csv" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content)
    table = read_delimited("items", paths, TextFormat(), HEADER)
    assert table.rows["a"].to_pylist() == ["1", "2"]
    assert table.location(1) == f"{paths[3]}:2"
    paths[2].write_text("c\n5\n")
    with pytest.raises(DataError, match="columns are missing: a, b"):
        read_delimited("items", paths, TextFormat(), HEADER)
    with pytest.raises(DataError, match="the file is empty"):
        read_delimited("items", paths[1:2], TextFormat(), HEADER)


def test_messages_hold_no_control_characters_whatever_the_file_holds(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path / "f.csv", b"a\x1b[31m\x07\xe2\x80\xae\x9b,c\n1,2\n")
    assert "\\x1b[31m\\x07\\u202e" in str(caught.value)
    assert str(caught.value).isprintable()


@given(content=st.binary(max_size=200))
def test_no_content_breaks_the_reader_or_loses_a_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "f.csv"
    table = read(path, b"a,b\n" + content)
    marked = [int(r.location.rpartition(":")[2]) for r in table.rejected]
    places = sorted([*table.number_of, *marked])
    assert len(places) == len(set(places)) == table.rows_in
