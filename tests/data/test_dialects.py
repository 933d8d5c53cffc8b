"""Text files in other dialects are read as described, and say what they look like."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from reki_ray.config import Dialect, FileSource
from reki_ray.data.delimited import read_delimited
from reki_ray.data.parquet import read_parquet
from reki_ray.data.raw_tables import RawTable
from reki_ray.data.sources.files import text_format
from reki_ray.errors import DataError, RekiError

FRAME = pd.DataFrame({"id": ["1", "2"], "title": ['The "best", of', "Zürich; Süd"], "n": ["4", ""]})
CONTENT = "id,title\n1,Zürich\n2,B\n".encode()


def read(path: Path, required: tuple[str, ...] = ("id", "title"), **dialect: Any) -> RawTable:
    return read_delimited("items", [path], text_format(Dialect(**dialect)), required)


@pytest.mark.parametrize(
    ("written", "dialect"),
    [
        ({"sep": ";"}, {"separator": ";"}),
        ({"sep": "\t"}, {"separator": "\t"}),
        ({"sep": "\x01"}, {"separator": "\x01"}),
        ({"quotechar": "'"}, {"quote": "'"}),
        ({"doublequote": False, "escapechar": "\\"}, {"escape": "\\"}),
        ({"encoding": "latin-1"}, {"encoding": "latin-1"}),
        ({"encoding": "utf-16"}, {"encoding": "utf-16"}),
        ({"encoding": "utf-16-le"}, {"encoding": "utf-16-le"}),
        ({"encoding": "utf-8-sig"}, {}),
        ({"na_rep": "NULL"}, {"null_words": ["NULL"]}),
        (
            {"sep": "\t", "quoting": 3, "escapechar": "\\"},
            {"separator": "\t", "quote": None, "escape": "\\"},
        ),
        ({"lineterminator": "\r\n"}, {}),
    ],
)
def test_what_pandas_writes_comes_back(
    tmp_path: Path, written: dict[str, Any], dialect: dict[str, Any]
) -> None:
    template = FRAME.astype(object)
    if "na_rep" in written:
        template = template.where(template != "", None)
    template.to_csv(tmp_path / "f.csv", index=False, **written)
    found = read(tmp_path / "f.csv", **dialect)
    assert found.rejected == ()
    assert found.rows.to_pylist() == template.to_dict("records")


def test_fields_without_quotes_and_long_separators(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text('id::title\n1::5" pipe\n2::a:b\n')
    rows = read(tmp_path / "f.csv", separator="::", quote=None).rows
    assert rows["title"].to_pylist() == ['5" pipe', "a:b"]


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("id;title\n1;a\n", 'separator: ";"'),
        ("id\ttitle\n1\ta\n", 'separator: "\\t"'),
        ("'id','title'\n'1','a'\n", 'quote: "\'"'),
        ("id::title\n1::a\n", 'separator: "::" and data.source.dialect.quote: null'),
        ("uid;name\n1;a\n", 'separator: ";"'),
        ("id,title\n1,a\n".encode("utf-16"), "encoding: utf-16."),
        ("id,title\n1,a\n".encode("utf-16-le"), "encoding: utf-16-le"),
        ("id,titel,Größe\n".encode("latin-1"), "encoding, as latin-1"),
        ("ид,имя\n".encode("utf-16-le"), "encoding: utf-16-le"),
        ("id,title\n1,a\n".encode("utf-16-be"), "encoding: utf-16-be"),
        ("id,title\n1,a\n".encode("utf-32"), "encoding: utf-32."),
        ("id,title\n1,a\n".encode("utf-32-le"), "encoding: utf-32-le"),
        ("id,title\n1,a\n".encode("utf-32-be"), "encoding: utf-32-be"),
        (b"\x7fELF\x02\x01\0\0\x03\0>\0\n", "a binary file"),
        (b"MZ\x90\0\x03\0\0\0\xff\xff\0\n", "a binary file"),
        ('{"id": 1, "title": "a"}\n', "It looks like JSON"),
        ('[\n{"id": 1}\n]\n', "It looks like JSON"),
        ("<!DOCTYPE html>\n", "HTML"),
        ("id title\n1 a\n", 'separator: " "'),
        ("sep=;\nid;title\n1;a\n", 'skip_lines: 1 and data.source.dialect.separator: ";"'),
        ("# made by x\n#\nid,title\n1,a\n", "skip_lines: 2."),
        ("1,a,5\n2,b,4\n", "header: false; the columns then are named '1' to '3'"),
    ],
)
def test_a_header_says_what_it_looks_like(tmp_path: Path, content: str | bytes, hint: str) -> None:
    raw = content.encode() if isinstance(content, str) else content
    (tmp_path / "f.csv").write_bytes(raw + raw[:0])
    with pytest.raises(DataError) as caught:
        read(tmp_path / "f.csv")
    assert hint in caught.value.todo


@pytest.mark.parametrize(
    "content",
    [
        b"id\ttitle\n1\ta\n",
        b"# by x\nid,title\n1,a\n",
        *("id,title\n1,a\n".encode(wide) for wide in ("utf-32-le", "utf-16-be", "utf-16")),
    ],
)
def test_what_a_header_looks_like_can_be_set(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "f.csv")
    setting = caught.value.todo.partition("set data.source.dialect.")[2].partition(".")[0]
    assert read(tmp_path / "f.csv", **yaml.safe_load(setting)).rows["title"].to_pylist() == ["a"]


@pytest.mark.parametrize(
    "dialect", [{}, {"separator": "\t", "quote": None}, {"encoding": "utf-16"}]
)
@pytest.mark.parametrize("skip", [0, 2])
def test_files_without_a_header_name_columns_by_their_numbers(
    tmp_path: Path, dialect: dict[str, Any], skip: int
) -> None:
    path, encoding = tmp_path / "f.csv", dialect.get("encoding", "utf-8")
    template = pd.DataFrame({1: ["7", "8"], 2: ["a", "b"], 3: ["x\ny" * (not dialect), "4"]})
    with path.open("w", encoding=encoding, newline="") as file:
        file.write("# of no use\n" * skip)
        template.to_csv(file, index=False, header=False, sep=dialect.get("separator", ","))
    found = read(path, ("1", "3"), header=False, skip_lines=skip, **dialect)
    assert found.rows.to_pylist() == template.rename(columns=str).to_dict("records")
    assert found.location(0) == f"{path}:{skip + 1}"
    with pytest.raises(DataError, match="columns are missing: 4"):
        read(path, ("4",), header=False, skip_lines=skip, **dialect)


def test_lines_before_the_header_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("sep=;\n\nid;title\n1;a\n2;b;c\n", encoding="utf-8-sig")
    found = read(tmp_path / "f.csv", separator=";", skip_lines=2)
    assert found.rows.to_pylist() == [{"id": "1", "title": "a"}]
    assert (found.location(0)[-2:], found.rejected[0].location[-2:]) == (":4", ":5")
    with pytest.raises(DataError, match="is empty"):
        read(tmp_path / "f.csv", separator=";", skip_lines=9)


@pytest.mark.parametrize(
    ("rows", "reason", "hint"),
    [
        ('1,"a \\"b\\" c"\n', "broken quotes", 'escape: "\\\\"'),
        ('1,"a" b\n', "broken quotes", "quote: null"),
        ("1;a\n2;b\n", "wrong number of fields", 'separator: ";"'),
        ("1,\udce9\n", "wrong encoding", "latin-1"),
    ],
)
def test_rejected_rows_say_what_they_look_like(
    tmp_path: Path, rows: str, reason: str, hint: str
) -> None:
    (tmp_path / "f.csv").write_text("id,title\n" + rows, errors="surrogateescape")
    found = read(tmp_path / "f.csv")
    assert {one.reason for one in found.rejected} == {reason}
    assert hint in found.hints[reason]


def zipped(content: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("folder/inner.csv", content)
        archive.writestr("__MACOSX/folder/._inner.csv", "of the archiver's own")
    return target.getvalue()


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
    ".lz4": lambda content: pa.compress(content, "lz4", asbytes=True),
    ".zip": zipped,
}


@pytest.mark.parametrize("ending", COMPRESSED)
@pytest.mark.parametrize("honest", [True, False])
def test_compressed_files_are_read_whatever_their_names(
    tmp_path: Path, ending: str, honest: bool
) -> None:
    path = tmp_path / ("f.csv" + ending * honest)
    path.write_bytes(COMPRESSED[ending](CONTENT))
    assert read(path).rows["title"].to_pylist() == ["Zürich", "B"]


@pytest.mark.parametrize("ending", COMPRESSED)
def test_half_a_compressed_file_is_damaged(tmp_path: Path, ending: str) -> None:
    content = "id,title\n" + "".join(f"{n},{hash(n) % 9973}\n" for n in range(5000))
    packed = COMPRESSED[ending](content.encode())
    (tmp_path / "f.csv").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "f.csv")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"PAR1....", "a Parquet file"),
        (b"ARROW1\0\0", "Arrow IPC"),
        (b"%PDF-1.7", "PDF"),
        (b"SQLite format 3\0", "SQLite"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "f.csv").write_bytes(content)
    with pytest.raises(DataError, match=kind):
        read(tmp_path / "f.csv")
    if not content.startswith(b"PAR1"):
        with pytest.raises(DataError, match=kind):
            read_parquet("items", [tmp_path / "f.csv"], ["id"])


def test_a_workbook_and_an_archive_of_many_files_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "f.csv", "w") as archive:
        archive.writestr("a.csv", "x")
        archive.writestr("b.csv", "x")
    with pytest.raises(DataError, match="holds 2 files"):
        read(tmp_path / "f.csv")
    with zipfile.ZipFile(tmp_path / "f.csv", "a") as archive:
        archive.writestr("[Content_Types].xml", "x")
    with pytest.raises(DataError, match="Excel"):
        read(tmp_path / "f.csv")


@pytest.mark.parametrize(
    "dialect",
    [
        {"separator": "::"},
        {"separator": '"'},
        {"quote": ",", "separator": ","},
        {"separator": "\n"},
        {"quote": "''"},
        {"encoding": "klingon"},
        {"encoding": "base64"},
        {"escape": "\\", "null_words": ["\\N"]},
        {"decimal": ";"},
    ],
)
def test_dialects_that_cannot_be_are_refused(dialect: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Dialect(**dialect)


def test_parquet_takes_a_decimal_mark_and_no_separator() -> None:
    places = {"kind": "parquet", "interactions": "a", "items": "b"}
    FileSource.model_validate({**places, "dialect": {"decimal": ","}})
    with pytest.raises(ValidationError, match="dialect describes files of kind csv"):
        FileSource.model_validate({**places, "dialect": {"separator": ";"}})


MARKS = st.sampled_from([",", ";", "\t", '"', "'", "\\", " ", "é", "\0"])


@given(
    content=st.binary(max_size=120),
    separator=MARKS,
    quote=st.none() | MARKS,
    escape=st.none() | MARKS,
    encoding=st.sampled_from(["utf-8", "latin-1", "utf-16", "utf-7", "shift_jis", "utf-32-be"]),
    head=st.sampled_from([b"", b"\x1f\x8b", b"BZh9", b"PK\x03\x04", b"(\xb5/\xfd", b"\xfd7zXZ\0"]),
)
def test_any_file_in_any_dialect_is_read_or_refused(  # one argument a mark
    tmp_path_factory: pytest.TempPathFactory,
    content: bytes,
    separator: str,
    quote: str | None,
    escape: str | None,
    encoding: str,
    head: bytes,
) -> None:
    path = tmp_path_factory.mktemp("any") / "f.csv"
    header = f"a{separator}b\n".encode(encoding, "replace")
    path.write_bytes(head + content if head else header + content)
    try:
        found = read(
            path, ("a", "b"), separator=separator, quote=quote, escape=escape, encoding=encoding
        )
    except (RekiError, ValidationError):
        return
    places = [*found.number_of, *(int(r.location.rpartition(":")[2]) for r in found.rejected)]
    assert len(set(places)) == len(places) == found.rows_in
    "".join(str(cell) for column in found.rows.to_pydict().values() for cell in column).encode()
