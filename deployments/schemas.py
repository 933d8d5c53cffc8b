"""Requests and responses of the HTTP interface."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from reki_ray.schema import Side, Source

MAX_ID_CHARS = 512
MAX_LIST = 10_000
"""No configuration may allow longer lists in a request."""

Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS)]


class _Request(BaseModel):
    """Strict: a wrong type or an unknown key is the caller's mistake, never a guess of ours."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class HistoryItem(_Request):
    """One past interaction."""

    item_id: Id
    rating: float | None = Field(
        None, ge=-1e6, le=1e6, allow_inf_nan=False, description="On the scale of training."
    )
    timestamp: int | None = Field(
        None, ge=0, le=253_402_300_799, description="Seconds since the epoch, UTC."
    )


class ScoreRequest(_Request):
    """Candidates to score for one user."""

    user_id: Id
    candidates: list[Id] = Field(min_length=1, max_length=MAX_LIST)
    history: list[HistoryItem] | None = Field(
        None,
        max_length=MAX_LIST,
        description="Past interactions, oldest first, in place of the stored ones; leave it out "
        "to score with the stored ones.",
    )
    request_id: str | None = Field(
        None, min_length=1, max_length=128, description="Echoed; left out, one is made."
    )


class UserInfo(BaseModel):
    """Where the user's knowledge came from."""

    source: Source


class ItemScore(BaseModel):
    """Score of one candidate."""

    item_id: str
    score: float = Field(description="Probability of a positive interaction.")
    source: Source


class ScoreResponse(BaseModel):
    """Scores in the order of the candidates."""

    request_id: str
    model_version: str = Field(description="First 12 digits of the model's fingerprint.")
    store_version: str = Field(description="As v3.")
    variant: str = Field(description="Arm of the served model.")
    user: UserInfo
    scores: list[ItemScore]
    degraded: bool = Field(
        description="The user's profile and vector could not be used; fallbacks took their place."
    )


class KnowledgeText(BaseModel):
    """One answer of the LLM."""

    subject_kind: str
    subject_id: str
    factor: str = Field(description="* is the whole answer.")
    text: str
    model: str
    created_at: int = Field(description="Seconds since the epoch, UTC.")


class KnowledgeResponse(BaseModel):
    """The text behind the vector of an id."""

    id: str
    side: Side
    title: str | None = Field(description="Title of an item; null for users.")
    attributes: dict[str, list[str]] | None
    source: Source
    cluster_id: str | None = Field(description="Cluster whose answers the id shares.")
    knowledge: list[KnowledgeText]
    store_version: str


class SampleItem(BaseModel):
    """An item to try."""

    item_id: str
    title: str


class SampleResponse(BaseModel):
    """Some ids to try the service with."""

    users: list[str]
    items: list[SampleItem]
    store_version: str


class StatusResponse(BaseModel):
    """Answer of /healthz and /readyz."""

    status: str


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str = Field(description="Stable, for programs.")
    message: str = Field(description="For people.")
    details: dict[str, Any] = {}


class ErrorResponse(BaseModel):
    """Body of every answer with a status of 400 and above."""

    error: ErrorBody
