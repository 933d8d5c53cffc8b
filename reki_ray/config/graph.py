"""What the online graph is told, whether by a run's configuration or by `serve deploy`."""

from __future__ import annotations

from typing import Final, Self

from pydantic import Field, model_validator

from reki_ray.config.section import OPERATIONAL, Section

MAX_LIST: Final = 10_000
"""No configuration may allow longer lists in a request."""


LOOKUP_SHARE: Final = 0.4
"""Share of a request's time that the lookup may take; most is left to the scorer."""


class RequestLimits(Section):
    """Limits of the HTTP interface."""

    max_candidates: int = Field(
        1000, ge=1, le=MAX_LIST, description="Candidates a request may name."
    )
    max_history: int = Field(
        200, ge=0, le=MAX_LIST, description="Interactions a request may carry."
    )
    max_recommended: int = Field(
        100, ge=1, le=MAX_LIST, description="Items that may be recommended at once."
    )
    retrieved: int = Field(
        200, ge=1, le=MAX_LIST, description="Items that are scored for one recommendation."
    )
    max_ongoing_requests: int = Field(
        64,
        ge=1,
        description="Requests of a kind that a gateway works on at once: scores and "
        "recommendations, events, and what is read; more are answered 503 at once.",
    )
    timeout_seconds: float = Field(2.0, gt=0, description="Time budget of a request, seconds.")

    @property
    def lookup_seconds(self) -> float:
        """Time of the lookup in a request, the first of two attempts."""
        return LOOKUP_SHARE * self.timeout_seconds / 2


class GraphSettings(RequestLimits):
    """Version, replicas, scaling, queues and limits of the graph."""

    version: int | None = Field(
        None, ge=1, description="The only version to serve; null follows what is promoted."
    )
    kept_versions: int = Field(
        3,
        ge=1,
        description="Opened versions kept in a replica: the promoted one, the one compared with it "
        "or those of an experiment, and one to turn to. An experiment that needs more is refused.",
    )
    gateway_replicas: int = Field(1, ge=1, description="Replicas of the gateway, at least.")
    lookup_replicas: int = Field(1, ge=1, description="Replicas of the lookup, at least.")
    scorer_replicas: int = Field(1, ge=1, description="Replicas of the scorer, at least.")
    max_replicas: int | None = Field(
        None, ge=1, description="Most replicas of a deployment under load; null: no autoscaling."
    )
    target_ongoing_requests: float = Field(
        8.0, gt=0, description="Requests in progress per replica that autoscaling aims at."
    )
    max_queued_requests: int = Field(
        64, ge=1, description="Calls that wait in a gateway for a busy part; more are refused."
    )
    max_batch_size: int = Field(16, ge=1, description="Most requests per forward pass.")
    node_resource: str | None = Field(
        None,
        min_length=1,
        description="Custom resource of the nodes that have the published versions, as vectors of "
        "`ray start --resources '{\"vectors\": 1}'`: replicas run on these alone. Null: all have.",
        json_schema_extra=OPERATIONAL,
    )

    @model_validator(mode="after")
    def _ranges_are_no_empty_ones(self) -> Self:
        least = max(self.gateway_replicas, self.lookup_replicas, self.scorer_replicas)
        if self.max_replicas is not None and self.max_replicas < least:
            raise ValueError(f"max_replicas is {self.max_replicas}, but {least} are asked for")
        return self
