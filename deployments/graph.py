"""The composed graph: gateway -> lookup -> gateway -> scorer.

serve run deployments.graph:build_app publish_root=runs/movielens-100k/publish
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application, Deployment

from deployments.gateway import Gateway, GatewaySettings
from deployments.lookup import Lookup
from deployments.schemas import MAX_LIST
from deployments.scorer import Scorer
from reki_ray.store.versions import VersionStore

_DEFAULT = GatewaySettings()


class GraphArgs(BaseModel):
    """Arguments of the graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    publish_root: str = Field(description="Folder of the published versions.")
    version: int | None = Field(None, ge=1, description="Version to serve; null is the current.")
    gateway_replicas: int = Field(1, ge=1, description="Replicas of the gateway.")
    lookup_replicas: int = Field(1, ge=1, description="Replicas of the lookup.")
    scorer_replicas: int = Field(1, ge=1, description="Replicas of the scorer.")
    max_candidates: int = Field(
        _DEFAULT.max_candidates, ge=1, le=MAX_LIST, description="Candidates a request may name."
    )
    max_history: int = Field(
        _DEFAULT.max_history, ge=0, le=MAX_LIST, description="Interactions a request may carry."
    )
    timeout_seconds: float = Field(
        _DEFAULT.timeout_seconds, gt=0, description="Time budget of a request, seconds."
    )


def build_app(args: GraphArgs) -> Application:
    """Compose the graph.

    The version is fixed here, so that a replica that restarts after a publication serves the
    same vectors as the others.

    Args:
        args: Arguments, or a mapping with their keys.

    Raises:
        StoreError: Nothing is published at `publish_root`.
    """
    args = GraphArgs.model_validate(args)
    root = Path(args.publish_root).resolve()
    store = VersionStore(root)
    version = store.current() if args.version is None else args.version
    settings = GatewaySettings(
        max_candidates=args.max_candidates,
        max_history=args.max_history,
        timeout_seconds=args.timeout_seconds,
    )
    lookup = _deployment(Lookup, args.lookup_replicas, cpus=0.1).bind(str(root), version)
    scorer = _deployment(Scorer, args.scorer_replicas, cpus=0.5).bind(str(root), version)
    gateway = _deployment(Gateway, args.gateway_replicas, cpus=0.1)
    return gateway.bind(lookup, scorer, settings)


def _deployment(kind: type[object], replicas: int, *, cpus: float) -> Deployment:
    return serve.deployment(
        num_replicas=replicas,
        # Small claims let the graph fit beside other work on two cores.
        ray_actor_options={"num_cpus": cpus},
        # Requests wait for each other more than they compute; at Serve's default of 5 they
        # would queue in the proxy while replicas idle.
        max_ongoing_requests=200,
        # A new replica comes up before the old one leaves: with a single replica, an update
        # would otherwise answer 503 meanwhile.
        max_surge_percent=100,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=5.0,
    )(kind)
