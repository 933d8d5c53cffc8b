"""Sections of the store and the online graph."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from reki_ray.config.section import Section
from reki_ray.config.training import Arm


class PublishConfig(Section):
    """What is prestored."""

    arm: Arm | Literal["auto"] = Field(
        "auto", description="Arm to serve; auto takes the knowledge arm best on validation."
    )
    history: int = Field(50, ge=1, description="Latest interactions kept a user for the scorer.")


class ServeConfig(Section):
    """The composed graph."""

    app: str = Field(
        "deployments.graph:build_app", description="Import path of the application builder."
    )
    host: str = Field("127.0.0.1", description="Address of the HTTP proxy.")
    port: int = Field(
        8000, ge=0, le=65535, description="Port of the HTTP proxy; 0 takes a free one."
    )
    gateway_replicas: int = Field(1, ge=1, description="Replicas of the gateway.")
    lookup_replicas: int = Field(1, ge=1, description="Replicas of the lookup.")
    scorer_replicas: int = Field(1, ge=1, description="Replicas of the scorer.")
    max_candidates: int = Field(1000, ge=1, description="Candidates a request may name.")
    max_history: int = Field(200, ge=1, description="Interactions a request may carry.")
    timeout_seconds: float = Field(2.0, gt=0, description="Time budget of a request, seconds.")
    measure_candidates: int = Field(100, ge=1, description="Candidates a measured request.")
    measure_requests: int = Field(200, ge=10, description="Measured requests in stage serve.")
