"""Rows between a file and a table: as read, with the place each came from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from reki_ray.core.file_digests import file_digest
from reki_ray.errors import DataError
from reki_ray.schema import LOCATION, QUARANTINE_SCHEMA, RAW, REASON, TABLE

Kind = Literal["interactions", "items", "users"]

WRONG_ENCODING = "wrong encoding"
"""Reason of rows that hold bytes outside their file's character encoding."""
WRONG_FIELDS = "wrong number of fields"
"""Reason of lines with more or fewer fields than the header."""
BROKEN_QUOTES = "broken quotes"
"""Reason of lines with a quote that is never closed, or closed in the middle of a field."""

_BATCH = 65_536
_SHOWN_COLUMNS = 40
_SHOWN_CHARS = 2000

_T = TypeVar("_T")


class EmptyFileError(DataError):
    """A file without rows cannot be read, which matters only where no other has any."""


@dataclass(frozen=True)
class Rejected:
    """A row that could not be read as one."""

    location: str
    reason: str
    raw: str


@dataclass(frozen=True)
class RawTable:
    """Rows of one table as the files hold them.

    Args:
        kind: Which table.
        rows: Columns under the files' own names, N rows.
        files: Files that were read, in order.
        file_of: Index into `files` of each row, (N,) int32.
        number_of: Place of each row in its file, (N,) int64: line number or row number, from 1.
        mark: Joins file and number: ":" before a line, "#" before a row.
        rejected: Rows that could not be read as rows at all.
        hints: Reason of rejected rows -> what the user can set, a sentence.
        notes: What the user should know of the files, a sentence each.
    """

    kind: Kind
    rows: pa.Table
    files: tuple[str, ...]
    file_of: np.ndarray
    number_of: np.ndarray
    mark: Literal[":", "#"]
    rejected: tuple[Rejected, ...] = ()
    hints: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def rows_in(self) -> int:
        """Rows that the files hold, readable or not."""
        return len(self.rows) + len(self.rejected)

    @property
    def is_delimited(self) -> bool:
        """Whether the rows come from text files."""
        return self.mark == ":"

    def location(self, row: int) -> str:
        """Place of a row, as `ratings.csv:17` or `part-0.parquet#17`."""
        return f"{self.files[self.file_of[row]]}{self.mark}{self.number_of[row]}"

    def raw(self, rows: np.ndarray) -> Iterator[str]:
        """Content of rows as JSON objects under the file's column names.

        Args:
            rows: Row indices, ascending, (K,).
        """
        for found in self._pieces(rows):
            for row in _lossless(found):
                yield json.dumps(row, ensure_ascii=False, default=str)

    def _pieces(self, rows: np.ndarray) -> Iterator[pa.Table]:
        chosen = np.zeros(len(self.rows), dtype=bool)
        chosen[rows] = True
        try:  # chunk by chunk: to take rows, Arrow puts a column together, which has a bound
            found = self.rows.filter(pa.array(chosen))
        except pa.ArrowException:  # it cannot filter views in lists, for one
            yield from (self.rows.slice(row, 1) for row in rows)
            return
        for start in range(0, len(found), _BATCH):
            yield found.slice(start, _BATCH)


_NO_PYTHON_VALUE = (ValueError, OverflowError, LookupError, pa.ArrowException)
"""What cells raise that Python has no value for: no UTF-8, the year 290,000, a zone of nowhere."""


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
class Draft:
    """A raw table whose columns are named, but not yet checked.

    Args:
        raw: The rows as read.
        columns: Column of the schema -> values of any type, N each.
        problems: Reason -> mask (N,) of rows that the source itself knows to be wrong.
        decimal: Decimal mark of numbers in text.
    """

    raw: RawTable
    columns: dict[str, pa.ChunkedArray]
    problems: dict[str, np.ndarray] = field(default_factory=dict)
    decimal: str = "."


class Source(Protocol):
    """A data set: a new one is one file that passes the tests of sources."""

    @property
    def timestamp_unit(self) -> str:
        """Unit or format of the interactions' timestamps, see `to_times`."""
        ...

    def identity(self) -> object:
        """JSON-ready identity of the content, without network: equal where the content is."""
        ...

    def interactions(self) -> Draft:
        """Interactions: user and item id, timestamp, and rating or label or neither."""
        ...

    def items(self) -> Draft:
        """Items: id, title, and attributes and text where the data set has them."""
        ...

    def users(self) -> Draft | None:
        """Users: id and attributes; None takes them from the interactions."""
        ...


def require_columns(
    present: Sequence[str], required: Sequence[str], *, where: str, hint: str = ""
) -> None:
    """Check a file's header.

    Args:
        present: Columns of the file.
        required: Columns that it must have, once.
        where: The file.
        hint: What the user can do besides naming columns, a sentence.

    Raises:
        DataError: A required column is missing or there twice.
    """
    missing = [name for name in dict.fromkeys(required) if name not in present]
    twice = [name for name in dict.fromkeys(required) if list(present).count(name) > 1]
    if missing or twice:
        problem = f"columns are missing: {', '.join(missing)}" if missing else ""
        problem = problem or f"columns are there more than once: {', '.join(twice)}"
        shown = ", ".join(present[:_SHOWN_COLUMNS]) or "none"
        more = f" and {len(present) - _SHOWN_COLUMNS} more" * (len(present) > _SHOWN_COLUMNS)
        name = "Name the file's own columns under data.source.columns, null where it has none."
        raise DataError(
            f"{problem}; the file has {shown[:_SHOWN_CHARS]}{more}",
            where=where,
            todo=f"{hint} {name}".strip(),
        )


def read_parts(paths: Sequence[Path], read: Callable[[Path], _T]) -> list[tuple[int, _T]]:
    """Read the files of a table.

    Args:
        paths: Files.
        read: Reads one; raises `EmptyFileError` where it cannot and no row is lost.

    Returns:
        Index and content of each file that could be read, at least one.

    Raises:
        EmptyFileError: None could be read.
    """
    found: list[tuple[int, _T]] = []
    empty: EmptyFileError | None = None
    for index, path in enumerate(paths):
        try:
            found.append((index, read(path)))
        except EmptyFileError as error:
            empty = empty or error
    if empty and not found:
        raise empty
    return found


def identify_files(paths: Sequence[Path]) -> list[dict[str, object]]:
    """Names and hashes of files: equal where their content is, wherever they are.

    Raises:
        DataError: A file cannot be read.
    """
    found: list[dict[str, object]] = []
    for path in paths:
        try:
            digest = file_digest(path)
        except OSError as error:
            raise unreadable(path, error) from error
        found.append({"file": path.name, "sha256": digest})
    return found


def unreadable(path: Path, error: Exception) -> DataError:
    """Error for a file that cannot be opened or is damaged."""
    return DataError(
        f"the file cannot be read: {error}",
        where=str(path.absolute()),
        todo="Check the path under data.source, the rights, and whether the copy is complete.",
    )


def quarantine_table(kind: Kind, rejected: Sequence[Rejected]) -> pa.Table:
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
