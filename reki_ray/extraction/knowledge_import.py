"""Tables of imported knowledge.

Each source and kind has one file under `extract/imported/`, which the next import of the same
source replaces. Extraction skips subjects with imported knowledge.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reki_ray import schema
from reki_ray.config import RekiConfig
from reki_ray.core import atomic
from reki_ray.core.workspace import Workspace
from reki_ray.errors import DataError
from reki_ray.schema import SubjectKind, Table

IMPORTED: Final = Table("extract/imported", schema.KNOWLEDGE_SCHEMA)
"""One file per source and kind; within a file each subject and factor once."""

ENGINE_NAME: Final = "imported"
"""Value of `engine` for imported knowledge."""

_KEY: Final = [schema.SUBJECT_KIND, schema.SUBJECT_ID, schema.FACTOR]
_TIME: Final = b"reki.imported_at_ns"
_REVISION: Final = b"reki.revision"
_BATCH_ROWS: Final = 65_536

Row = tuple[str, str, str]
"""Id, factor and text."""


def imported_address(kind: SubjectKind, subject_id: str, source: str, revision: str) -> str:
    """Value of column `prompt_hash` for imported knowledge: 64 hexadecimal digits."""
    content = json.dumps(["imported", kind, subject_id, source, revision])
    return hashlib.sha256(content.encode()).hexdigest()


def read_imported(workspace: Workspace, columns: list[str] | None = None) -> pa.Table:
    """Read imported knowledge, oldest import first; the latest of each subject and factor counts.

    Raises:
        DataError: A file is damaged.
    """
    wanted = columns or schema.KNOWLEDGE_SCHEMA.names
    read = [name for name in schema.KNOWLEDGE_SCHEMA.names if name in {*_KEY, *wanted}]
    tables = [pa.schema([schema.KNOWLEDGE_SCHEMA.field(name) for name in read]).empty_table()]
    for part in sorted(_parts(workspace), key=lambda part: part.imported_at):
        with _opened(workspace, part.path) as file:
            tables.append(file.read(columns=read).replace_schema_metadata(None))
    rows = pa.concat_tables(tables)
    if len(tables) > 2:  # a single file holds no key twice
        rows = rows.take(pa.array(_last_rows(rows, _KEY)))
    return rows.select(wanted)


def identify(config: RekiConfig) -> list[list[Any]]:
    """JSON-ready identity of the imported files of a run: name, size and revision of each.

    Raises:
        DataError: A file is damaged.
    """
    workspace = Workspace(config.root)
    return [
        [Path(part.path).name, int(workspace.filesystem.size(part.path)), part.revision]
        for part in _parts(workspace)
    ]


def write_imported(
    workspace: Workspace,
    kind: SubjectKind,
    source: str,
    revision: str,
    batches: Iterable[list[Row]],
) -> tuple[int, list[str]]:
    """Atomically replace the knowledge of one source and kind; writes nothing if there are no rows.

    Args:
        batches: Rows; the last of several texts for the same subject and factor counts.

    Returns:
        Number of rows written, and ids of some of the replaced duplicates.

    Raises:
        DataError: Raised by `batches`; nothing is written.
    """
    target = workspace.path(IMPORTED.path, f"{_part_name(kind, source)}.parquet")
    imported_at = _imported_at(workspace, target, revision)
    workspace.filesystem.makedirs(workspace.path(IMPORTED.path), exist_ok=True)
    # In the target's folder, so that a rename is atomic; an object store's put is atomic.
    beside = workspace.path(IMPORTED.path) if workspace.is_local else None
    with tempfile.TemporaryDirectory(prefix=".import-", dir=beside) as folder:
        drawn, final = Path(folder, "drawn.parquet"), Path(folder, "final.parquet")
        columns = _Columns(kind, source, revision, imported_at)
        with pq.ParquetWriter(drawn, columns.schema) as writer:
            for batch in batches:
                writer.write_table(columns.table(batch))
        keys = pq.read_table(drawn, columns=[schema.SUBJECT_ID, schema.FACTOR])
        kept = _last_rows(keys, [schema.SUBJECT_ID, schema.FACTOR])
        last = np.zeros(keys.num_rows, dtype=bool)
        last[kept] = True
        repeated = keys[schema.SUBJECT_ID].take(np.flatnonzero(~last)[:100]).to_pylist()
        if len(kept):
            _copy(drawn, final, columns.schema, last)
            if workspace.is_local:
                atomic.move(final, Path(target))
            else:
                workspace.filesystem.put_file(str(final), target)
        return len(kept), repeated


# --- files ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Part:
    path: str
    imported_at: int
    revision: str


@dataclass(frozen=True)
class _Columns:
    """Builds rows of the table."""

    kind: SubjectKind
    source: str
    revision: str
    imported_at: int

    @property
    def schema(self) -> pa.Schema:
        return schema.KNOWLEDGE_SCHEMA.with_metadata(
            {_TIME: str(self.imported_at), _REVISION: self.revision}
        )

    def table(self, rows: list[Row]) -> pa.Table:
        ids, factors, texts = zip(*rows, strict=True) if rows else ((), (), ())
        count = len(rows)
        columns = {
            schema.SUBJECT_KIND: [self.kind] * count,
            schema.SUBJECT_ID: ids,
            schema.FACTOR: factors,
            schema.TEXT: texts,
            schema.PROMPT_HASH: [
                imported_address(self.kind, key, self.source, self.revision) for key in ids
            ],
            schema.MODEL: [self.source] * count,
            schema.REVISION: [self.revision] * count,
            schema.ENGINE: [ENGINE_NAME] * count,
            schema.PROMPT_TOKENS: [0] * count,
            schema.GENERATED_TOKENS: [0] * count,
            schema.FINISH_REASON: [None] * count,
            schema.CREATED_AT: [self.imported_at // 10**9] * count,
        }
        return pa.table(columns, schema=self.schema)


def _part_name(kind: SubjectKind, source: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", source)[:40]
    return f"{kind}-{readable}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def _parts(workspace: Workspace) -> Iterator[_Part]:
    for path in workspace.parts(IMPORTED):
        with _opened(workspace, path) as file:
            metadata = file.schema_arrow.metadata or {}
        yield _Part(path, int(metadata.get(_TIME, b"0")), metadata.get(_REVISION, b"").decode())


def _imported_at(workspace: Workspace, target: str, revision: str) -> int:
    """Nanoseconds since the epoch; the time of the last import if this one changes nothing."""
    latest = max(_parts(workspace), key=lambda part: part.imported_at, default=None)
    if latest is not None and (latest.path, latest.revision) == (target, revision):
        return latest.imported_at
    return max(time.time_ns(), 0 if latest is None else latest.imported_at + 1)


def _copy(drawn: Path, final: Path, fields: pa.Schema, kept: np.ndarray) -> None:
    start = 0
    with pq.ParquetFile(drawn) as source, pq.ParquetWriter(final, fields) as writer:
        for batch in source.iter_batches(_BATCH_ROWS):
            mask = pa.array(kept[start : start + batch.num_rows])
            writer.write_batch(batch.filter(mask).replace_schema_metadata(fields.metadata))
            start += batch.num_rows


def _last_rows(rows: pa.Table, key: list[str]) -> np.ndarray:
    """Index of the last row of every key, ascending."""
    index = "__row"
    numbered = rows.select(key).append_column(index, pa.array(np.arange(rows.num_rows)))
    last = numbered.group_by(key).aggregate([(index, "max")])[f"{index}_max"]
    rows_kept: np.ndarray = np.sort(last.to_numpy())
    return rows_kept


@contextlib.contextmanager
def _opened(workspace: Workspace, path: str) -> Iterator[pq.ParquetFile]:
    try:
        with workspace.filesystem.open(path, "rb") as source:
            yield pq.ParquetFile(source)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"the imported knowledge is damaged: {error}",
            where=path,
            todo="Delete this file, and import its source again with `reki import-knowledge`.",
        ) from error
