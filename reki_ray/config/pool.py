"""Settings that all pools of Ray actors share."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from reki_ray.config.base import OPERATIONAL, Section


class ReplicaPool(Section):
    """Replicas of a model that share a queue of work units."""

    min_replicas: int = Field(
        1, ge=1, description="Replicas that always run.", json_schema_extra=OPERATIONAL
    )
    max_replicas: int = Field(
        1,
        ge=1,
        description="Replicas that a growing queue may start, as the cluster allows.",
        json_schema_extra=OPERATIONAL,
    )
    restarts: int = Field(
        3,
        ge=0,
        description="Restarts of failed replicas without progress before the stage fails.",
        json_schema_extra=OPERATIONAL,
    )

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is below min_replicas")
        return self
