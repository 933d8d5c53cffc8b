"""Tables that a version's profiles, catalogue and knowledge are written from."""

from __future__ import annotations

from collections.abc import Mapping

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
    MODEL,
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
)
from reki_ray.store.index import single_chunk

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


def profiles_table(users: pa.Table, interactions: pa.Table, history: int) -> pa.Table:
    """Profiles with the latest interactions of every user.

    Args:
        users: Table `ingest/users`.
        interactions: Table `ingest/interactions`, sorted by user, then time.
        history: Largest number of interactions kept a user.

    Returns:
        One row a user, in the order of `users`, with schema PROFILES_SCHEMA.
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

    columns = [
        users.column(USER_ID),
        users.column(ATTRIBUTES),
        lists(ITEM_ID),
        lists(RATING),
        lists(TIMESTAMP),
    ]
    names = [USER_ID, ATTRIBUTES, ITEM_IDS, RATINGS, TIMESTAMPS]
    return pa.table(dict(zip(names, columns, strict=True))).cast(PROFILES_SCHEMA)


def catalogue_table(items: pa.Table) -> pa.Table:
    """Id, title and attributes of every item of table `ingest/items`."""
    return items.select([ITEM_ID, TITLE, ATTRIBUTES])


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
    assigned_rows = pa.table(
        {
            ID: [key for key, _ in members],
            CLUSTER_ID: [cluster for _, cluster in members],
            FACTOR: pa.nulls(len(members), pa.string()),
            TEXT: pa.nulls(len(members), pa.string()),
            MODEL: pa.nulls(len(members), pa.string()),
            CREATED_AT: pa.nulls(len(members), pa.int64()),
        },
        schema=KNOWLEDGE_SCHEMA,
    )
    return pa.concat_tables([assigned_rows, texts])


def knowledge_key(kind: str, subject_id: str) -> str:
    """Key of a subject's rows in the table of knowledge."""
    # A kind holds no slash, so that the first one divides kind and id.
    return f"{kind}/{subject_id}"
