"""Text files with separated fields, read so that one bad line costs one line.

Python's csv module instead of Arrow's reader: line numbers stay exact under quoting,
every row is judged by itself, and a stray quote cannot swallow the lines after it. A million
rows take seconds, in batches that bound the memory.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa

from reki_ray.data.raw import (
    WRONG_ENCODING,
    Kind,
    RawTable,
    Rejected,
    require_columns,
    unreadable,
)
from reki_ray.errors import DataError

_BATCH = 65_536
_FIELDS = "wrong number of fields"
_QUOTES = "broken quotes"


@dataclass(frozen=True)
class TextFormat:
    """How a text file is laid out.

    Args:
        separator: Between fields; more than one character only where `quoted` is False.
        quoted: Whether fields may stand in double quotes (CSV).
        encoding: Character encoding; bytes outside it put their row into quarantine.
        header: Names of the columns; None takes them from the first line.
    """

    separator: str = ","
    quoted: bool = True
    encoding: str = "utf-8-sig"
    header: tuple[str, ...] | None = None


class _Record(NamedTuple):
    """One row: its fields, or the reason why there are none."""

    number: int
    fields: list[str]
    reason: str = ""
    raw: str = ""


def read_delimited(
    kind: Kind, paths: Sequence[Path], layout: TextFormat, required: Sequence[str]
) -> RawTable:
    """Read text files; names ending in .gz are decompressed.

    Args:
        kind: Which table they hold.
        paths: Files, each with its own header unless the layout gives one.
        layout: Separator, quoting, encoding.
        required: Columns that each file must have.

    Returns:
        All columns as strings.

    Raises:
        DataError: A file is missing, empty or damaged, or lacks a column.
    """
    tables: list[pa.Table] = []
    numbers: list[np.ndarray] = []
    files: list[np.ndarray] = []
    rejected: list[Rejected] = []
    for index, path in enumerate(paths):
        rows, lines, bad = _read_file(path, layout, required)
        tables.append(rows)
        numbers.append(lines)
        files.append(np.full(len(lines), index, dtype=np.int32))
        rejected.extend(bad)
    return RawTable(
        kind=kind,
        rows=pa.concat_tables(tables, promote_options="default"),
        files=tuple(str(path) for path in paths),
        file_of=np.concatenate(files),
        number_of=np.concatenate(numbers),
        mark=":",
        rejected=tuple(rejected),
    )


def _read_file(
    path: Path, layout: TextFormat, required: Sequence[str]
) -> tuple[pa.Table, np.ndarray, list[Rejected]]:
    batches: list[pa.Table] = []
    numbers: list[int] = []
    rejected: list[Rejected] = []
    try:
        with _open(path, layout.encoding) as lines:
            header, first = _header(path, lines, layout)
            require_columns(header, required, where=str(path))
            records = _records(lines, layout, width=len(header), number=first)
            while batch := list(islice(records, _BATCH)):
                good, bad = _divide(batch, layout.separator)
                batches.append(_batch_table(good, header))
                numbers.extend(record.number for record in good)
                rejected.extend(
                    Rejected(f"{path}:{record.number}", record.reason, _lossy(record.raw))
                    for record in bad
                )
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    table = pa.concat_tables(batches) if batches else _batch_table([], header)
    return table, np.array(numbers, dtype=np.int64), rejected


def _open(path: Path, encoding: str) -> IO[str]:
    # surrogateescape keeps undecodable bytes until their row is judged; newline="" is csv's rule.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, errors="surrogateescape", newline="")
    return path.open(encoding=encoding, errors="surrogateescape", newline="")


def _header(path: Path, lines: IO[str], layout: TextFormat) -> tuple[list[str], int]:
    """Names of the columns and the number of the first line after them."""
    if layout.header is not None:
        return list(layout.header), 1
    line = lines.readline()
    if not line.strip():
        raise DataError(
            "the file is empty", where=str(path), todo="Write a header line and rows into it."
        )
    if _lossy(line) != line:
        raise DataError(
            f"the header is not {layout.encoding.removesuffix('-sig')}: {_lossy(line).strip()}",
            where=f"{path}:1",
            todo="Convert the file to UTF-8.",
        )
    line = line.rstrip("\r\n")
    fields = next(csv.reader([line], delimiter=layout.separator)) if layout.quoted else None
    return fields or line.split(layout.separator), 2


def _records(
    lines: Iterator[str], layout: TextFormat, *, width: int, number: int
) -> Iterator[_Record]:
    if layout.quoted:
        yield from _quoted_records(lines, layout.separator, width, number)
        return
    for at, line in enumerate(lines, start=number):
        text = line.rstrip("\r\n")
        if text:
            fields = text.split(layout.separator)
            wrong = len(fields) != width
            yield _Record(at, [], _FIELDS, text) if wrong else _Record(at, fields)


class _Tape:
    """Lines of a file, of which those of the current record are remembered."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.current: list[str] = []

    def __iter__(self) -> _Tape:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.current.append(line)
        return line


def _quoted_records(
    lines: Iterator[str], separator: str, width: int, number: int
) -> Iterator[_Record]:
    tape = _Tape(lines)
    reader = csv.reader(tape, delimiter=separator, strict=True)
    while True:
        tape.current.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            fields = None
        if fields is not None and len(fields) == width:
            yield _Record(number, fields)
        elif fields != []:  # csv gives an empty list for a blank line
            yield from _line_by_line(tape.current, separator, width, number)
        number += len(tape.current)


def _line_by_line(
    lines: Sequence[str], separator: str, width: int, number: int
) -> Iterator[_Record]:
    """Judge each line of a broken record alone: a stray quote must cost its own line only."""
    for at, line in enumerate(lines, start=number):
        text = line.rstrip("\r\n")
        if not text:
            continue
        try:
            fields = next(csv.reader([text], delimiter=separator, strict=True))
        except csv.Error:
            yield _Record(at, [], _QUOTES, text)
            continue
        wrong = len(fields) != width
        yield _Record(at, [], _FIELDS, text) if wrong else _Record(at, fields)


def _divide(batch: list[_Record], separator: str) -> tuple[list[_Record], list[_Record]]:
    """Records that are rows, and those that are none or not in the file's encoding."""
    good = [record for record in batch if not record.reason]
    bad = [record for record in batch if record.reason]
    try:  # one pass in C for the usual case: surrogates stand for undecodable bytes
        "".join([field for record in good for field in record.fields]).encode()
    except UnicodeEncodeError:
        texts = [separator.join(record.fields) for record in good]
        bad += [
            _Record(record.number, [], WRONG_ENCODING, text)
            for record, text in zip(good, texts, strict=True)
            if _lossy(text) != text
        ]
        good = [r for r, text in zip(good, texts, strict=True) if _lossy(text) == text]
    return good, sorted(bad, key=lambda record: record.number)


def _lossy(text: str) -> str:
    """Text whose undecodable bytes are written as backslash escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _batch_table(records: Sequence[_Record], header: Sequence[str]) -> pa.Table:
    columns = list(zip(*(record.fields for record in records), strict=True))
    if not columns:
        columns = [()] * len(header)
    arrays = [pa.array(column, pa.string()) for column in columns]
    return pa.Table.from_arrays(arrays, names=list(header))
