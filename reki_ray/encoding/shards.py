"""Shards: a share of a side's ids whose texts one task gathers from the rows it needs.

Neither a process nor the driver ever holds all texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from reki_ray import schema
from reki_ray.config import PromptsConfig
from reki_ray.encoding.texts import item_texts, user_texts
from reki_ray.schema import (
    CLUSTER_ID,
    FACTOR,
    ID,
    OF_CLUSTER,
    OF_ONE,
    SUBJECT_ID,
    SUBJECT_KIND,
    TEXT,
    USER_ID,
    WHOLE_ANSWER,
    Side,
    Source,
)
from reki_ray.shares import (
    ENTITIES,
    RowGroup,
    read_row_group,
    row_groups,
    rows_of,
    visible_to_prompts,
)
from reki_ray.workspace import Workspace

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
        seconds: The answer of the id's cluster beside its own; None where there are not both.
    """

    texts: list[str | None]
    sources: list[Source]
    seconds: list[str | None]


def cut_into_shards(workspace: Workspace, side: Side) -> list[Shard]:
    """All ids of a side in the order of its table, cut into shards.

    Raises:
        DataError: The table is missing or damaged.
    """
    table, _ = ENTITIES[side]
    return [Shard(side, group.path, group.number) for group in row_groups(workspace, table)]


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
    rows = read_row_group(workspace, table, RowGroup(shard.path, shard.row_group))
    ids: list[str] = rows[key].to_pylist()
    if shard.side == "items":
        return ids, item_texts(rows, limits)
    visible = visible_to_prompts(workspace, rows[USER_ID].combine_chunks())
    return ids, user_texts(rows, visible.interactions, visible.items, limits)


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
    clusters = rows_of(workspace, schema.CLUSTERS[side], ID, keys, [ID, CLUSTER_ID])
    cluster_of = dict(zip(clusters[ID].to_pylist(), clusters[CLUSTER_ID].to_pylist(), strict=True))
    # Kinds share no namespace: an id may also be the name of a cluster, so the kind decides.
    subjects = pc.unique(pa.chunked_array([keys, *clusters[CLUSTER_ID].chunks]))
    columns = [SUBJECT_KIND, SUBJECT_ID, FACTOR, TEXT]
    answers = answer_texts(rows_of(workspace, schema.KNOWLEDGE, SUBJECT_ID, subjects, columns))
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
    seconds: list[str | None] = []
    for key in ids:
        own = answers.get((OF_ONE[side], key))
        shared = answers.get((OF_CLUSTER[side], cluster_of.get(key, "")))
        texts.append(own or shared)
        sources.append("individual" if own else "cluster" if shared else "fallback")
        seconds.append(shared if own else None)
    return Knowledge(texts, sources, seconds)
