"""The folder of one run: tables, manifest, and atomic publication of a stage's output.

A stage writes into a scratch folder with the layout of the workspace. When it succeeds, its folder
is moved into place and the manifest entry is written last: only then is the stage done. Output of a
killed stage is never read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.dataset as pad
import pyarrow.parquet as pq

from reki_ray.core import atomic
from reki_ray.core.storage import Storage
from reki_ray.errors import DataError
from reki_ray.schema import Table

MANIFEST: Final = "manifest.json"
REPORT_JSON: Final = "report.json"
REPORT_HTML: Final = "report.html"

MANIFEST_FORMAT: Final = 1

ROW_GROUP_ROWS: Final = 16_384
"""Rows of a Parquet row group, the smallest share of a table that a task reads."""

CACHES: Final = ("encode/ledger", "extract/ledger", "extract/imported")


@dataclass(frozen=True)
class StageEntry:
    """Manifest entry of a finished stage."""

    fingerprint: str
    rows_in: int = 0
    rows_out: int = 0
    dead: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished_at: float = 0.0
    skipped: bool = False
    """Whether the last run kept the output unchanged."""
    versions: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


class Workspace(Storage):
    """A run's folder, local or on any fsspec filesystem.

    Args:
        root: Folder or URL, as `runs/demo` or `s3://bucket/demo`.

    Raises:
        ConfigError: The URL is of an unknown kind, or the package for it is not installed.

    Example:
        >>> Workspace("runs/demo").stages()
        {}
    """

    def write_table(
        self,
        table: Table,
        data: pa.Table,
        *,
        part: str = "part-00000",
        row_group_rows: int = ROW_GROUP_ROWS,
    ) -> None:
        """Write one Parquet file of a table, or replace it; columns come in any order.

        Raises:
            DataError: The columns do not fit the schema, see `conform`.
            EngineError: The storage refuses, as a full disk does.
        """
        if table.schema is not None:
            data = conform(data, table.schema, where=self.path(table.path))
        with self.guarded("written"), self.writing(table.path, f"{part}.parquet") as sink:
            pq.write_table(data, sink, row_group_size=row_group_rows)

    def has_table(self, table: Table) -> bool:
        """Whether at least one file of the table exists."""
        return bool(self.parts(table))

    def read_table(self, table: Table, *, columns: list[str] | None = None) -> pa.Table:
        """Read a whole table, parts in name order.

        Raises:
            DataError: The table is missing, damaged, or has another schema.
        """
        where = self.path(table.path)
        if not self.has_table(table):
            todo = f"Run `reki {table.stage}` first."
            raise DataError("the table does not exist", where=where, todo=todo)
        with reading(table, where):
            data = self.dataset(table).to_table(columns=columns)
        if table.schema is None:
            return data
        expected = table.schema
        if columns is not None:
            expected = pa.schema([table.schema.field(name) for name in columns])
        return conform(data, expected, where=where)

    def dataset(self, table: Table, schema: pa.Schema | None = None) -> pad.Dataset:
        """A table as a dataset, which reads only the columns and row groups that are needed.

        Files are read as the schema, or else that of the first file.
        """
        return pad.dataset(
            self.parts(table), schema, filesystem=self.arrow_filesystem, format="parquet"
        )

    def parts(self, table: Table) -> list[str]:
        """Paths of a table's files, in name order; empty if the table does not exist."""
        try:  # asking first whether it exists would be two more requests of three
            with self.guarded("read"):
                paths = self.filesystem.ls(self.path(table.path), detail=False)
        except FileNotFoundError:
            return []
        return sorted(path for path in paths if path.endswith(".parquet"))

    def identify(self, table: Table) -> list[tuple[str, int, str]]:
        """Name, size and modification time of a table's files: equal if the table is unchanged."""
        files = []
        for part in self.parts(table):
            with self.guarded("read"):
                info = self.filesystem.info(part)
            changed = info.get("mtime") or info.get("ETag") or info.get("LastModified") or ""
            files.append((part.rpartition("/")[2], int(info["size"]), str(changed)))
        return files

    def stages(self) -> dict[str, StageEntry]:
        """Entries of the finished stages, by name; empty before the first."""
        if not self.exists(MANIFEST):
            return {}
        manifest = self.read_json(MANIFEST)
        try:
            problem = f"the manifest has format {manifest['format']}, not {MANIFEST_FORMAT}"
            if manifest["format"] == MANIFEST_FORMAT:
                return {name: StageEntry(**entry) for name, entry in manifest["stages"].items()}
        except (AttributeError, KeyError, TypeError):
            problem = "the manifest has entries that this release does not know"
        raise DataError(
            problem,
            where=self.path(MANIFEST),
            todo="Use the release of reki-ray that wrote it, or a new workspace folder.",
        )

    def record(self, stage: str, entry: StageEntry) -> None:
        """Write a stage's entry, which makes the stage done."""
        if not entry.skipped:
            entry = dataclasses.replace(entry, finished_at=time.time())
        self._write_manifest({**self.stages(), stage: entry})

    def forget(self, stage: str) -> None:
        """Remove a stage's entry, which makes the stage not done."""
        self._write_manifest({k: v for k, v in self.stages().items() if k != stage})

    def _write_manifest(self, entries: dict[str, StageEntry]) -> None:
        self._check_lock()
        stages = {name: dataclasses.asdict(entry) for name, entry in entries.items()}
        self.write_json(MANIFEST, {"format": MANIFEST_FORMAT, "stages": stages})

    @contextlib.contextmanager
    def replacing(self, stage: str, tables: Sequence[Table] = ()) -> Iterator[Workspace]:
        """Scratch workspace whose `<stage>/` folder replaces the old one on success.

        With `tables`, only these are replaced. The stage's manifest entry is removed. On an error
        the scratch is removed and the old output stays.
        """
        scratch = Workspace(f"{self.location}/.scratch-{stage}")
        scratch.remove("")
        folders = [table.path for table in tables] or [stage]
        with self.guarded("written"):
            for folder in folders:
                self.filesystem.makedirs(scratch.path(folder), exist_ok=True)
        try:
            yield scratch
            self.forget(stage)
            for folder in folders:
                self.remove(folder)
                self.move(scratch.path(folder), self.path(folder))
        finally:
            scratch.remove("")

    def link_caches(self, derived: Workspace) -> None:
        """Let a workspace inside this one share its answers, vectors and imports.

        On a local disk only; a remote derived workspace has caches of its own.
        """
        if not self.is_local:
            return
        for folder in CACHES:
            shared, own = Path(self.path(folder)), Path(derived.path(folder))
            atomic.make_folder(shared)
            atomic.make_folder(own.parent)
            if not own.exists():
                own.symlink_to(os.path.relpath(shared, own.parent), target_is_directory=True)


@contextlib.contextmanager
def reading(table: Table, where: str) -> Iterator[None]:
    """Turn read errors of the block into a `DataError` that names the table and its file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"the table is damaged: {error}",
            where=where,
            todo=f"Run `reki {table.stage} --force {table.stage}` to write it again.",
        ) from error


def conform(data: pa.Table, schema: pa.Schema, *, where: str) -> pa.Table:
    """Select and cast the columns of a table's schema.

    Raises:
        DataError: A column is missing, has another type, or holds nulls against the schema.
    """
    missing = [name for name in schema.names if name not in data.column_names]
    if missing:
        raise DataError(
            f"columns are missing: {', '.join(missing)}",
            where=where,
            todo=f"The table needs {', '.join(schema.names)}.",
        )
    data = data.select(schema.names)
    for column in schema:
        if not column.nullable and data.column(column.name).null_count:
            raise DataError(
                f"column {column.name} holds {data.column(column.name).null_count} nulls",
                where=where,
                todo="Remove these rows or fill the column.",
            )
    try:
        return data.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise DataError(
            f"the columns do not fit the schema: {error}",
            where=where,
            todo=f"The table needs {schema.to_string(show_field_metadata=False)}.",
        ) from error
