"""The folder of one run: tables, manifest, and atomic publication of a stage's output.

A stage writes into a scratch folder that has the same layout as the workspace. When it
succeeds, its folder is moved into place and the manifest entry is written last: a stage
is done only when its entry stands. What a killed stage left behind is never read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import fsspec
import pyarrow as pa
import pyarrow.dataset as pad
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from reki_ray.core import atomic
from reki_ray.core.strict_json import strict_json
from reki_ray.errors import ConfigError, DataError, EngineError, RekiError
from reki_ray.schema import Table

_CACHES: Final = ("encode/ledger", "extract/ledger", "extract/imported")


MANIFEST = "manifest.json"

REPORT_JSON = "report.json"

REPORT_HTML = "report.html"

MANIFEST_FORMAT = 1

ROW_GROUP_ROWS = 16_384

"""Rows of a Parquet row group: what a task that reads a share of a table takes at least."""


@dataclass(frozen=True)
class StageEntry:
    """What the manifest says of a finished stage."""

    fingerprint: str
    rows_in: int = 0
    rows_out: int = 0
    dead: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished_at: float = 0.0
    skipped: bool = False
    """Whether the last pass found the output unchanged and kept it."""
    versions: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


class Workspace:
    """A run's folder, local or on any fsspec filesystem.

    Args:
        root: Folder or URL, as `runs/demo` or `s3://bucket/demo`.

    Raises:
        ConfigError: The storage of the URL is unknown, or its package is not installed.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root).rstrip("/")
        try:
            self.filesystem, self._base = fsspec.core.url_to_fs(self.root)
        except (ImportError, ValueError, TypeError, OSError, RuntimeError) as error:
            raise ConfigError(
                f"the workspace cannot be opened: {error}",
                where=self.root,
                todo="Install the package that the message names, as s3fs for s3://, or set "
                "`workspace` to a folder or a URL that fsspec knows.",
            ) from error
        self._base = self._base.rstrip("/")

    # --- places --------------------------------------------------------------------------------

    @property
    def is_local(self) -> bool:
        """Whether the workspace lies on this machine's own filesystem."""
        return "file" in (
            self.filesystem.protocol
            if isinstance(self.filesystem.protocol, tuple)
            else (self.filesystem.protocol,)
        )

    @property
    def location(self) -> str:
        """Root as other processes open it: an absolute path, or the URL."""
        return os.path.abspath(self._base) if self.is_local else self.root

    @property
    def arrow_filesystem(self) -> pafs.FileSystem:
        """The workspace's filesystem for pyarrow and Ray Data."""
        if self.is_local:
            return pafs.LocalFileSystem()
        return pafs.PyFileSystem(pafs.FSSpecHandler(self.filesystem))

    def path(self, *parts: str) -> str:
        """Path below the workspace, as its filesystem wants it."""
        return "/".join([self._base, *parts])

    def local_path(self, *parts: str) -> Path:
        """Path below a workspace on the local disk.

        Raises:
            ConfigError: The workspace is remote.
        """
        if not self.is_local:
            raise ConfigError(
                "this needs a workspace on the local disk",
                where=self.root,
                todo="Copy the workspace to this machine, or set `workspace` to a local folder.",
            )
        return Path(self.path(*parts))

    def exists(self, *parts: str) -> bool:
        """Whether a file or folder lies there."""
        with self._storage("read"):
            return bool(self.filesystem.exists(self.path(*parts)))

    @contextlib.contextmanager
    def writing(self, *parts: str) -> Iterator[BinaryIO]:
        """Write a file so that readers see the old or the new one, never half.

        The new file takes its place when the block ends; where the block raises, the old one stays.

        Args:
            parts: Path of the file below the workspace; its folder is made.

        Raises:
            OSError: The disk refuses; the old file stays.
        """
        target = self.path(*parts)
        if self.is_local:
            with atomic.writing(Path(target)) as file:
                yield file
            return
        # An object store's put is atomic, but closing a half-written stream puts what there is.
        with tempfile.TemporaryDirectory() as folder:
            with Path(folder, "file").open("wb") as file:
                yield file
            self.filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.filesystem.put_file(f"{folder}/file", target)

    def link_caches(self, derived: Workspace) -> None:
        """Let a workspace inside this one use its answers, its vectors and its imports.

        On a local disk only; elsewhere the derived workspace has caches of its own.

        Args:
            derived: Gets links to the caches.
        """
        if not self.is_local:
            return
        for folder in _CACHES:
            shared, own = Path(self.path(folder)), Path(derived.path(folder))
            atomic.make_folder(shared)
            atomic.make_folder(own.parent)
            if not own.exists():
                own.symlink_to(os.path.relpath(shared, own.parent), target_is_directory=True)

    # --- tables --------------------------------------------------------------------------------

    def write_table(
        self,
        table: Table,
        data: pa.Table,
        *,
        part: str = "part-00000",
        row_group_rows: int = ROW_GROUP_ROWS,
    ) -> None:
        """Write one Parquet file of a table.

        Args:
            table: Which table.
            data: Rows; columns in any order, cast to the table's schema.
            part: File name without ending; an existing file of that name is replaced.
            row_group_rows: Rows of a row group.

        Raises:
            DataError: A column is missing, has another type, or holds nulls that it must not.
            EngineError: The storage refuses, as a full disk does.
        """
        if table.schema is not None:
            data = conform(data, table.schema, where=self.path(table.path))
        with self._storage("written"), self.writing(table.path, f"{part}.parquet") as sink:
            pq.write_table(data, sink, row_group_size=row_group_rows)

    def has_table(self, table: Table) -> bool:
        """Whether at least one file of the table exists."""
        return bool(self.parts(table))

    def read_table(self, table: Table, *, columns: list[str] | None = None) -> pa.Table:
        """Read a table whole, parts in name order.

        Args:
            table: Which table.
            columns: Subset of the columns; None reads all.

        Raises:
            DataError: The table is missing, damaged, or has another schema.
        """
        parts = self.parts(table)
        if not parts:
            raise DataError(
                "the table does not exist",
                where=self.path(table.path),
                todo=f"Run `reki {table.stage}` first.",
            )
        with reading(table, self.path(table.path)):
            data = pad.dataset(parts, filesystem=self.arrow_filesystem, format="parquet").to_table(
                columns=columns
            )
        if table.schema is None:
            return data
        expected = table.schema
        if columns is not None:
            expected = pa.schema([table.schema.field(name) for name in columns])
        return conform(data, expected, where=self.path(table.path))

    def parts(self, table: Table) -> list[str]:
        """Paths of a table's files, in name order; none where there is no such table."""
        folder = self.path(table.path)
        with self._storage("read"):
            if not self.filesystem.exists(folder):
                return []
            found = self.filesystem.ls(folder, detail=False)
        return sorted(path for path in found if path.endswith(".parquet"))

    def identify(self, table: Table) -> list[tuple[str, int, str]]:
        """Name, size and time of change of a table's files: equal where it is unchanged."""
        found = []
        for part in self.parts(table):
            with self._storage("read"):
                info = self.filesystem.info(part)
            changed = info.get("mtime") or info.get("ETag") or info.get("LastModified") or ""
            found.append((part.rpartition("/")[2], int(info["size"]), str(changed)))
        return found

    # --- documents -----------------------------------------------------------------------------

    def write_json(self, relative: str, content: Any) -> None:
        """Write a JSON document so that a reader sees the old or the new one, never half."""
        self.write_text(relative, strict_json(content, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, relative: str, content: str) -> None:
        """Write a text document so that a reader sees the old or the new one, never half."""
        with self._storage("written"), self.writing(relative) as sink:
            sink.write(content.encode())

    def read_json(self, relative: str) -> Any:
        """Read a JSON document.

        Raises:
            DataError: It is missing or damaged.
        """
        try:
            with self._storage("read"):
                content = self.filesystem.cat_file(self.path(relative))
            return json.loads(content)
        except FileNotFoundError as error:
            raise DataError(
                "the document does not exist",
                where=self.path(relative),
                todo=f"Run `reki {relative.partition('/')[0].removesuffix('.json')}` first.",
            ) from error
        except ValueError as error:
            raise DataError(
                f"the document is damaged: {error}",
                where=self.path(relative),
                todo="Delete it and run the stage that writes it again.",
            ) from error

    # --- manifest ------------------------------------------------------------------------------

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
        """Write a stage's entry: from now on the stage is done."""
        if not entry.skipped:
            entry = dataclasses.replace(entry, finished_at=time.time())
        self._write_manifest({**self.stages(), stage: entry})

    def forget(self, stage: str) -> None:
        """Remove a stage's entry: from now on the stage is not done."""
        self._write_manifest({k: v for k, v in self.stages().items() if k != stage})

    def _write_manifest(self, entries: dict[str, StageEntry]) -> None:
        stages = {name: dataclasses.asdict(entry) for name, entry in entries.items()}
        self.write_json(MANIFEST, {"format": MANIFEST_FORMAT, "stages": stages})

    # --- writing -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def replacing(self, stage: str, tables: Sequence[Table] = ()) -> Iterator[Workspace]:
        """Scratch workspace whose `<stage>/` folder takes the old one's place on success.

        On an error the scratch is removed and the old output stays as it was.

        Args:
            stage: Whose output is replaced; its manifest entry is removed.
            tables: Replace only these tables of the stage; empty replaces its whole folder.
        """
        scratch = Workspace(f"{self.location}/.scratch-{stage}")
        scratch.remove("")
        folders = [table.path for table in tables] or [stage]
        with self._storage("written"):
            for folder in folders:
                self.filesystem.makedirs(scratch.path(folder), exist_ok=True)
        try:
            yield scratch
            self.forget(stage)
            for folder in folders:
                self.remove(folder)
                with self._storage("written"):
                    if self.is_local:
                        atomic.move(Path(scratch.path(folder)), Path(self.path(folder)))
                        continue
                    self.filesystem.mv(scratch.path(folder), self.path(folder), recursive=True)
        finally:
            scratch.remove("")

    def remove(self, relative: str) -> None:
        """Remove a file or folder below the workspace, if it is there; empty removes all."""
        target = self.path(relative) if relative else self._base
        with self._storage("written"):
            if self.filesystem.exists(target):
                self.filesystem.rm(target, recursive=True)

    @contextlib.contextmanager
    def _storage(self, done: str) -> Iterator[None]:
        """Turn errors of the storage into one that says what to do.

        Missing files stay `FileNotFoundError` where they are read: that is the caller's to judge.
        """
        try:
            yield
        except Exception as error:
            known = (RekiError, FileNotFoundError) if done == "read" else RekiError
            # Remote filesystems raise errors of their own libraries.
            if isinstance(error, known) or (self.is_local and not isinstance(error, OSError)):
                raise
            raise EngineError(
                f"the workspace cannot be {done}: {str(error) or type(error).__name__}",
                where=self.location,
                todo="Free some space, check the rights of this folder or the access to its "
                "storage, or give another --workspace.",
            ) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second run out of a local workspace.

        Raises:
            ConfigError: Another process runs on this workspace.
            EngineError: The workspace cannot be written.
        """
        if not self.is_local:  # object stores know no locks; runs there get a folder of their own
            yield
            return
        lock = FileLock(self.path(".lock"))
        with self._storage("written"):
            atomic.make_folder(Path(self._base))
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise ConfigError(
                    "another run is working on this workspace",
                    where=self.location,
                    todo="Wait for it (`reki status`), or give this run another --workspace.",
                ) from error
        try:
            yield
        finally:
            lock.release()


@contextlib.contextmanager
def reading(table: Table, where: str) -> Iterator[None]:
    """Turn a reader's errors into one that says which table is damaged.

    Args:
        table: What is read.
        where: Its file or folder.

    Raises:
        DataError: The block failed to read.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"the table is damaged: {error}",
            where=where,
            todo=f"Run `reki {table.stage} --force {table.stage}` to write it anew.",
        ) from error


def conform(data: pa.Table, schema: pa.Schema, *, where: str) -> pa.Table:
    """Bring rows into a table's schema.

    Args:
        data: Rows with at least the schema's columns.
        schema: What the table promises.
        where: Place for the error message.

    Raises:
        DataError: A column is missing, has another type, or holds nulls that it must not.
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
