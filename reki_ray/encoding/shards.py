"""Texts of the ids in one row group: source texts, and the knowledge an LLM has of each id.

Tasks read only the rows they need: no process holds all texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from reki_ray import schema
from reki_ray.config import PromptsConfig
from reki_ray.core.tables import ENTITIES, RowGroup, read_row_group, rows_of
from reki_ray.core.workspace import Workspace
from reki_ray.data.leak_guard import visible_to_prompts
from reki_ray.prompts.sanitize import item_text, user_text
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

Answer = Mapping[str, str]
"""Text by factor; `WHOLE_ANSWER` is the factor of an answer that was not divided."""


class SideKnowledge(NamedTuple):
    """What is known about each of N ids.

    Attributes:
        answers: The nearest answer, None if there is none.
        sources: How near that answer is to the id.
        seconds: The cluster's answer, if the id also has its own; else None.
    """

    answers: list[Answer | None]
    sources: list[Source]
    seconds: list[Answer | None]


def source_texts(
    workspace: Workspace, side: Side, group: RowGroup, limits: PromptsConfig
) -> tuple[list[str], list[str]]:
    """Ids of a row group and their source texts, in row order.

    Only interactions before a user's cut are read: no text shows what a sample predicts.
    """
    table, key = ENTITIES[side]
    rows = read_row_group(workspace, table, group)
    ids: list[str] = rows[key].to_pylist()
    if side == "users":
        visible = visible_to_prompts(workspace, rows[USER_ID].combine_chunks())
        return ids, user_texts(rows, visible.interactions, visible.items, limits)
    columns = (rows[name].to_pylist() for name in (TITLE, ATTRIBUTES, TEXT))
    return ids, [
        item_text(title, dict(pairs or ()), text, limits)  # Arrow returns a map as pairs
        for title, pairs, text in zip(*columns, strict=True)
    ]


def user_texts(
    users: pa.Table, visible: pa.Table, items: pa.Table, limits: PromptsConfig
) -> list[str]:
    """Profile and rated titles of each user, in row order.

    Args:
        visible: Interactions before the cut, see `leak_guard.before_cut`.
        items: Interactions with other items are left out.
    """
    titles = dict(zip(items[ITEM_ID].to_pylist(), items[TITLE].to_pylist(), strict=True))
    histories: dict[str, list[tuple[str, float | None]]] = {}
    columns = (visible[name].to_pylist() for name in (USER_ID, ITEM_ID, RATING))
    for user, item, rating in zip(*columns, strict=True):
        if item in titles:
            histories.setdefault(user, []).append((titles[item], rating))
    rows = zip(users[USER_ID].to_pylist(), users[ATTRIBUTES].to_pylist(), strict=True)
    return [user_text(dict(pairs or ()), histories.get(user, ()), limits) for user, pairs in rows]


def factors_of(workspace: Workspace, side: Side) -> tuple[str, ...]:
    """Factors that the answers about a side are divided into, by name."""
    rows = workspace.read_table(schema.KNOWLEDGE, columns=[SUBJECT_KIND, FACTOR])
    kinds = pa.array([OF_ONE[side], OF_CLUSTER[side]])
    of_side = rows.filter(pc.is_in(rows[SUBJECT_KIND], kinds))
    return tuple(sorted(pc.unique(of_side[FACTOR]).to_pylist()))


def knowledge_of(
    workspace: Workspace, side: Side, ids: Sequence[str], *, by_factor: bool = False
) -> SideKnowledge:
    """Find the nearest answer for each id: its own, its cluster's, or none.

    Args:
        by_factor: Keep answers divided; otherwise each is one text.
    """
    keys = pa.array(ids, pa.string())
    clusters = rows_of(workspace, schema.CLUSTERS[side], ID, keys, [ID, CLUSTER_ID])
    cluster_of = dict(zip(clusters[ID].to_pylist(), clusters[CLUSTER_ID].to_pylist(), strict=True))
    # Kinds share no namespace: an id may also be the name of a cluster, so the kind decides.
    subjects = pc.unique(pa.chunked_array([keys, *clusters[CLUSTER_ID].chunks]))
    columns = [SUBJECT_KIND, SUBJECT_ID, FACTOR, TEXT]
    rows = rows_of(workspace, schema.KNOWLEDGE, SUBJECT_ID, subjects, columns)
    answers: dict[tuple[str, str], dict[str, str]] = {}
    for kind, subject, factor, text in zip(*(rows[c].to_pylist() for c in columns), strict=True):
        if text.strip():
            answers.setdefault((kind, subject), {})[factor] = text
    if not by_factor:
        answers = {key: {WHOLE_ANSWER: _join_factors(answer)} for key, answer in answers.items()}
    known = SideKnowledge([], [], [])
    for key in ids:
        own = answers.get((OF_ONE[side], key))
        shared = answers.get((OF_CLUSTER[side], cluster_of.get(key, "")))
        known.answers.append(own or shared)
        known.sources.append("individual" if own else "cluster" if shared else "fallback")
        known.seconds.append(shared if own else None)
    return known


def _join_factors(answer: Answer) -> str:
    """The undivided answer, or its factors on a line each, by name."""
    return answer.get(WHOLE_ANSWER) or "\n".join(answer[name] for name in sorted(answer))
