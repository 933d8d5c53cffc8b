"""Delimited text files, read so that a bad line costs only itself.

Python's csv module instead of Arrow's reader: line numbers stay exact under quoting, every row is
judged separately, and a stray quote cannot swallow the following lines. A million rows take
seconds, in batches that bound the memory.
"""

from __future__ import annotations

import contextlib
import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.data.compression import open_text
from reki_ray.data.dialects import (
    MOST_SKIPPED,
    TextFormat,
    encoding_hint,
    header_hint,
    rejection_hint,
)
from reki_ray.data.raw_tables import (
    BROKEN_QUOTES,
    WRONG_ENCODING,
    WRONG_FIELDS,
    EmptyFileError,
    FilePart,
    RawTable,
    RejectedRow,
    TableKind,
    read_files,
    reading_file,
    require_columns,
)
from reki_ray.errors import DataError, printable

_BATCH = 65_536
_LONGEST_CELL: Final = 2**27
"""Characters of a cell after which an open quote counts as stray."""
_LONGEST_HEADER: Final = 2**24
_SAMPLES: Final = 20
_SHOWN_CHARS: Final = 200


class _Record(NamedTuple):
    """A row: its fields, or the reason for its rejection."""

    number: int
    fields: list[str]
    reason: str = ""
    raw: str = ""


def read_delimited(
    kind: TableKind, paths: Sequence[Path], layout: TextFormat, required: Sequence[str]
) -> RawTable:
    """Read all columns of text files, compressed or not, as strings.

    Each file needs the required columns, and a header unless the layout has one.

    Raises:
        DataError: A file is missing or damaged, or lacks a column; or none has rows.
    """
    csv.field_size_limit(_LONGEST_CELL)
    raw = read_files(kind, paths, lambda path: _read_file(path, layout, required), ":")
    return replace(raw, hints=_hints(raw.rejected, layout, len(required)))


def read_header(path: Path, layout: TextFormat) -> list[str]:
    """Column names of a text file."""
    with _reading(path, layout) as lines:
        return _header(path, lines, layout, ())[0]


def _read_file(path: Path, layout: TextFormat, required: Sequence[str]) -> FilePart:
    batches: list[pa.Table] = []
    numbers: list[int] = []
    rejected: list[RejectedRow] = []
    place = printable(str(path))  # names need not be UTF-8
    with _reading(path, layout) as lines:
        header, first, rows = _header(path, lines, layout, required)
        judge = _csv_records if layout.is_csv else _line_by_line
        records = judge(rows, layout, len(header), first)
        while batch := list(islice(records, _BATCH)):
            good, bad = _divide(batch, layout.separator)
            batches.append(_batch_table(good, header, layout))
            numbers.extend(record.number for record in good)
            rejected.extend(
                RejectedRow(f"{place}:{record.number}", record.reason, _lossy(record.raw))
                for record in bad
            )
    table = pa.concat_tables(batches or [_batch_table([], header, layout)])
    return FilePart(table, np.array(numbers, dtype=np.int64), rejected)


@contextlib.contextmanager
def _reading(path: Path, layout: TextFormat) -> Iterator[IO[str]]:
    """Open a text file, converting its errors and those of decompression."""
    with reading_file(path):
        try:
            with open_text(path, layout.encoding) as lines:
                yield lines
        except UnicodeError as error:
            raise DataError(
                f"the file is not {layout.encoding}: {error}",
                where=str(path),
                todo="Set data.source.dialect.encoding to that of the file, or convert it to "
                "UTF-8.",
            ) from error


def _header(
    path: Path, lines: IO[str], layout: TextFormat, required: Sequence[str]
) -> tuple[list[str], int, Iterator[str]]:
    """Column names, the number of the first line after them, and the lines from there."""
    if layout.header is not None:
        return list(layout.header), 1, lines
    for _ in range(layout.skip_lines):
        lines.readline(_LONGEST_HEADER)
    number = layout.skip_lines + 1
    line = lines.readline(_LONGEST_HEADER).removeprefix("\ufeff")
    if not line.strip():
        rest = lines.read(1)
        kind = DataError if rest else EmptyFileError
        raise kind(
            f"line {number}, the header, is blank" if rest else "the file is empty",
            where=str(path),
            todo="Add a header line and rows; data.source.dialect.skip_lines skips lines before "
            "them.",
        )
    if not layout.has_header:
        names, rows = _numbers(chain([line], lines), layout)
        require_columns(names, required, where=str(path))
        return names, number, rows
    if _lossy(line) != line:
        raise DataError(
            f"the header is not {layout.encoding.removesuffix('-sig')}: "
            f"{_lossy(line).strip()[:_SHOWN_CHARS]}",
            where=f"{path}:{number}",
            todo=encoding_hint(line) or "Convert the file to UTF-8.",
        )
    header = layout.split(line)
    if layout.is_csv:
        header = next(layout.reader([line.rstrip("\r\n")], strict=False))
    following = []
    if missing := set(required) - set(header):
        following = [lines.readline(_LONGEST_HEADER) for _ in range(MOST_SKIPPED)]
    require_columns(
        header,
        required,
        where=str(path),
        hint=header_hint(line, header, required, layout, following),
        is_empty=bool(missing) and not following[0],
    )
    return header, number + 1, lines


def _numbers(lines: Iterator[str], layout: TextFormat) -> tuple[list[str], Iterator[str]]:
    """Column names 1, 2, ... of a file without a header, and all of its lines."""
    tape = _Tape(lines)
    is_csv = layout.is_csv
    fields = next(layout.reader(tape, strict=False), []) if is_csv else layout.split(next(tape))
    return [str(number) for number in range(1, len(fields) + 1)], chain(tape.current, lines)


class _Tape:
    """Lines of a file that remembers those of the current record."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.current: list[str] = []

    def __iter__(self) -> _Tape:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.current.append(line)
        return line


def _csv_records(
    lines: Iterator[str], layout: TextFormat, width: int, number: int
) -> Iterator[_Record]:
    tape = _Tape(lines)
    reader = layout.reader(tape)
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
        elif fields != []:  # csv returns an empty list for a blank line
            yield from _line_by_line(tape.current, layout, width, number)
        number += len(tape.current)


def _line_by_line(
    lines: Iterable[str], layout: TextFormat, width: int, number: int
) -> Iterator[_Record]:
    """Judge each line by itself: a stray quote must cost its own line only."""
    for at, line in enumerate(lines, start=number):
        text = line.rstrip("\r\n")
        if not text:
            continue
        try:
            fields = next(layout.reader([text])) if layout.is_csv else layout.split(text)
        except csv.Error:
            yield _Record(at, [], BROKEN_QUOTES, text)
            continue
        wrong = len(fields) != width
        yield _Record(at, [], WRONG_FIELDS, text) if wrong else _Record(at, fields)


def _divide(batch: list[_Record], separator: str) -> tuple[list[_Record], list[_Record]]:
    """Split records into rows and rejected ones, including those in a wrong encoding."""
    try:  # one pass in C for the usual case; surrogates mark undecodable bytes
        "".join([field for record in batch for field in record.fields]).encode()
    except UnicodeEncodeError:
        texts = [separator.join(record.fields) for record in batch]
        batch = [
            record if _lossy(text) == text else _Record(record.number, [], WRONG_ENCODING, text)
            for record, text in zip(batch, texts, strict=True)
        ]
    return [row for row in batch if not row.reason], [row for row in batch if row.reason]


def _lossy(text: str) -> str:
    """Text with backslash escapes for undecodable bytes."""
    try:
        content = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character of UTF-16, accepted by some encodings
        content = text.encode("utf-8", "surrogatepass")
    return content.decode("utf-8", "backslashreplace")


def _batch_table(records: Sequence[_Record], header: Sequence[str], layout: TextFormat) -> pa.Table:
    columns = list(zip(*(record.fields for record in records), strict=True))
    if not columns:
        columns = [()] * len(header)
    arrays = [pa.array(column, pa.string()) for column in columns]
    if layout.null_words:
        words = pa.array(layout.null_words, pa.string())
        null = pa.scalar(None, pa.string())
        arrays = [
            pc.if_else(pc.is_in(pc.utf8_trim_whitespace(cells), words), null, cells)
            for cells in arrays
        ]
    return pa.Table.from_arrays(arrays, names=list(header))


def _hints(rejected: Sequence[RejectedRow], layout: TextFormat, width: int) -> dict[str, str]:
    """Hints for each reason, from samples of its lines."""
    lines: defaultdict[str, list[str]] = defaultdict(list)
    for row in rejected:
        lines[row.reason].append(row.raw)
    hints = {r: rejection_hint(r, raw[:_SAMPLES], layout, width) for r, raw in lines.items()}
    return {reason: hint for reason, hint in hints.items() if hint}
