"""Text files with separated fields, read so that one bad line costs one line.

Python's csv module instead of Arrow's reader: line numbers stay exact under quoting,
every row is judged by itself, and a stray quote cannot swallow the lines after it. A million
rows take seconds, in batches that bound the memory.
"""

from __future__ import annotations

import contextlib
import csv
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Sequence
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
from reki_ray.data.raw import (
    BROKEN_QUOTES,
    WRONG_ENCODING,
    WRONG_FIELDS,
    EmptyFileError,
    Kind,
    RawTable,
    Rejected,
    read_parts,
    require_columns,
    unreadable,
)
from reki_ray.errors import DataError, printable

_BATCH = 65_536
_LONGEST_CELL: Final = 2**27
"""Characters of a cell after which an open quote counts as a stray one."""
_LONGEST_HEADER: Final = 2**24
_SAMPLES: Final = 20
_SHOWN_CHARS: Final = 200


class _Record(NamedTuple):
    """One row: its fields, or the reason why there are none."""

    number: int
    fields: list[str]
    reason: str = ""
    raw: str = ""


class _FilePart(NamedTuple):
    """Rows of one file, their line numbers, and lines that are no rows."""

    rows: pa.Table
    numbers: np.ndarray
    rejected: list[Rejected]


def read_delimited(
    kind: Kind, paths: Sequence[Path], layout: TextFormat, required: Sequence[str]
) -> RawTable:
    """Read text files, compressed or not.

    Args:
        kind: Which table they hold.
        paths: Files, each with its own header unless the layout gives one.
        layout: Separator, quoting, encoding.
        required: Columns that each file must have.

    Returns:
        All columns as strings.

    Raises:
        DataError: A file is missing or damaged, or lacks a column; or none has rows.
    """
    csv.field_size_limit(_LONGEST_CELL)
    parts = read_parts(paths, lambda path: _read_file(path, layout, required))
    rejected = [one for _, part in parts for one in part.rejected]
    return RawTable(
        kind=kind,
        rows=pa.concat_tables([part.rows for _, part in parts], promote_options="default"),
        files=tuple(printable(str(path)) for path in paths),
        file_of=np.concatenate(
            [np.full(len(part.numbers), index, dtype=np.int32) for index, part in parts]
        ),
        number_of=np.concatenate([part.numbers for _, part in parts]),
        mark=":",
        rejected=tuple(rejected),
        hints=_hints(rejected, layout, len(required)),
    )


def read_header(path: Path, layout: TextFormat) -> list[str]:
    """Names of a text file's columns.

    Raises:
        DataError: The file is missing, empty or damaged.
    """
    with _reading(path, layout) as lines:
        return _header(path, lines, layout, ())[0]


def _read_file(path: Path, layout: TextFormat, required: Sequence[str]) -> _FilePart:
    batches: list[pa.Table] = []
    numbers: list[int] = []
    rejected: list[Rejected] = []
    place = printable(str(path))  # its name need not be UTF-8
    with _reading(path, layout) as lines:
        header, first, rows = _header(path, lines, layout, required)
        records = _records(rows, layout, width=len(header), number=first)
        while batch := list(islice(records, _BATCH)):
            good, bad = _divide(batch, layout.separator)
            batches.append(_batch_table(good, header, layout))
            numbers.extend(record.number for record in good)
            rejected.extend(
                Rejected(f"{place}:{record.number}", record.reason, _lossy(record.raw))
                for record in bad
            )
    table = pa.concat_tables(batches or [_batch_table([], header, layout)])
    return _FilePart(table, np.array(numbers, dtype=np.int64), rejected)


@contextlib.contextmanager
def _reading(path: Path, layout: TextFormat) -> Iterator[IO[str]]:
    """A text file, open; its own errors and those of decompression become ours."""
    try:
        with open_text(path, layout.encoding) as lines:
            yield lines
    except UnicodeError as error:
        raise DataError(
            f"the file is not {layout.encoding}: {error}",
            where=str(path),
            todo="Set data.source.dialect.encoding to the file's own, or convert it to UTF-8.",
        ) from error
    except (
        *(OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile),
        *(csv.Error, pa.ArrowException),
    ) as error:
        raise unreadable(path, error) from error


def _header(
    path: Path, lines: IO[str], layout: TextFormat, required: Sequence[str]
) -> tuple[list[str], int, Iterator[str]]:
    """Names of the columns, the number of the first line after them, and the lines from there."""
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
            f"line {number} is blank, the first that counts" if rest else "the file is empty",
            where=str(path),
            todo="Write a header line and rows into it; data.source.dialect.skip_lines passes "
            "over lines before them.",
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
    if missing := [name for name in required if name not in header]:
        following = [lines.readline(_LONGEST_HEADER) for _ in range(MOST_SKIPPED)]
    try:
        require_columns(
            header,
            required,
            where=str(path),
            hint=header_hint(line, header, required, layout, following),
        )
    except DataError as error:
        if missing and not following[0]:
            raise EmptyFileError(error.what, where=error.where, todo=error.todo) from error
        raise
    return header, number + 1, lines


def _numbers(lines: Iterator[str], layout: TextFormat) -> tuple[list[str], Iterator[str]]:
    """Names of columns that have none, 1, 2, ..., and all lines."""
    tape = _Tape(lines)
    is_csv = layout.is_csv
    fields = next(layout.reader(tape, strict=False), []) if is_csv else layout.split(next(tape))
    return [str(number) for number in range(1, len(fields) + 1)], chain(tape.current, lines)


def _records(
    lines: Iterator[str], layout: TextFormat, *, width: int, number: int
) -> Iterator[_Record]:
    if layout.is_csv:
        yield from _csv_records(lines, layout, width, number)
        return
    for at, line in enumerate(lines, start=number):
        text = line.rstrip("\r\n")
        if text:
            fields = layout.split(text)
            wrong = len(fields) != width
            yield _Record(at, [], WRONG_FIELDS, text) if wrong else _Record(at, fields)


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
        elif fields != []:  # csv gives an empty list for a blank line
            yield from _line_by_line(tape.current, layout, width, number)
        number += len(tape.current)


def _line_by_line(
    lines: Sequence[str], layout: TextFormat, width: int, number: int
) -> Iterator[_Record]:
    """Judge each line of a broken record alone: a stray quote must cost its own line only."""
    for at, line in enumerate(lines, start=number):
        text = line.rstrip("\r\n")
        if not text:
            continue
        try:
            fields = next(layout.reader([text]))
        except csv.Error:
            yield _Record(at, [], BROKEN_QUOTES, text)
            continue
        wrong = len(fields) != width
        yield _Record(at, [], WRONG_FIELDS, text) if wrong else _Record(at, fields)


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
    try:
        content = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character of UTF-16, which some encodings let pass
        content = text.encode("utf-8", "surrogatepass")
    return content.decode("utf-8", "backslashreplace")


def _batch_table(records: Sequence[_Record], header: Sequence[str], layout: TextFormat) -> pa.Table:
    columns = list(zip(*(record.fields for record in records), strict=True))
    if not columns:
        columns = [()] * len(header)
    arrays = [pa.array(column, pa.string()) for column in columns]
    if layout.null_words:
        words = pa.array(layout.null_words, pa.string())
        nothing = pa.scalar(None, pa.string())
        arrays = [
            pc.if_else(pc.is_in(pc.utf8_trim_whitespace(cells), words), nothing, cells)
            for cells in arrays
        ]
    return pa.Table.from_arrays(arrays, names=list(header))


def _hints(rejected: Sequence[Rejected], layout: TextFormat, width: int) -> dict[str, str]:
    """What the first rejected lines of each reason look like."""
    samples: dict[str, list[str]] = {}
    for one in rejected:
        found = samples.setdefault(one.reason, [])
        if len(found) < _SAMPLES:
            found.append(one.raw)
    return {
        reason: hint
        for reason, lines in samples.items()
        if (hint := rejection_hint(reason, lines, layout, width))
    }
