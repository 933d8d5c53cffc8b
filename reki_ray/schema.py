"""Arrow schemas of all tables; the only place that spells column names.

Ids are strings; timestamps are seconds since the epoch, UTC.
"""

from __future__ import annotations

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
_STRING = pa.string()
_ATTRIBUTES = pa.map_(_STRING, pa.list_(_STRING))


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


INTERACTIONS_SCHEMA: Final = pa.schema(
    [
        _required(USER_ID, _STRING),
        _required(ITEM_ID, _STRING),
        _required(TIMESTAMP, pa.int64()),
        pa.field(RATING, pa.float32()),
        _required(LABEL, pa.int8()),
    ]
)
ITEMS_SCHEMA: Final = pa.schema(
    [
        _required(ITEM_ID, _STRING),
        _required(TITLE, _STRING),
        pa.field(ATTRIBUTES, _ATTRIBUTES),
        pa.field(TEXT, _STRING),
        pa.field(IMAGE, _STRING),
    ]
)
USERS_SCHEMA: Final = pa.schema(
    [
        _required(USER_ID, _STRING),
        pa.field(ATTRIBUTES, _ATTRIBUTES),
        pa.field(TEXT, _STRING),
        pa.field(IMAGE, _STRING),
    ]
)
CUTS_SCHEMA: Final = pa.schema(
    [
        _required(USER_ID, _STRING),
        # Number of the user's first interactions that prompts may use; none of them is a sample.
        _required(CUT, pa.int32()),
    ]
)
SAMPLES_SCHEMA: Final = pa.schema(
    [
        _required(USER_ID, _STRING),
        _required(ITEM_ID, _STRING),
        _required(TIMESTAMP, pa.int64()),
        _required(LABEL, pa.int8()),
        # Row of this interaction among the user's interactions in time order: the history of a
        # sample is the rows before it, so that histories are stored once.
        _required(POSITION, pa.int32()),
    ]
)
QUARANTINE_SCHEMA: Final = pa.schema(
    [
        _required(TABLE, _STRING),
        _required(LOCATION, _STRING),
        _required(REASON, _STRING),
        pa.field(RAW, _STRING),
    ]
)
ASKED_CLUSTERS_SCHEMA: Final = pa.schema([_required(ID, _STRING), _required(CLUSTER_ID, _STRING)])
CLUSTERS_SCHEMA: Final = pa.schema(
    [
        _required(ID, _STRING),
        _required(CLUSTER_ID, _STRING),
        _required(SIMILARITY, pa.float32()),
        _required(METHOD, _STRING),
    ]
)
KNOWLEDGE_SCHEMA: Final = pa.schema(
    [
        _required(SUBJECT_KIND, _STRING),
        _required(SUBJECT_ID, _STRING),
        _required(FACTOR, _STRING),
        _required(TEXT, _STRING),
        _required(PROMPT_HASH, _STRING),
        _required(MODEL, _STRING),
        _required(REVISION, _STRING),
        _required(ENGINE, _STRING),
        _required(PROMPT_TOKENS, pa.int32()),
        _required(GENERATED_TOKENS, pa.int32()),
        pa.field(FINISH_REASON, _STRING),
        _required(CREATED_AT, pa.int64()),
    ]
)
DEAD_LETTERS_SCHEMA: Final = pa.schema(
    [
        _required(SUBJECT_KIND, _STRING),
        _required(SUBJECT_ID, _STRING),
        _required(PROMPT_HASH, _STRING),
        _required(REASON, _STRING),
        pa.field(PROMPT, _STRING),
        _required(CREATED_AT, pa.int64()),
    ]
)
PREDICTIONS_SCHEMA: Final = pa.schema(
    [
        _required(BACKBONE, _STRING),
        _required(ARM, _STRING),
        _required(SEED, pa.int64()),
        _required(USER_ID, _STRING),
        _required(ITEM_ID, _STRING),
        _required(LABEL, pa.int8()),
        _required(SCORE, pa.float32()),
    ]
)
PROFILES_SCHEMA: Final = pa.schema(
    [
        _required(USER_ID, _STRING),
        pa.field(ATTRIBUTES, _ATTRIBUTES),
        # The user's latest interactions, oldest first.
        _required(ITEM_IDS, pa.list_(_STRING)),
        _required(RATINGS, pa.list_(pa.float32())),
        _required(TIMESTAMPS, pa.list_(pa.int64())),
    ]
)


def vectors_schema(dimension: int) -> pa.Schema:
    """Schema of a table of representations r or augmented vectors h.

    Args:
        dimension: Length of every vector (384 for MiniLM representations, 32 for h).
    """
    return pa.schema(
        [
            _required(ID, _STRING),
            _required(FACTOR, _STRING),
            _required(VECTOR, pa.list_(pa.field("item", pa.float32(), nullable=False), dimension)),
            _required(SOURCE, _STRING),
        ]
    )


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


QUESTION_SCHEMA = pa.schema(
    [
        pa.field(PROMPT_HASH, pa.string(), nullable=False),
        pa.field(SUBJECT_KIND, pa.string(), nullable=False),
        # Text about this subject; the rest of the prompt is the same for all of its kind.
        pa.field(BODY, pa.string(), nullable=False),
    ]
)
"""Input rows of an engine: distinct prompts, each with its key in the answer cache."""
ANSWER_SCHEMA = pa.schema(
    [
        *QUESTION_SCHEMA,
        # Factor to text, "*" for a whole answer; null without an answer.
        pa.field(TEXTS, pa.map_(pa.string(), pa.string())),
        pa.field(PROMPT_TOKENS, pa.int32(), nullable=False),
        pa.field(CACHED_TOKENS, pa.int32(), nullable=False),
        pa.field(GENERATED_TOKENS, pa.int32(), nullable=False),
        # Calls of the model: 2 after a retry, 0 without a call.
        pa.field(CALLS, pa.int32(), nullable=False),
        # Time of the first call, seconds since the epoch; null without a call.
        pa.field(ASKED_AT, pa.float64()),
        pa.field(FINISH_REASON, pa.string()),
        # Why there is no answer; empty if there is one.
        pa.field(REASON, pa.string(), nullable=False),
        # Empty factors, each with its problem.
        pa.field(FLAWS, pa.map_(pa.string(), pa.string()), nullable=False),
        # Reason for a retry; empty without one.
        pa.field(RETRY_REASON, pa.string(), nullable=False),
    ]
)
"""Output rows of an engine: one per question, in any order."""
