"""Content-addressed, append-only store of Parquet files, safe with several writers.

A batch of rows becomes one file whose name is the hash of the digests in it, written atomically:
readers see whole files only, a batch that is written twice is one file, and a kill loses the
batch in flight at most.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reki_ray.core.workspace import ROW_GROUP_ROWS, Workspace, conform
from reki_ray.errors import DataError, EngineError
from reki_ray.schema import Table

DIGEST_BYTES: Final = 32
DIGEST: Final = f"S{DIGEST_BYTES}"
"""Type of a digest in memory: a quarter of the memory of a hexadecimal string."""

_Result = TypeVar("_Result")

_COMPACT_FILES = 32
_COMPACT_ROWS = 131_072
_READERS = 8


def digest_texts(texts: Sequence[str]) -> np.ndarray:
    """Hash texts with SHA-256, (N,) of type `DIGEST`."""
    joined = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
    return np.frombuffer(joined, dtype=DIGEST)


def parse_digests(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Convert N digests of 64 hexadecimal digits into (N,) of type `DIGEST`."""
    joined = bytes.fromhex("".join(column.to_pylist()))
    if len(joined) != DIGEST_BYTES * len(column):
        raise ValueError("a digest has another length")
    return np.frombuffer(joined, dtype=DIGEST)


def digest_bytes(digests: np.ndarray) -> list[bytes]:
    """Convert digests to bytes, with the trailing zeros that numpy drops from a byte string."""
    raw = np.ascontiguousarray(digests, dtype=DIGEST).tobytes()
    return [raw[start : start + DIGEST_BYTES] for start in range(0, len(raw), DIGEST_BYTES)]


def hash_strings(values: Iterable[str], suffix: str = "") -> str:
    """Hash strings in any order, 32 hexadecimal digits."""
    return hashlib.sha256("".join([*sorted(values), suffix]).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class ContentIndex:
    """Digest -> place of its row; sorted by digest, the first row of each.

    Attributes:
        digests: (N,) of type `DIGEST`.
        file: (N,) index into `files`.
        row: (N,) row in that file.
        columns: (N,) values of further columns, by name.
    """

    files: tuple[str, ...]
    digests: np.ndarray
    file: np.ndarray
    row: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def find(self, digests: np.ndarray) -> np.ndarray:
        """Entries (M,) int64 of M digests, -1 for a digest that is not in the store."""
        if not len(self.digests):
            return np.full(len(digests), -1)
        entries = np.minimum(np.searchsorted(self.digests, digests), len(self.digests) - 1)
        return np.where(self.digests[entries] == digests, entries, -1)


class ContentStore:
    """One content-addressed table of a workspace.

    Args:
        table: Folder and schema; files of earlier releases may lack nullable columns.
        key: Column of digests, 64 hexadecimal digits.
        what: Name of the store in error messages, such as `the answer cache`.
        hash_rows: Hash of a file's content, whatever the order of its rows, for its name.

    Example:
        >>> table = Table("notes", pa.schema([("digest", pa.string()), ("note", pa.string())]))
        >>> store = ContentStore(Workspace("memory://doc"), table, "digest", what="the notes")
        >>> store.append(pa.table({"digest": [hashlib.sha256(b"a").hexdigest()], "note": ["A"]}))
        >>> int(store.index().find(digest_texts(["a"]))[0])
        0
    """

    def __init__(
        self,
        workspace: Workspace,
        table: Table,
        key: str,
        *,
        what: str,
        hash_rows: Callable[[pa.Table], str] | None = None,
    ) -> None:
        self._workspace = workspace
        self._table = table
        self._key = key
        self._hash_rows = hash_rows or (lambda rows: hash_strings(rows[key].to_pylist()))
        self._what = what
        self._indexed: dict[str, list[np.ndarray]] = {}

    def append(self, rows: pa.Table, *, prefix: str = "unit") -> None:
        """Save rows as one file; they survive a kill from here on.

        Raises:
            DataError: The rows do not fit the schema.
            EngineError: The workspace cannot be written.
        """
        folder = self._table.path
        if self._table.schema is not None:
            rows = conform(rows, self._table.schema, where=self._workspace.path(folder))
        name = f"{prefix}-{self._hash_rows(rows)}.parquet"
        try:
            with self._workspace.writing(folder, name) as sink:
                pq.write_table(rows, sink, row_group_size=ROW_GROUP_ROWS)
        except OSError as error:
            raise EngineError(
                f"{self._what} cannot be written: {error}",
                where=self._workspace.path(folder),
                todo="Free some space or repair the storage, and run again: what is saved is "
                "not computed again.",
            ) from error

    def compact(self) -> int:
        """Merge small files into large ones; a kill at any point loses nothing. Returns how many.

        Other writers and compactors may run at the same time: a row that is in two files for a
        moment has one digest and counts once.
        """
        # In the order of time: units of one shard of a plan end up in one or two files.
        files = sorted(self._workspace.identify(self._table), key=lambda file: (file[2], file[0]))
        names = [name for name, _, _ in files if name.startswith("unit-")]
        if len(names) < _COMPACT_FILES:
            return 0
        paths = [self._workspace.path(self._table.path, name) for name in names]
        return sum(self._merge(group) for group in self._groups(paths))

    def _groups(self, paths: Sequence[str]) -> Iterator[list[str]]:
        """Files in groups that fit into memory."""
        group: list[str] = []
        rows = 0
        for path in paths:
            with (
                contextlib.suppress(FileNotFoundError),  # merged by another compactor
                self._workspace.filesystem.open(path, "rb") as source,
            ):
                rows += pq.ParquetFile(source).metadata.num_rows
                group.append(path)
            if rows >= _COMPACT_ROWS:
                yield group
                group, rows = [], 0
        if group:
            yield group

    def _merge(self, paths: Sequence[str]) -> int:
        try:
            tables = [self._load(path, None) for path in paths]
        except FileNotFoundError:  # merged by another compactor
            return 0
        self.append(pa.concat_tables(tables), prefix="part")
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self._workspace.filesystem.rm(path)
        return len(paths)

    def names(self) -> frozenset[str]:
        """Names of all files."""
        paths = self._workspace.parts(self._table)
        return frozenset(path.rpartition("/")[2] for path in paths)

    def read_all(self) -> list[pa.Table]:
        """Read all files, in name order."""
        return list(self._map(lambda path: self._load(path, None)).values())

    def index(self, columns: Sequence[str] = ()) -> ContentIndex:
        """Index all rows, with further columns of numbers; later calls read only new files."""
        known = self._indexed
        self._indexed = self._map(lambda path: known.get(path) or self._index_file(path, columns))
        lengths = [len(arrays[0]) for arrays in self._indexed.values()]
        empty = [np.zeros(0, DIGEST), *(np.zeros(0, np.int32) for _ in columns)]
        values = [np.concatenate(v) for v in zip(empty, *self._indexed.values(), strict=True)]
        rows = [np.arange(length, dtype=np.int32) for length in lengths]
        # Rows of one digest are equal: the first counts.
        digests, first = np.unique(values[0], return_index=True)
        return ContentIndex(
            files=tuple(self._indexed),
            digests=digests,
            file=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[first],
            row=np.concatenate([np.zeros(0, np.int32), *rows])[first],
            columns={name: v[first] for name, v in zip(columns, values[1:], strict=True)},
        )

    def _map(self, function: Callable[[str], _Result]) -> dict[str, _Result]:
        """Apply a function to the paths of all files, in name order."""
        while True:
            paths = self._workspace.parts(self._table)
            try:
                with ThreadPoolExecutor(_READERS) as readers:
                    return dict(zip(paths, readers.map(function, paths), strict=True))
            except FileNotFoundError:  # merged by another run since the listing
                continue

    def _index_file(self, path: str, columns: Sequence[str]) -> list[np.ndarray]:
        rows = self._load(path, [self._key, *columns])
        try:
            return [parse_digests(rows[self._key]), *(rows[name].to_numpy() for name in columns)]
        except (TypeError, ValueError) as error:
            raise self.damaged(path, error) from error

    def read(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Read one file.

        Raises:
            DataError: The file is damaged or gone.
        """
        try:
            return self._load(path, columns)
        except FileNotFoundError as error:
            raise self.damaged(path, error) from error

    def _load(self, path: str, columns: list[str] | None) -> pa.Table:
        try:
            with self._workspace.filesystem.open(path, "rb") as source:
                rows = pq.read_table(source, columns=columns)
            if columns is not None:
                return rows.select(columns)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, KeyError) as error:
            raise self.damaged(path, error) from error
        for column in self._table.schema or ():
            # An earlier release did not write all columns.
            if column.nullable and column.name not in rows.column_names:
                rows = rows.append_column(column, pa.nulls(rows.num_rows, column.type))
        return rows

    def damaged(self, path: str, reason: object) -> DataError:
        """Make the error of a file that cannot be used."""
        return DataError(
            f"a file of {self._what} is damaged: {reason}",
            where=path,
            todo="Delete it and run again: only its rows are computed again.",
        )
