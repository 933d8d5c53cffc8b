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
from reki_ray.core.tables import ENTITIES, RowGroup, read_row_group, row_groups, rows_of
from reki_ray.core.workspace import Workspace
from reki_ray.data.leak_guard import visible_to_prompts
from reki_ray.prompts.renderer import item_text, user_text
from reki_ray.schema import (
    ATTRIBUTES,
    CLUSTER_ID,
    FACTOR,
    ID,
    ITEM_ID,
    OF_CLUSTER,
    OF_ONE,
    RATING,
    SUBJECT_ID,
    SUBJECT_KIND,
    TEXT,
    TITLE,
    USER_ID,
    WHOLE_ANSWER,
    Side,
    Source,
)

Attributes = dict[str, list[str]]


def item_texts(items: pa.Table, limits: PromptsConfig) -> list[str]:
    """Title, attributes and description of each item, in row order.

    Args:
        items: Rows of `ITEMS_SCHEMA`.
        limits: Longest title and description, characters.
    """
    columns = (items[name].to_pylist() for name in (TITLE, ATTRIBUTES, TEXT))
    return [
        item_text(title, _attributes(pairs), text, limits)
        for title, pairs, text in zip(*columns, strict=True)
    ]


def user_texts(
    users: pa.Table, visible: pa.Table, items: pa.Table, limits: PromptsConfig
) -> list[str]:
    """Profile and rated titles of each user, in row order.

    Args:
        users: Rows of `USERS_SCHEMA`.
        visible: Interactions before the cut, as `histories.before_cut` gives them.
        items: Rows of `ITEMS_SCHEMA`; an interaction with an unknown item is left out.
        limits: Longest title, characters, and longest history, interactions.
    """
    titles = dict(zip(items[ITEM_ID].to_pylist(), items[TITLE].to_pylist(), strict=True))
    histories: dict[str, list[tuple[str, float | None]]] = {}
    columns = (visible[name].to_pylist() for name in (USER_ID, ITEM_ID, RATING))
    for user, item, rating in zip(*columns, strict=True):
        if item in titles:
            histories.setdefault(user, []).append((titles[item], rating))
    rows = zip(users[USER_ID].to_pylist(), users[ATTRIBUTES].to_pylist(), strict=True)
    return [user_text(_attributes(pairs), histories.get(user, ()), limits) for user, pairs in rows]


def _attributes(pairs: Sequence[tuple[str, list[str]]] | None) -> Attributes | None:
    """A map column comes out of Arrow as pairs."""
    return None if pairs is None else dict(pairs)


Subject = tuple[str, str]

"""Kind and id of what an answer is about."""


@dataclass(frozen=True)
class TextShard:
    """A share of a side: one row group of its table.

    Attributes:
        side: Users or items.
        path: Parquet file.
        row_group: Row group of that file.
    """

    side: Side
    path: str
    row_group: int


Answer = Mapping[str, str]

"""Text by factor; `WHOLE_ANSWER` is the factor of an answer that was not divided."""


class SideKnowledge(NamedTuple):
    """What is known about each id.

    Attributes:
        answers: The answer that stands for the id, None where there is none.
        sources: How near that answer is to the id.
        seconds: The answer of the id's cluster beside its own; None where there are not both.
    """

    answers: list[Answer | None]
    sources: list[Source]
    seconds: list[Answer | None]


def cut_into_shards(workspace: Workspace, side: Side) -> list[TextShard]:
    """All ids of a side in the order of its table, cut into shards.

    Raises:
        DataError: The table is missing or damaged.
    """
    table, _ = ENTITIES[side]
    return [TextShard(side, group.path, group.number) for group in row_groups(workspace, table)]


def source_texts(
    workspace: Workspace, shard: TextShard, limits: PromptsConfig
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


def factors_of(workspace: Workspace, side: Side) -> tuple[str, ...]:
    """Factors that the answers about a side are divided into, in the order of their names.

    Raises:
        DataError: The table is missing or damaged.
    """
    found = workspace.read_table(schema.KNOWLEDGE, columns=[SUBJECT_KIND, FACTOR])
    kinds = pa.array([OF_ONE[side], OF_CLUSTER[side]])
    of_side = found.filter(pc.is_in(found[SUBJECT_KIND], kinds))
    return tuple(sorted(pc.unique(of_side[FACTOR]).to_pylist()))


def knowledge_of(
    workspace: Workspace, side: Side, ids: Sequence[str], *, by_factor: bool = False
) -> SideKnowledge:
    """The nearest answer for each id: its own, its cluster's, or none.

    Args:
        workspace: Holds the output of stages cluster and extract.
        side: Users or items.
        ids: N ids.
        by_factor: Keep answers divided; otherwise each is one text.

    Raises:
        DataError: A table is missing or damaged.
    """
    keys = pa.array(ids, pa.string())
    clusters = rows_of(workspace, schema.CLUSTERS[side], ID, keys, [ID, CLUSTER_ID])
    cluster_of = dict(zip(clusters[ID].to_pylist(), clusters[CLUSTER_ID].to_pylist(), strict=True))
    # Kinds share no namespace: an id may also be the name of a cluster, so the kind decides.
    subjects = pc.unique(pa.chunked_array([keys, *clusters[CLUSTER_ID].chunks]))
    columns = [SUBJECT_KIND, SUBJECT_ID, FACTOR, TEXT]
    answers = answers_of(rows_of(workspace, schema.KNOWLEDGE, SUBJECT_ID, subjects, columns))
    if not by_factor:
        answers = {subject: {WHOLE_ANSWER: whole(answer)} for subject, answer in answers.items()}
    return find_knowledge(side, ids, cluster_of, answers)


def answers_of(answers: pa.Table) -> dict[Subject, Answer]:
    """Answer of every subject that has one which is not blank.

    Args:
        answers: Rows of `KNOWLEDGE_SCHEMA`.
    """
    parts: dict[Subject, dict[str, str]] = {}
    columns = (answers[name].to_pylist() for name in (SUBJECT_KIND, SUBJECT_ID, FACTOR, TEXT))
    for kind, subject, factor, text in zip(*columns, strict=True):
        if text.strip():
            parts.setdefault((kind, subject), {})[factor] = text
    return dict(parts)


def whole(answer: Answer) -> str:
    """The undivided answer, or its factors, each on a line, in the order of their names."""
    return answer.get(WHOLE_ANSWER) or "\n".join(answer[name] for name in sorted(answer))


def find_knowledge(
    side: Side,
    ids: Sequence[str],
    cluster_of: Mapping[str, str],
    answers: Mapping[Subject, Answer],
) -> SideKnowledge:
    """Nearest answer for each id: its own, its cluster's, or none.

    Args:
        side: Users or items.
        ids: N ids.
        cluster_of: Cluster of each id.
        answers: Answer of every subject that has one.
    """
    nearest: list[Answer | None] = []
    sources: list[Source] = []
    seconds: list[Answer | None] = []
    for key in ids:
        own = answers.get((OF_ONE[side], key))
        shared = answers.get((OF_CLUSTER[side], cluster_of.get(key, "")))
        nearest.append(own or shared)
        sources.append("individual" if own else "cluster" if shared else "fallback")
        seconds.append(shared if own else None)
    return SideKnowledge(nearest, sources, seconds)
