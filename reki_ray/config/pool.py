"""Settings that all pools of Ray actors share."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from reki_ray.config.base import OPERATIONAL, Section


class ReplicaPool(Section):
    """Replicas of a model that share a queue of work units."""

    min_replicas: int = Field(1, ge=1, json_schema_extra=OPERATIONAL)
    """Replicas that always run."""
    max_replicas: int = Field(1, ge=1, json_schema_extra=OPERATIONAL)
    """Replicas that a growing queue may start, as the cluster allows."""
    restarts: int = Field(3, ge=0, json_schema_extra=OPERATIONAL)
    """Restarts of failed replicas without progress before the stage fails."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is below min_replicas")
        return self
