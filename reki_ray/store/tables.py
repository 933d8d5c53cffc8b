"""What a version holds beside vectors: profiles, the catalogue, the text behind a vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.schema import (
    ATTRIBUTES,
    CLUSTER_ID,
    CREATED_AT,
    FACTOR,
    ID,
    ITEM_ID,
    ITEM_IDS,
    ITEMS_SCHEMA,
    MODEL,
    OF_CLUSTER,
    OF_ONE,
    PROFILES_SCHEMA,
    RATING,
    RATINGS,
    SUBJECT_ID,
    SUBJECT_KIND,
    TEXT,
    TIMESTAMP,
    TIMESTAMPS,
    TITLE,
    USER_ID,
    Side,
    SubjectKind,
)
from reki_ray.store.hash_index import single_chunk
from reki_ray.store.layers import LayeredTable
from reki_ray.store.manifest import CATALOGUE_FILE, KNOWLEDGE_FILE, PROFILES_FILE

KNOWLEDGE_SCHEMA = pa.schema(
    [
        # <subject kind>/<subject id>; a row has a cluster or an answer.
        pa.field(ID, pa.string(), nullable=False),
        pa.field(CLUSTER_ID, pa.string()),
        pa.field(FACTOR, pa.string()),
        pa.field(TEXT, pa.string()),
        pa.field(MODEL, pa.string()),
        pa.field(CREATED_AT, pa.int64()),
    ]
)


CATALOGUE_SCHEMA = pa.schema([ITEMS_SCHEMA.field(name) for name in (ITEM_ID, TITLE, ATTRIBUTES)])

TABLES: Final = {
    PROFILES_FILE: (PROFILES_SCHEMA, USER_ID),
    CATALOGUE_FILE: (CATALOGUE_SCHEMA, ITEM_ID),
    KNOWLEDGE_FILE: (KNOWLEDGE_SCHEMA, ID),
}
"""Schema of each table, and the column that its rows are found by."""


def profiles_table(users: pa.Table, interactions: pa.Table, history: int) -> pa.Table:
    """Profiles with the latest `history` interactions of every user, in the order of `users`.

    Args:
        interactions: Table `ingest/interactions`, sorted by user, then time.
    """
    encoded = interactions.column(USER_ID).combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    # Sorted by user: code k's rows are contiguous, and codes ascend in order of appearance.
    ends = np.cumsum(np.bincount(codes, minlength=len(encoded.dictionary)))
    begins = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    place = pc.index_in(users.column(USER_ID), value_set=encoded.dictionary)
    place = pc.fill_null(place, -1).to_numpy()
    end = np.where(place >= 0, np.append(ends, 0)[place], 0).astype(np.int64)
    begin = np.where(place >= 0, np.append(begins, 0)[place], 0).astype(np.int64)
    begin = np.maximum(begin, end - history)
    offsets = np.concatenate([[0], np.cumsum(end - begin)]).astype(np.int64)
    rows = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], end - begin)
    latest = interactions.take(pa.array(rows, pa.int64())).combine_chunks()

    def lists(column: str) -> pa.Array:
        values = single_chunk(latest, column)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)

    columns = {
        USER_ID: users.column(USER_ID),
        ATTRIBUTES: users.column(ATTRIBUTES),
        ITEM_IDS: lists(ITEM_ID),
        RATINGS: lists(RATING),
        TIMESTAMPS: lists(TIMESTAMP),
    }
    return pa.table(columns).cast(PROFILES_SCHEMA)


def catalogue_table(items: pa.Table) -> pa.Table:
    """Id, title and attributes of every item of table `ingest/items`."""
    return items.select(CATALOGUE_SCHEMA.names)


def knowledge_table(answers: pa.Table, clusters: Mapping[Side, Mapping[str, str]]) -> pa.Table:
    """The text behind vectors.

    Args:
        answers: Rows of the ledger (KNOWLEDGE_SCHEMA of `reki_ray.schema`).
        clusters: Cluster of every id, a side; empty where answers are individual.
    """
    members = [
        (knowledge_key(OF_ONE[side], subject), cluster)
        for side, assigned in clusters.items()
        for subject, cluster in assigned.items()
    ]
    kinds, subjects = (answers.column(name).to_pylist() for name in (SUBJECT_KIND, SUBJECT_ID))
    texts = pa.table(
        {
            ID: [
                knowledge_key(kind, subject) for kind, subject in zip(kinds, subjects, strict=True)
            ],
            CLUSTER_ID: pa.nulls(len(answers), pa.string()),
            **{name: answers.column(name) for name in (FACTOR, TEXT, MODEL, CREATED_AT)},
        },
        schema=KNOWLEDGE_SCHEMA,
    )
    shared = {
        ID: [key for key, _ in members],
        CLUSTER_ID: [cluster for _, cluster in members],
        **{name: pa.nulls(len(members)) for name in (FACTOR, TEXT, MODEL, CREATED_AT)},
    }
    return pa.concat_tables([pa.table(shared, schema=KNOWLEDGE_SCHEMA), texts])


def knowledge_key(kind: str, subject_id: str) -> str:
    """Key of a subject's rows in the table of knowledge."""
    # A kind has no slash: the first one divides kind and id.
    return f"{kind}/{subject_id}"


Attributes = dict[str, list[str]]

_SAMPLED_PROFILES: Final = 20_000


@dataclass(frozen=True)
class Profile:
    """What the store knows of a user; the interactions are the latest, oldest first."""

    attributes: Attributes | None
    item_ids: tuple[str, ...]
    ratings: tuple[float | None, ...]
    timestamps: tuple[int | None, ...]

    def latest(self, count: int) -> list[tuple[str, float | None, int | None]]:
        """Item, rating and time of the latest interactions, oldest first."""
        start = max(0, len(self.item_ids) - count)
        columns = (self.item_ids[start:], self.ratings[start:], self.timestamps[start:])
        return list(zip(*columns, strict=True))


@dataclass(frozen=True)
class CatalogueItem:
    """What the store knows of an item."""

    item_id: str
    title: str
    attributes: Attributes | None


@dataclass(frozen=True)
class KnowledgeEntry:
    """One answer of the LLM behind a vector."""

    subject_kind: str
    subject_id: str
    factor: str
    text: str
    model: str
    created_at: int


class Profiles(LayeredTable):
    """Profiles by user id, memory-mapped."""

    key = USER_ID

    def get(self, user_id: str) -> Profile | None:
        """Profile of a user; None for an unknown one."""
        row = self.row(user_id)
        if row is None:
            return None
        values = row.to_pylist()[0]
        lists = (tuple(values[name]) for name in (ITEM_IDS, RATINGS, TIMESTAMPS))
        return Profile(attributes_of(values[ATTRIBUTES]), *lists)

    def ids(self, limit: int | None = None) -> list[str]:
        """The first ids, or all, in the order of the index, which is as good as random."""
        return self.keys(limit)

    def latest_time(self) -> int | None:
        """Latest time of an interaction among some thousands of profiles; None without times."""
        times = self.rows(_SAMPLED_PROFILES)[TIMESTAMPS]
        latest: int | None = pc.max(pc.list_flatten(times)).as_py()
        return latest


class Catalogue(LayeredTable):
    """Items by id, memory-mapped."""

    key = ITEM_ID

    @property
    def ids(self) -> list[str]:
        """All ids, in the order of `attributes`."""
        return self.keys()

    @property
    def attributes(self) -> list[Attributes | None]:
        """Attributes of all items, in the order of `ids`."""
        stored = self.rows().column(ATTRIBUTES).to_pylist()
        return [attributes_of(pairs) for pairs in stored]

    def inputs(
        self, items: Sequence[CatalogueItem] | None
    ) -> tuple[list[str], list[Attributes | None]]:
        """Ids and attributes of a part of the catalogue; None takes all of it."""
        if items is None:
            return self.ids, self.attributes
        return [item.item_id for item in items], [item.attributes for item in items]

    def get(self, item_id: str) -> CatalogueItem | None:
        """An item; None for an unknown one."""
        row = self.row(item_id)
        return None if row is None else _catalogue_item(row.to_pylist()[0])

    def first(self, limit: int) -> list[CatalogueItem]:
        """The first items in the order of the index, which is as good as random."""
        return [_catalogue_item(row) for row in self.rows(limit).to_pylist()]


class Knowledge(LayeredTable):
    """The text behind vectors by id, memory-mapped.

    A layer that holds any row of a subject hides the older layers' rows of it.
    """

    key = ID

    def cluster_of(self, side: Side, subject_id: str) -> str | None:
        """Cluster whose knowledge the id shares; None if it has its own or none."""
        for row in self._rows(OF_ONE[side], subject_id):
            if row[CLUSTER_ID] is not None:
                return str(row[CLUSTER_ID])
        return None

    def of(self, side: Side, subject_id: str) -> list[KnowledgeEntry]:
        """Answers about the id itself, then those about its cluster."""
        entries = self._entries(OF_ONE[side], subject_id)
        cluster = self.cluster_of(side, subject_id)
        if cluster is not None:
            entries += self._entries(OF_CLUSTER[side], cluster)
        return entries

    def _rows(self, kind: SubjectKind, subject_id: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.find_all(knowledge_key(kind, subject_id)).to_pylist()
        return rows

    def _entries(self, kind: SubjectKind, subject_id: str) -> list[KnowledgeEntry]:
        return [
            KnowledgeEntry(kind, subject_id, row[FACTOR], row[TEXT], row[MODEL], row[CREATED_AT])
            for row in self._rows(kind, subject_id)
            if row[TEXT] is not None
        ]


def attributes_of(pairs: list[tuple[str, list[str]]] | None) -> Attributes | None:
    """An Arrow map as a dict; None stays None."""
    return None if pairs is None else dict(pairs)


def _catalogue_item(row: dict[str, Any]) -> CatalogueItem:
    return CatalogueItem(row[ITEM_ID], row[TITLE], attributes_of(row[ATTRIBUTES]))
