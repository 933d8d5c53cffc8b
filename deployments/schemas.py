"""Requests and responses of the HTTP interface."""

from __future__ import annotations

from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from reki_ray.config.serve import MAX_LIST, GraphSettings
from reki_ray.schema import MAX_ID_CHARS, Side, Source

DEFAULT_K: Final = 10
MAX_EVENTS = 1000
"""Events a request may bring: they are made durable together."""


def _whole(value: object) -> object:
    """A whole number that is written as 5.0, which JSON Schema takes for an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE: Final = BeforeValidator(_whole)
Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS)]
Rating = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Timestamp = Annotated[int, Field(ge=0, le=253_402_300_799), WHOLE]
RequestId = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class _Request(BaseModel):
    """Strict: a wrong type or an unknown key is the caller's mistake, never a guess of ours."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class HistoryItem(_Request):
    """One past interaction."""

    item_id: Id
    rating: Rating | None = Field(None, description="On the scale of training.")
    timestamp: Timestamp | None = Field(None, description="Seconds since the epoch, UTC.")


History = Annotated[list[HistoryItem], Field(max_length=MAX_LIST)]
_HISTORY = (
    "Past interactions, oldest first, in place of the stored ones; leave it out to use these."
)


VariantName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_VARIANT = (
    "Variant of the running experiment in place of the user's own, to compare them; such an answer "
    "is not an exposure."
)


StoreVersionName = Annotated[str, StringConstraints(pattern=r"^v[1-9][0-9]{0,9}$")]
_STORE_VERSION = (
    "Version to answer from in place of the user's own, one of those that /v1/versions lists; such "
    "an answer is not an exposure."
)


class _Chosen(_Request):
    """Which version answers, where the caller does not leave that to the service."""

    variant: VariantName | None = Field(None, description=_VARIANT)
    store_version: StoreVersionName | None = Field(None, description=_STORE_VERSION)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.variant is not None and self.store_version is not None:
            raise ValueError("name a variant or a store_version, not both")
        return self


class ScoreRequest(_Chosen):
    """Candidates to score for one user."""

    user_id: Id
    candidates: list[Id] = Field(min_length=1, max_length=MAX_LIST)
    history: History | None = Field(None, description=_HISTORY)
    request_id: RequestId | None = Field(None, description="Echoed; left out, one is made.")


class RecommendRequest(_Chosen):
    """How many unseen items to recommend to one user."""

    user_id: Id
    k: Annotated[int, Field(ge=1, le=MAX_LIST), WHOLE] = Field(
        DEFAULT_K, description="Items to recommend, at most."
    )
    history: History | None = Field(None, description=_HISTORY)
    exclude: list[Id] = Field(
        [], max_length=MAX_LIST, description="Items not to recommend, beside those of the history."
    )
    request_id: RequestId | None = Field(None, description="Echoed; left out, one is made.")


class EventItem(_Request):
    """One thing that a user did."""

    user_id: Id
    item_id: Id
    event: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")] = Field(
        description="Kind of event, as click or rating."
    )
    timestamp: Timestamp = Field(description="Seconds since the epoch, UTC.")
    rating: Rating | None = Field(None, description="On the scale of training.")
    request_id: RequestId | None = Field(
        None, description="Of the answer that showed the item, where there was one."
    )


Events = Annotated[list[EventItem], Field(min_length=1, max_length=MAX_EVENTS)]


VersionNumber = Annotated[int, Field(ge=1, le=2**31), WHOLE]
_EXPECTED = "Do so only if CURRENT names this version: a request that is sent twice is done once."


class PromoteRequest(_Request):
    """The version to serve from now on."""

    version: VersionNumber
    expected: VersionNumber | None = Field(None, description=_EXPECTED)


class RollbackRequest(_Request):
    """What a rollback may depend on."""

    expected: VersionNumber | None = Field(None, description=_EXPECTED)


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
    variant: str = Field(description="Variant of the experiment, or arm of the served model.")
    user: UserInfo
    scores: list[ItemScore]
    degraded: bool = Field(
        description="The user's profile and vector could not be used; fallbacks took their place."
    )


class RecommendedItem(ItemScore):
    """One recommended item."""

    title: str | None = Field(description="Null where it could not be looked up.")


class RecommendResponse(BaseModel):
    """Unseen items, the best one first."""

    request_id: str
    model_version: str = Field(description="First 12 digits of the model's fingerprint.")
    store_version: str = Field(description="As v3.")
    variant: str = Field(description="Variant of the experiment, or arm of the served model.")
    user: UserInfo
    items: list[RecommendedItem]
    degraded: bool = Field(description="A part of the graph could not be asked.")


class EventsResponse(BaseModel):
    """Events that are durable now."""

    accepted: int


class VariantInfo(BaseModel):
    """A version and the name under which it answers."""

    name: str
    version: int
    arm: str | None = Field(description="Arm of its model; null where it cannot be read.")


class VersionsResponse(BaseModel):
    """What is served."""

    current: int = Field(description="Number of the served version.")
    arm: str | None = Field(description="Arm of its model; null where it cannot be read.")
    variants: list[VariantInfo] = Field(description="Of the running experiment; empty without.")
    compared: VariantInfo | None = Field(
        description="Version that is kept open to compare the served one with, under the name of "
        "its arm; null without, and while an experiment runs."
    )


class VersionInfo(BaseModel):
    """A published version."""

    version: int
    arm: str
    backbone: str
    model_version: str = Field(description="First 12 digits of the model's fingerprint.")
    users: int
    items: int
    created_at: int = Field(description="Seconds since the epoch, UTC.")
    current: bool = Field(description="Whether CURRENT names it.")
    served: bool = Field(description="Whether this replica serves it.")


class AdminVersionsResponse(BaseModel):
    """All published versions, the newest one first."""

    versions: list[VersionInfo]


class PromotedResponse(BaseModel):
    """What a promotion or a rollback led to."""

    current: int = Field(description="Number that CURRENT names.")
    served: int = Field(description="Number that this replica serves.")


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


def with_limits(schema: dict[str, Any], limits: GraphSettings) -> None:
    """Write configured limits into a description of the interface, which else tells the widest.

    Args:
        schema: Of OpenAPI.
        limits: Of a gateway.
    """
    requests = schema["components"]["schemas"]
    score = requests[ScoreRequest.__name__]["properties"]
    recommend = requests[RecommendRequest.__name__]["properties"]
    score["candidates"]["maxItems"] = limits.max_candidates
    recommend["exclude"]["maxItems"] = limits.max_candidates
    recommend["k"] |= {
        "maximum": limits.max_recommended,
        "default": min(DEFAULT_K, limits.max_recommended),
    }
    for properties in (score, recommend):
        for one in properties["history"]["anyOf"]:
            if one.get("type") == "array":
                one["maxItems"] = limits.max_history
