"""Arrow schemas of all tables; the only place that spells column names.

Ids are strings; timestamps are seconds since the epoch, UTC.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa

# --- columns ---------------------------------------------------------------------------------
USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
TIMESTAMP: Final = "timestamp"
RATING: Final = "rating"
LABEL: Final = "label"
TITLE: Final = "title"
ATTRIBUTES: Final = "attributes"
TEXT: Final = "text"
IMAGE: Final = "image"
POSITION: Final = "position"
CUT: Final = "cut"
TABLE: Final = "table"
LOCATION: Final = "location"
REASON: Final = "reason"
RAW: Final = "raw"
ID: Final = "id"
CLUSTER_ID: Final = "cluster_id"
SIMILARITY: Final = "similarity"
METHOD: Final = "method"
SUBJECT_KIND: Final = "subject_kind"
SUBJECT_ID: Final = "subject_id"
FACTOR: Final = "factor"
PROMPT: Final = "prompt"
PROMPT_HASH: Final = "prompt_hash"
MODEL: Final = "model"
REVISION: Final = "revision"
ENGINE: Final = "engine"
BODY: Final = "body"
SHOWN: Final = "shown"
TEXTS: Final = "texts"
CALLS: Final = "calls"
ASKED_AT: Final = "asked_at"
PROMPT_TOKENS: Final = "prompt_tokens"
CACHED_TOKENS: Final = "cached_tokens"
GENERATED_TOKENS: Final = "generated_tokens"
FINISH_REASON: Final = "finish_reason"
FLAWS: Final = "flaws"
RETRY_REASON: Final = "retry_reason"
CREATED_AT: Final = "created_at"
VECTOR: Final = "vector"
KEY_HASH: Final = "key_hash"
"""Sorted index column of the published files; not part of any workspace table."""
SOURCE: Final = "source"
BACKBONE: Final = "backbone"
ARM: Final = "arm"
SEED: Final = "seed"
SCORE: Final = "score"
ITEM_IDS: Final = "item_ids"
RATINGS: Final = "ratings"
TIMESTAMPS: Final = "timestamps"
SAMPLE_COUNT: Final = "sample_count"
ITEM_ROWS: Final = "item_rows"

# --- vocabularies ----------------------------------------------------------------------------
Split = Literal["train", "valid", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "valid", "test")

Side = Literal["users", "items"]
SIDES: Final[tuple[Side, ...]] = ("users", "items")

SubjectKind = Literal["user", "item", "user_cluster", "item_cluster"]

OF_ONE: Final[dict[Side, SubjectKind]] = {"users": "user", "items": "item"}
"""Kind of a subject that is one id of a side."""
OF_CLUSTER: Final[dict[Side, SubjectKind]] = {"users": "user_cluster", "items": "item_cluster"}
"""Kind of a subject that is a cluster of a side."""
SIDE_OF: Final[dict[SubjectKind, Side]] = {
    kind: side for kinds in (OF_ONE, OF_CLUSTER) for side, kind in kinds.items()
}
"""Side of each kind of subject."""

Source = Literal["individual", "cluster", "fallback"]

MAX_ID_CHARS: Final = 512
"""Longest id of a user or item, characters, in ingest and in HTTP requests."""

WHOLE_ANSWER: Final = "*"
"""Value of `factor` for knowledge without factors."""

# --- schemas ---------------------------------------------------------------------------------
_TEXT_OF = pa.map_(pa.string(), pa.string())
_TYPES: Final[dict[str, pa.DataType]] = {
    **dict.fromkeys((TIMESTAMP, SEED, CREATED_AT), pa.int64()),
    **dict.fromkeys((CUT, POSITION, CALLS), pa.int32()),
    **dict.fromkeys((PROMPT_TOKENS, CACHED_TOKENS, GENERATED_TOKENS), pa.int32()),
    **dict.fromkeys((RATING, SIMILARITY, SCORE), pa.float32()),
    ATTRIBUTES: pa.map_(pa.string(), pa.list_(pa.string())),
    LABEL: pa.int8(),
    ASKED_AT: pa.float64(),
    TEXTS: _TEXT_OF,
    FLAWS: _TEXT_OF,
    ITEM_IDS: pa.list_(pa.string()),
    RATINGS: pa.list_(pa.float32()),
    TIMESTAMPS: pa.list_(pa.int64()),
}
"""Type of every column that is not a string, the same in all tables."""


def _schema(*columns: str, nullable: Collection[str] = ()) -> pa.Schema:
    return pa.schema(
        [pa.field(name, _TYPES.get(name, pa.string()), name in nullable) for name in columns]
    )


INTERACTIONS_SCHEMA: Final = _schema(USER_ID, ITEM_ID, TIMESTAMP, RATING, LABEL, nullable=[RATING])
_DESCRIPTION: Final = (ATTRIBUTES, TEXT, IMAGE)
ITEMS_SCHEMA: Final = _schema(ITEM_ID, TITLE, *_DESCRIPTION, nullable=_DESCRIPTION)
USERS_SCHEMA: Final = _schema(USER_ID, *_DESCRIPTION, nullable=_DESCRIPTION)
CUTS_SCHEMA: Final = _schema(USER_ID, CUT)
"""Number of the user's first interactions that prompts may use; none of them is a sample."""
SAMPLES_SCHEMA: Final = _schema(USER_ID, ITEM_ID, TIMESTAMP, LABEL, POSITION)
"""`position` is the row of this interaction among the user's interactions in time order: the
history of a sample is the rows before it, so that histories are stored once."""
QUARANTINE_SCHEMA: Final = _schema(TABLE, LOCATION, REASON, RAW, nullable=[RAW])
ASKED_CLUSTERS_SCHEMA: Final = _schema(ID, CLUSTER_ID)
CLUSTERS_SCHEMA: Final = _schema(ID, CLUSTER_ID, SIMILARITY, METHOD)
KNOWLEDGE_SCHEMA: Final = _schema(
    *(SUBJECT_KIND, SUBJECT_ID, FACTOR, TEXT, PROMPT_HASH, MODEL, REVISION, ENGINE),
    *(PROMPT_TOKENS, GENERATED_TOKENS, FINISH_REASON, CREATED_AT),
    nullable=[FINISH_REASON],
)
DEAD_LETTERS_SCHEMA: Final = _schema(
    *(SUBJECT_KIND, SUBJECT_ID, PROMPT_HASH, REASON, PROMPT, CREATED_AT), nullable=[PROMPT]
)
PREDICTIONS_SCHEMA: Final = _schema(BACKBONE, ARM, SEED, USER_ID, ITEM_ID, LABEL, SCORE)
PROFILES_SCHEMA: Final = _schema(
    *(USER_ID, ATTRIBUTES, ITEM_IDS, RATINGS, TIMESTAMPS), nullable=[ATTRIBUTES]
)
"""Lists hold the user's latest interactions, oldest first."""
QUESTION_SCHEMA: Final = _schema(PROMPT_HASH, SUBJECT_KIND, BODY)
"""Input rows of an engine: distinct prompts, each with its key in the answer cache.

`body` is the text about this subject; the rest of the prompt is the same for all of its kind.
"""
ANSWER_SCHEMA: Final = _schema(
    *QUESTION_SCHEMA.names,
    *(TEXTS, PROMPT_TOKENS, CACHED_TOKENS, GENERATED_TOKENS, CALLS, ASKED_AT, FINISH_REASON),
    *(REASON, FLAWS, RETRY_REASON),
    nullable=[TEXTS, ASKED_AT, FINISH_REASON],
)
"""Output rows of an engine: one per question, in any order.

`texts`: factor to text, "*" for a whole answer; null without an answer. `calls` of the model: 2
after a retry, 0 without a call. `asked_at`: time of the first call, seconds since the epoch; null
without a call. `reason` why there is no answer, and `retry_reason`, are empty without one. `flaws`:
empty factors, each with its problem.
"""


def vectors_schema(dimension: int) -> pa.Schema:
    """Schema of a table of representations r or augmented vectors h, of this many dimensions."""
    vector = pa.list_(pa.field("item", pa.float32(), nullable=False), dimension)
    fields = _schema(ID, FACTOR, SOURCE)
    return fields.insert(2, pa.field(VECTOR, vector, nullable=False))


@dataclass(frozen=True)
class Table:
    """A table of the workspace: its folder and, if it does not depend on a model, its schema."""

    path: str
    schema: pa.Schema | None

    @property
    def stage(self) -> str:
        """Name of the stage that writes the table."""
        return self.path.partition("/")[0]


INTERACTIONS: Final = Table("ingest/interactions", INTERACTIONS_SCHEMA)
"""Sorted by user, then time; equal times keep the order of the source."""
ITEMS: Final = Table("ingest/items", ITEMS_SCHEMA)
USERS: Final = Table("ingest/users", USERS_SCHEMA)
CUTS: Final = Table("ingest/cuts", CUTS_SCHEMA)
QUARANTINE: Final = Table("ingest/quarantine", QUARANTINE_SCHEMA)
SAMPLES: Final[dict[Split, Table]] = {
    split: Table(f"ingest/samples/{split}", SAMPLES_SCHEMA) for split in SPLITS
}
CLUSTERS: Final[dict[Side, Table]] = {
    side: Table(f"cluster/{side}", CLUSTERS_SCHEMA) for side in SIDES
}
CLUSTER_VECTORS: Final[dict[Side, Table]] = {
    side: Table(f"cluster/{side}_vectors", None) for side in SIDES
}
"""Clustered vectors: encoded title and attributes of items; weighted item vectors of users."""
ASKED_CLUSTERS: Final[dict[Side, Table]] = {
    side: Table(f"cluster/{side}_asked", ASKED_CLUSTERS_SCHEMA) for side in SIDES
}
"""Cluster of each id when its cluster was last asked about; of `reki update`."""
ASKED_CENTRES: Final[dict[Side, Table]] = {
    side: Table(f"cluster/{side}_asked_centres", None) for side in SIDES
}
"""Centre of each cluster at that time."""
KNOWLEDGE: Final = Table("extract/knowledge", KNOWLEDGE_SCHEMA)
DEAD_LETTERS: Final = Table("extract/dead", DEAD_LETTERS_SCHEMA)
REPRESENTATIONS: Final[dict[Side, Table]] = {side: Table(f"encode/{side}", None) for side in SIDES}
TEXT_REPRESENTATIONS: Final[dict[Side, Table]] = {
    side: Table(f"encode/{side}_text", None) for side in SIDES
}
"""Encoded source text without an LLM: profiles and histories, titles and attributes."""
PREDICTIONS: Final = Table("evaluate/predictions", PREDICTIONS_SCHEMA)
