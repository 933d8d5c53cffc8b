"""Shards: a share of a side's ids whose texts one task gathers from the rows it needs.

Neither a process nor the driver ever holds all texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pad
import pyarrow.parquet as pq

from reki_ray import schema
from reki_ray.config import PromptsConfig
from reki_ray.encoding.texts import item_texts, user_texts
from reki_ray.histories import before_cut
from reki_ray.schema import (
    ATTRIBUTES,
    CLUSTER_ID,
    FACTOR,
    ID,
    ITEM_ID,
    SUBJECT_ID,
    SUBJECT_KIND,
    TEXT,
    TITLE,
    USER_ID,
    WHOLE_ANSWER,
    Side,
    Source,
    SubjectKind,
    Table,
)
from reki_ray.workspace import Workspace, conform, reading

ENTITIES: Final[dict[Side, tuple[Table, str]]] = {
    "users": (schema.USERS, USER_ID),
    "items": (schema.ITEMS, ITEM_ID),
}
_OWN: Final[dict[Side, SubjectKind]] = {"users": "user", "items": "item"}
_SHARED: Final[dict[Side, SubjectKind]] = {"users": "user_cluster", "items": "item_cluster"}

Subject = tuple[str, str]
"""Kind and id of what an answer is about."""


@dataclass(frozen=True)
class Shard:
    """A share of a side: one row group of its table.

    Attributes:
        side: Users or items.
        path: Parquet file.
        row_group: Row group of that file.
    """

    side: Side
    path: str
    row_group: int


class Knowledge(NamedTuple):
    """What is known about each id.

    Attributes:
        texts: The answer that stands for the id, None where there is none.
        sources: How near that answer is to the id.
    """

    texts: list[str | None]
    sources: list[Source]


def cut_into_shards(workspace: Workspace, side: Side) -> list[Shard]:
    """All ids of a side in the order of its table, cut into shards.

    Raises:
        DataError: The table is missing or damaged.
    """
    table, _ = ENTITIES[side]
    workspace.read_table(table, columns=[])  # where it is missing, its own message
    found = []
    for path in workspace.parts(table):
        with reading(table, path), workspace.filesystem.open(path, "rb") as source:
            groups = pq.ParquetFile(source).num_row_groups
        found += [Shard(side, path, group) for group in range(groups)]
    return found


def source_texts(
    workspace: Workspace, shard: Shard, limits: PromptsConfig
) -> tuple[list[str], list[str]]:
    """Ids of a shard and their source texts, in row order.

    Only interactions before a user's cut are read, so that no text shows what a sample is about
    to predict.

    Args:
        workspace: Holds the tables of stage ingest.
        shard: The share.
        limits: Longest title, description and history.

    Raises:
        DataError: A table is missing or damaged.
    """
    table, key = ENTITIES[shard.side]
    assert table.schema is not None  # items and users have a fixed schema
    with reading(table, shard.path), workspace.filesystem.open(shard.path, "rb") as source:
        rows = pq.ParquetFile(source).read_row_group(shard.row_group)
    rows = conform(rows, table.schema, where=shard.path)
    ids: list[str] = rows[key].to_pylist()
    if shard.side == "items":
        return ids, item_texts(rows, limits)
    users = rows[USER_ID].combine_chunks()
    visible = before_cut(
        _rows_of(workspace, schema.INTERACTIONS, USER_ID, users),
        _rows_of(workspace, schema.CUTS, USER_ID, users),
    )
    seen = pc.unique(visible[ITEM_ID])
    items = _rows_of(workspace, schema.ITEMS, ITEM_ID, seen, [ITEM_ID, TITLE, ATTRIBUTES])
    return ids, user_texts(rows, visible, items, limits)


def knowledge_of(workspace: Workspace, side: Side, ids: Sequence[str]) -> Knowledge:
    """The nearest answer for each id: its own, its cluster's, or none.

    Args:
        workspace: Holds the output of stages cluster and extract.
        side: Users or items.
        ids: N ids.

    Raises:
        DataError: A table is missing or damaged.
    """
    keys = pa.array(ids, pa.string())
    clusters = _rows_of(workspace, schema.CLUSTERS[side], ID, keys, [ID, CLUSTER_ID])
    cluster_of = dict(zip(clusters[ID].to_pylist(), clusters[CLUSTER_ID].to_pylist(), strict=True))
    # Kinds share no namespace: an id may also be the name of a cluster, so the kind decides.
    subjects = pc.unique(pa.chunked_array([keys, *clusters[CLUSTER_ID].chunks]))
    columns = [SUBJECT_KIND, SUBJECT_ID, FACTOR, TEXT]
    answers = answer_texts(_rows_of(workspace, schema.KNOWLEDGE, SUBJECT_ID, subjects, columns))
    return find_knowledge(side, ids, cluster_of, answers)


def answer_texts(answers: pa.Table) -> dict[Subject, str]:
    """Text of every subject that has a non-blank answer.

    Args:
        answers: Rows of `KNOWLEDGE_SCHEMA`. Where a subject has a whole answer it counts,
            otherwise its factors, each on a line, in the order of their names.
    """
    parts: dict[Subject, dict[str, str]] = {}
    columns = (answers[name].to_pylist() for name in (SUBJECT_KIND, SUBJECT_ID, FACTOR, TEXT))
    for kind, subject, factor, text in zip(*columns, strict=True):
        if text.strip():
            parts.setdefault((kind, subject), {})[factor] = text
    return {
        subject: factors.get(WHOLE_ANSWER) or "\n".join(factors[name] for name in sorted(factors))
        for subject, factors in parts.items()
    }


def find_knowledge(
    side: Side,
    ids: Sequence[str],
    cluster_of: Mapping[str, str],
    answers: Mapping[Subject, str],
) -> Knowledge:
    """Nearest answer for each id: its own, its cluster's, or none.

    Args:
        side: Users or items.
        ids: N ids.
        cluster_of: Cluster of each id.
        answers: Text of every answered subject.
    """
    texts: list[str | None] = []
    sources: list[Source] = []
    for key in ids:
        own = answers.get((_OWN[side], key))
        shared = answers.get((_SHARED[side], cluster_of.get(key, "")))
        texts.append(own or shared)
        sources.append("individual" if own else "cluster" if shared else "fallback")
    return Knowledge(texts, sources)


def _rows_of(
    workspace: Workspace,
    table: Table,
    key: str,
    ids: pa.Array | pa.ChunkedArray,
    columns: list[str] | None = None,
) -> pa.Table:
    """Rows of a table with these ids; ids that it lacks are left out."""
    assert table.schema is not None  # all tables that are read here have a fixed schema
    fields = (
        table.schema if columns is None else pa.schema([table.schema.field(c) for c in columns])
    )
    if not len(ids):
        return fields.empty_table()
    # The range lets the reader pass over row groups; the tables are sorted by id or nearly so.
    bounds = pc.min_max(ids).as_py()
    within = (pc.field(key) >= bounds["min"]) & (pc.field(key) <= bounds["max"])
    with reading(table, workspace.path(table.path)):
        rows = pad.dataset(
            workspace.parts(table), filesystem=workspace.arrow_filesystem, format="parquet"
        ).to_table(filter=within & pc.field(key).isin(ids), columns=columns)
    return conform(rows, fields, where=workspace.path(table.path))
