"""Batches of new events: checked, stored once, and merged with the run's own data.

    <workspace>/live/inbox/{interactions,items,users}/000001-<content>.parquet

A repeated batch is stored once, and an event in two batches counts once, so that a sender may
repeat what it is not sure of.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reki_ray import schema
from reki_ray.config import ColumnMapping, DataConfig, Dialect, FileSource
from reki_ray.core import atomic
from reki_ray.core.workspace import Workspace, conform
from reki_ray.data import delimited, parquet
from reki_ray.data.leak_guard import before_cut
from reki_ray.data.quarantine import CheckedTable, enforce_threshold, save_quarantine
from reki_ray.data.raw_tables import TableKind, identify_files
from reki_ray.data.samples import sort_interactions
from reki_ray.data.sources.files import SUFFIXES, Files, text_format
from reki_ray.data.validation import (
    bare_users,
    check_interactions,
    check_items,
    check_users,
    repeated,
)
from reki_ray.errors import ConfigError, DataError
from reki_ray.schema import ATTRIBUTES, CUT, CUTS_SCHEMA, ITEM_ID, USER_ID, Table

INBOX: Final[dict[TableKind, Table]] = {
    "interactions": Table("inbox/interactions", schema.INTERACTIONS_SCHEMA),
    "items": Table("inbox/items", schema.ITEMS_SCHEMA),
    "users": Table("inbox/users", schema.USERS_SCHEMA),
}
LIVE: Final = "live"
"""Folder of the workspace for `reki update`."""
QUARANTINE: Final = Table("inbox/quarantine", schema.QUARANTINE_SCHEMA)

_DIGEST_CHARS = 16
_NAME: Final = re.compile(rf"[0-9]{{6,}}-[0-9a-f]{{{_DIGEST_CHARS}}}")
"""Name of a batch; copies and backups next to the batches have others."""


@dataclass(frozen=True)
class BatchFiles:
    """Parquet or CSV files of a batch, each optional."""

    interactions: Path | None = None
    items: Path | None = None
    users: Path | None = None


@dataclass(frozen=True)
class KeptBatch:
    """A stored batch: its number and digest, and its usable and unusable rows."""

    name: str
    is_new: bool
    events: int
    quarantined: int


@dataclass(frozen=True)
class Merged:
    """The run's own data merged with all batches.

    Attributes:
        visible: Interactions for prompts: those before the run's cutoffs, and all events of
            batches, which never become samples.
        history: All interactions, for the served profiles.
        events: Events of batches that are not in the run's own data.
    """

    users: pa.Table
    items: pa.Table
    visible: pa.Table
    history: pa.Table
    events: int


class Inbox:
    """The batches, in workspace `live`, of the run in workspace `base`."""

    def __init__(self, base: Workspace, live: Workspace) -> None:
        self._base = base
        self._live = live

    def batches(self) -> list[str]:
        """Names of the batches, oldest first."""
        parts = self._live.parts(INBOX["interactions"])
        return [name for part in parts if _NAME.fullmatch(name := Path(part).stem)]

    def known_items(self) -> pa.ChunkedArray:
        """Ids of the items of the run and of its batches."""
        began = self._base.read_table(schema.ITEMS, columns=[ITEM_ID])
        return pa.concat_tables([began, self._rows("items").select([ITEM_ID])])[ITEM_ID]

    def add(self, files: BatchFiles, config: DataConfig) -> KeptBatch:
        """Check and store a batch; not safe for concurrent callers.

        Columns are named as in `data.source.columns`, or as in the tables.

        Raises:
            DataError: A file is missing or damaged, lacks a column, or has too many unusable rows.
        """
        if self._live.is_local:  # objects are put whole
            for table in INBOX.values():
                atomic.remove_scratch(self._live.local_path(table.path))
        paths = [path for path in (files.interactions, files.items, files.users) if path]
        content = json.dumps(identify_files(paths), sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_CHARS]
        before = self.batches()
        name = next((name for name in before if name.endswith(digest)), None)
        if name is not None:
            with contextlib.suppress(DataError):  # a stored part is damaged
                for kind in INBOX:
                    self._read(kind, {name})
                return KeptBatch(name, is_new=False, events=0, quarantined=0)
            self._live.remove(f"{INBOX['interactions'].path}/{name}.parquet")  # unmarks it
        tables = self._checked(files, config)
        enforce_threshold(self._live, tables, config)
        if name is None:
            number = max((int(name.partition("-")[0]) for name in before), default=0) + 1
            name = f"{number:06d}-{digest}"
        save_quarantine(self._live, tables, QUARANTINE, part=name)
        for kind in ("users", "items"):
            if kind in tables:
                self._live.write_table(INBOX[kind], tables[kind].rows, part=name)
        events = schema.INTERACTIONS_SCHEMA.empty_table()
        if "interactions" in tables:
            events = tables["interactions"].rows
        self._live.write_table(INBOX["interactions"], events, part=name)  # last: the batch counts
        quarantined = sum(len(checked.rejected) for checked in tables.values())
        return KeptBatch(name, is_new=True, events=len(events), quarantined=quarantined)

    def merged(self) -> Merged:
        """Merge the run's own data with all batches."""
        began = self._base.read_table(schema.INTERACTIONS)
        events = self._rows("interactions")
        # Of equal events the run's own counts, else the latest batch's, as for items and users.
        twice = repeated(pa.concat_tables([began, events[::-1]]))[len(began) :]
        fresh = events.filter(pa.array(~twice[::-1]))
        seen = before_cut(began, self._base.read_table(schema.CUTS)).select(began.column_names)
        items = _latest(self._base.read_table(schema.ITEMS), self._rows("items"), ITEM_ID)
        users = _latest(self._base.read_table(schema.USERS), self._rows("users"), USER_ID)
        active = pc.unique(fresh[USER_ID])
        named = pc.is_in(active, value_set=users[USER_ID].combine_chunks())
        return Merged(
            users=pa.concat_tables([users, bare_users(active.filter(pc.invert(named)))]),
            items=items,
            visible=sort_interactions(pa.concat_tables([seen, fresh])),
            history=sort_interactions(pa.concat_tables([began, fresh])),
            events=len(fresh),
        )

    def holds(self, keys: pa.Table) -> npt.NDArray[np.bool_]:
        """Mask (N,): whether a batch has an event of the user, item and time of a key."""
        held = self._rows("interactions").select(keys.column_names)
        return repeated(pa.concat_tables([held, keys.cast(held.schema)]))[len(held) :]

    def _rows(self, kind: TableKind) -> pa.Table:
        return self._read(kind, set(self.batches()))

    def _read(self, kind: TableKind, batches: Set[str]) -> pa.Table:
        """Rows of some batches, which may lack tables."""
        table = INBOX[kind]
        assert table.schema is not None
        tables = [table.schema.empty_table()]
        for part in self._live.parts(table):
            if Path(part).stem not in batches:  # of an interrupted batch
                continue
            try:
                tables.append(conform(self._read_part(part), table.schema, where=part))
            except (pa.ArrowException, OSError) as error:
                raise DataError(
                    f"a stored batch is damaged: {error}",
                    where=part,
                    todo="Give the same batch to `reki update` again to rewrite it.",
                ) from error
        return pa.concat_tables(tables)

    def _read_part(self, path: str) -> pa.Table:
        with self._live.filesystem.open(path, "rb") as file:
            return pq.ParquetFile(file).read()

    def _checked(self, files: BatchFiles, config: DataConfig) -> dict[TableKind, CheckedTable]:
        tables: dict[TableKind, CheckedTable] = {}
        known = self.known_items()
        if files.items:
            tables["items"] = check_items(self._open(files.items, "items", config).items())
            known = pa.chunked_array([*known.chunks, *tables["items"].rows[ITEM_ID].chunks])
        if files.users:
            mapped = self._open(files.users, "users", config).users()
            assert mapped is not None
            tables["users"] = check_users(mapped)
        if files.interactions:
            source = self._open(files.interactions, "interactions", config)
            tables["interactions"] = check_interactions(
                source.interactions(), config, source.timestamp_unit, users=None, items=known
            )
        return tables

    def _open(self, path: Path, kind: TableKind, config: DataConfig) -> Files:
        """Open a file under the run's own mapping, or the tables' names as far as it has them."""
        suffix = path.name.lower()
        form = next((form for form, ends in SUFFIXES.items() if suffix.endswith(ends)), None)
        if form is None:
            raise ConfigError(
                f"{path.name} is neither Parquet nor CSV",
                where=str(path.absolute()),
                todo=f"Give a file whose name ends in {', '.join(sum(SUFFIXES.values(), ()))}.",
            )
        source, dialect = config.source, Dialect()
        if isinstance(source, FileSource):
            columns = source.columns
            dialect = source.dialect if source.kind == form else dialect
        else:
            layout = text_format(dialect)
            is_text = form == "csv"
            present = delimited.read_header(path, layout) if is_text else parquet.read_header(path)
            columns = ColumnMapping(
                rating="rating" if "rating" in present else None,
                text="text" if "text" in present else None,
                item_attributes=self._attributes(schema.ITEMS, present) if kind == "items" else (),
                user_attributes=self._attributes(schema.USERS, present) if kind == "users" else (),
            )
        places = dict.fromkeys(INBOX, str(path))
        return Files(FileSource(kind=form, columns=columns, dialect=dialect, **places))

    def _attributes(self, table: Table, present: Sequence[str]) -> tuple[str, ...]:
        """Attributes of the run's table with a column in a file."""
        rows = self._base.read_table(table, columns=[ATTRIBUTES])[ATTRIBUTES]
        names = {name for pairs in rows.to_pylist() for name, _ in pairs or ()}
        return tuple(sorted(names & set(present)))


def write_round(merged: Merged, workspace: Workspace) -> None:
    """Write the tables of stage ingest for later stages; prompts may see all interactions."""
    counts = pc.value_counts(merged.visible[USER_ID])
    cuts = pa.table(
        {USER_ID: counts.field("values"), CUT: counts.field("counts").cast(pa.int32())},
        schema=CUTS_SCHEMA,
    )
    with workspace.replacing("ingest") as scratch:
        scratch.write_table(schema.INTERACTIONS, merged.visible)
        scratch.write_table(schema.ITEMS, merged.items)
        scratch.write_table(schema.USERS, merged.users)
        scratch.write_table(schema.CUTS, cuts)


def _latest(began: pa.Table, added: pa.Table, key: str) -> pa.Table:
    """Latest row of each id, in order of first appearance."""
    rows = pa.concat_tables([began, added])
    last = {identifier: row for row, identifier in enumerate(rows[key].to_pylist())}
    return rows.take(pa.array(list(last.values()), pa.int64()))
