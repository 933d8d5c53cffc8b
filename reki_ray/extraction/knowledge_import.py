"""Tables of imported knowledge.

Each source and kind has one file under `extract/imported/`, which the next import of the same
source replaces. Extraction skips subjects with imported knowledge.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reki_ray import schema
from reki_ray.config import RekiConfig
from reki_ray.core.workspace import ROW_GROUP_ROWS, Workspace
from reki_ray.errors import DataError
from reki_ray.schema import SubjectKind, Table

IMPORTED: Final = Table("extract/imported", schema.KNOWLEDGE_SCHEMA)
"""One file per source and kind; within a file each subject and factor once."""

ENGINE_NAME: Final = "imported"
"""Value of `engine` for imported knowledge."""

_KEY: Final = [schema.SUBJECT_KIND, schema.SUBJECT_ID, schema.FACTOR]
_TIME: Final = b"reki.imported_at_ns"
_REVISION: Final = b"reki.revision"

Row = tuple[str, str, str]
"""Id, factor and text."""


def imported_address(kind: SubjectKind, subject_id: str, source: str, revision: str) -> str:
    """Value of column `prompt_hash` for imported knowledge: 64 hexadecimal digits."""
    content = json.dumps(["imported", kind, subject_id, source, revision])
    return hashlib.sha256(content.encode()).hexdigest()


def read_imported(workspace: Workspace, columns: list[str] | None = None) -> pa.Table:
    """Read imported knowledge, oldest first; the latest of each subject and factor counts."""
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
    """JSON-ready identity of the imported files of a run: name, size and revision of each."""
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
    name = f"{_part_name(kind, source)}.parquet"
    imported_at = _imported_at(workspace, workspace.path(IMPORTED.path, name), revision)
    metadata = {_TIME: str(imported_at), _REVISION: revision}
    constants = {
        schema.SUBJECT_KIND: kind,
        schema.MODEL: source,
        schema.REVISION: revision,
        schema.ENGINE: ENGINE_NAME,
        schema.PROMPT_TOKENS: 0,
        schema.GENERATED_TOKENS: 0,
        schema.FINISH_REASON: None,
        schema.CREATED_AT: imported_at // 10**9,
    }
    tables = [schema.KNOWLEDGE_SCHEMA.empty_table()]
    for batch in batches:
        ids, factors, texts = zip(*batch, strict=True) if batch else ((), (), ())
        columns = {
            schema.SUBJECT_ID: ids,
            schema.FACTOR: factors,
            schema.TEXT: texts,
            schema.PROMPT_HASH: [imported_address(kind, key, source, revision) for key in ids],
            **{column: [value] * len(batch) for column, value in constants.items()},
        }
        tables.append(pa.table(columns, schema=schema.KNOWLEDGE_SCHEMA))
    rows = pa.concat_tables(tables)
    kept = np.zeros(rows.num_rows, dtype=bool)
    kept[_last_rows(rows, _KEY)] = True
    if kept.any():
        written = rows.filter(pa.array(kept)).replace_schema_metadata(metadata)
        with workspace.guarded("written"), workspace.writing(IMPORTED.path, name) as sink:
            pq.write_table(written, sink, row_group_size=ROW_GROUP_ROWS)
    repeated: list[str] = rows[schema.SUBJECT_ID].take(np.flatnonzero(~kept)[:100]).to_pylist()
    return int(kept.sum()), repeated


# --- files ---------------------------------------------------------------------------------------
class _Part(NamedTuple):
    path: str
    imported_at: int
    revision: str


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
