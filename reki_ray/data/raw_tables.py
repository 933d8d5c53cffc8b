"""Rows as read from files, with the location of each."""

from __future__ import annotations

import contextlib
import csv
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from reki_ray.core.file_digests import file_digest
from reki_ray.data.attributes import attribute_maps
from reki_ray.errors import DataError, printable
from reki_ray.schema import ATTRIBUTES, LOCATION, QUARANTINE_SCHEMA, RAW, REASON, TABLE

TableKind = Literal["interactions", "items", "users"]

WRONG_ENCODING = "wrong encoding"
"""Reason of rows that hold bytes outside their file's character encoding."""
WRONG_FIELDS = "wrong number of fields"
"""Reason of lines with more or fewer fields than the header."""
BROKEN_QUOTES = "broken quotes"
"""Reason of lines with a quote that is never closed, or closed within a field."""

_BATCH = 65_536
_SHOWN_COLUMNS = 40
_SHOWN_CHARS = 2000


class EmptyFileError(DataError):
    """A file without rows cannot be read; an error only if no other file has rows."""


@dataclass(frozen=True)
class RejectedRow:
    """A row that is unusable."""

    location: str
    reason: str
    raw: str


@dataclass(frozen=True)
class RawTable:
    """Rows of a table as in its files.

    Args:
        rows: Columns under the files' own names, N rows.
        file_of: Index into `files` of each row, (N,) int32.
        number_of: Line or row number of each row in its file, from 1, (N,) int64.
        mark: Joins file and number: ":" before a line, "#" before a row.
        hints: Reason of rejected rows -> a sentence on what the user can set.
        notes: Sentences on the files for the user.
    """

    kind: TableKind
    rows: pa.Table
    files: tuple[str, ...]
    file_of: np.ndarray
    number_of: np.ndarray
    mark: Literal[":", "#"]
    rejected: tuple[RejectedRow, ...] = ()
    hints: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def rows_in(self) -> int:
        """Rows of the files, readable or not."""
        return len(self.rows) + len(self.rejected)

    @property
    def is_delimited(self) -> bool:
        """Whether the rows come from text files."""
        return self.mark == ":"

    def location(self, row: int) -> str:
        """Location of a row, such as `ratings.csv:17` or `part-0.parquet#17`."""
        return f"{self.files[self.file_of[row]]}{self.mark}{self.number_of[row]}"

    def raw(self, rows: np.ndarray) -> Iterator[str]:
        """Content of rows (K,), ascending, as JSON objects under the file's column names."""
        chosen = np.zeros(len(self.rows), dtype=bool)
        chosen[rows] = True
        try:  # filter works by chunk; take would concatenate a column, which has a size limit
            kept = self.rows.filter(pa.array(chosen))
            pieces = (kept.slice(start, _BATCH) for start in range(0, len(kept), _BATCH))
        except pa.ArrowException:  # not implemented for all types, such as views in lists
            pieces = (self.rows.slice(row, 1) for row in rows)
        for piece in pieces:
            for row in _lossless(piece):
                yield json.dumps(row, ensure_ascii=False, default=str)


_NO_PYTHON_VALUE = (ValueError, OverflowError, LookupError, pa.ArrowException)
"""Errors of cells without a Python value: not UTF-8, the year 290,000, an unknown time zone."""


def _lossless(rows: pa.Table) -> list[dict[str, object]]:
    try:
        return list(rows.to_pylist())
    except _NO_PYTHON_VALUE:
        columns = {name: _readable(rows.column(name)) for name in rows.column_names}
        return [{name: values[i] for name, values in columns.items()} for i in range(len(rows))]


def _readable(column: pa.ChunkedArray) -> list[object]:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
        return [v and v.decode("utf-8", "backslashreplace") for v in column.to_pylist()]
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        column = column.cast(pa.int64() if column.type.bit_width == 64 else pa.int32())
    try:
        return list(column.to_pylist())
    except _NO_PYTHON_VALUE:
        return [f"<{column.type}>"] * len(column)


@dataclass(frozen=True)
class MappedTable:
    """A raw table with mapped, unchecked columns.

    Args:
        columns: Column of the schema -> N values of any type.
        problems: Reason -> mask (N,) of rows that the source rejects.
        decimal: Decimal mark of numbers in text.
    """

    raw: RawTable
    columns: dict[str, pa.ChunkedArray]
    problems: dict[str, np.ndarray] = field(default_factory=dict)
    decimal: str = "."

    @classmethod
    def of(
        cls,
        raw: RawTable,
        names: Mapping[str, str],
        attributes: Mapping[str, Sequence[Sequence[str]]] | None = None,
        problems: Mapping[str, np.ndarray] | None = None,
        decimal: str = ".",
    ) -> MappedTable:
        """Map columns of the schema to names of the file, and add attributes by name, N lists."""
        columns = {ours: raw.rows.column(theirs) for ours, theirs in names.items()}
        if attributes is not None:
            columns[ATTRIBUTES] = attribute_maps(attributes, len(raw.rows))
        return cls(raw, columns, dict(problems or {}), decimal)

    def where(self, name: str) -> str:
        """Place of a column for messages."""
        return f"{self.raw.files[0]}, column for {name}"


class DataSource(Protocol):
    """A data set; a new one is one file that passes the tests of sources."""

    @property
    def timestamp_unit(self) -> str:
        """Unit or format of the interactions' timestamps, see `to_times`."""

    def identity(self) -> object:
        """JSON-ready identity of the content, without reading remote files: equal if it is."""

    def interactions(self) -> MappedTable:
        """Interactions: user and item id, timestamp, and rating or label or neither."""

    def items(self) -> MappedTable:
        """Items: id, title, and optional attributes and text."""

    def users(self) -> MappedTable | None:
        """Users: id and attributes; None takes them from the interactions."""


def require_columns(
    present: Sequence[str],
    required: Sequence[str],
    *,
    where: str,
    hint: str = "",
    is_empty: bool = False,
) -> None:
    """Check that the header of a file has the required columns, once; `hint` joins the error.

    Raises:
        DataError: A required column is missing or repeated.
        EmptyFileError: So it is, in a file without rows.
    """
    missing = [name for name in dict.fromkeys(required) if name not in present]
    twice = [name for name in dict.fromkeys(required) if list(present).count(name) > 1]
    if missing or twice:
        problem = f"columns are missing: {', '.join(missing)}" if missing else ""
        problem = problem or f"columns are repeated: {', '.join(twice)}"
        shown = ", ".join(present[:_SHOWN_COLUMNS]) or "none"
        more = f" and {len(present) - _SHOWN_COLUMNS} more" * (len(present) > _SHOWN_COLUMNS)
        name = "Name the file's own columns under data.source.columns; null if it has none."
        raise (EmptyFileError if is_empty else DataError)(
            f"{problem}; the file has {shown[:_SHOWN_CHARS]}{more}",
            where=where,
            todo=f"{hint} {name}".strip(),
        )


class FilePart(NamedTuple):
    """Rows of one file, the number of each (N,) int64, and its rejected rows."""

    rows: pa.Table
    numbers: np.ndarray
    rejected: list[RejectedRow]


def read_files(
    kind: TableKind,
    paths: Sequence[Path],
    read: Callable[[Path], FilePart],
    mark: Literal[":", "#"],
) -> RawTable:
    """Read the files of a table; a file may be empty, but not all of them.

    Raises:
        EmptyFileError: `read` raised it for all files: no row is lost.
        DataError: The files disagree about the type of a column.
    """
    parts: list[tuple[int, FilePart]] = []
    empty: EmptyFileError | None = None
    for index, path in enumerate(paths):
        try:
            parts.append((index, read(path)))
        except EmptyFileError as error:
            empty = empty or error
    if empty and not parts:
        raise empty
    # A part without rows may have guessed types.
    tables = [part.rows for _, part in parts if len(part.rows)] or [parts[0][1].rows]
    try:
        rows = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"the files of {kind} have different types: {error}",
            where=", ".join(str(path) for path in paths[:3]),
            todo="Write all files with the same schema.",
        ) from error
    indices = np.array([index for index, _ in parts], dtype=np.int32)
    return RawTable(
        kind=kind,
        rows=rows,
        files=tuple(printable(str(path)) for path in paths),
        file_of=np.repeat(indices, [len(part.rows) for _, part in parts]),
        number_of=np.concatenate([part.numbers for _, part in parts]),
        mark=mark,
        rejected=tuple(row for _, part in parts for row in part.rejected),
    )


def identify_files(paths: Sequence[Path]) -> list[dict[str, object]]:
    """Names and hashes of files: equal if their content is, wherever they are."""
    identities: list[dict[str, object]] = []
    for path in paths:
        with reading_file(path):
            identities.append({"file": path.name, "sha256": file_digest(path)})
    return identities


@contextlib.contextmanager
def reading_file(path: Path) -> Iterator[None]:
    """Turn the errors of a file that cannot be opened or is damaged into a `DataError`."""
    try:
        yield
    except (
        *(OSError, EOFError, ValueError, RuntimeError, pa.ArrowException),
        *(csv.Error, zlib.error, lzma.LZMAError, zipfile.BadZipFile),
    ) as error:
        raise DataError(
            f"the file cannot be read: {error}",
            where=str(path.absolute()),
            todo="Check the path under data.source, the permissions, and whether the copy is "
            "complete.",
        ) from error


def quarantine_table(kind: TableKind, rejected: Sequence[RejectedRow]) -> pa.Table:
    """Rows of the quarantine table."""
    return pa.table(
        {
            TABLE: [kind] * len(rejected),
            LOCATION: [r.location for r in rejected],
            REASON: [r.reason for r in rejected],
            RAW: [r.raw for r in rejected],
        },
        schema=QUARANTINE_SCHEMA,
    )
