"""The graph: composed of deployments, or fused into one.

serve run deployments.graph:build_app publish_root=runs/movielens-100k/publish
serve run deployments.graph:build_fused_app publish_root=runs/movielens-100k/publish

Composed, each part scales and fails by itself; fused, a request makes no hop. Both are made of
the same classes and give the same scores.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import Field
from ray import serve
from ray.serve import Application, Deployment

from deployments.extensions import OnlineArgs, open_extensions, open_recent
from deployments.gateway import Extend, FusedGateway, Gateway, no_extensions
from deployments.http.api import GatewaySettings
from deployments.parts.lookup import Lookup, OpenRecent
from deployments.parts.reranker import Reranker
from deployments.parts.retriever import Retriever
from deployments.parts.scorer import Scorer
from deployments.parts.version_cache import StoreAccess
from reki_ray.config import AdapterSettings, Arm
from reki_ray.config.serve import GraphSettings

RETRY_AFTER_SECONDS: Final = 1.0

NODE_SHARE: Final = 0.001
"""What a replica takes of a node's resource: it marks nodes, and bounds nothing."""

OTHER_REQUESTS: Final = 32
"""Probes and requests of operators that a gateway works on beside those of callers."""


class GraphArgs(GraphSettings, GatewaySettings):
    """Arguments of the graph."""

    publish_root: str = Field(description="Folder of the published versions.")
    vectors: AdapterSettings = Field(
        AdapterSettings(), description="Where vectors are looked up, as `store.vectors` of a run."
    )
    compare: Arm | None = Field(
        None,
        description="Arm whose newest version requests may name beside the served one, as "
        "`publish.compare` of a run; it is kept open too. Null: none.",
    )
    online: OnlineArgs | None = Field(
        OnlineArgs(), description="Events and experiments; null takes no events."
    )

    @property
    def access(self) -> StoreAccess:
        """Where the versions are."""
        root = str(Path(self.publish_root).resolve())
        return StoreAccess(
            publish_root=root,
            version=self.version,
            vectors=self.vectors.resolved(),
            kept=self.kept_versions,
            compare=self.compare,
        )

    @property
    def settings(self) -> GatewaySettings:
        """What of these the gateway takes."""
        return GatewaySettings.model_validate(
            self.model_dump(include=set(GatewaySettings.model_fields))
        )

    @property
    def extend(self) -> Extend:
        """Makes what a gateway has beyond versions."""
        return no_extensions if self.online is None else partial(open_extensions, self.online)

    @property
    def recent(self) -> OpenRecent | None:
        """Opens what is known of recent interactions, in a lookup."""
        return None if self.online is None else partial(open_recent, self.online, self.access)


def build_app(args: GraphArgs) -> Application:
    """Compose the graph: a gateway that calls lookup, retriever, scorer and reranker.

    Args:
        args: Arguments, or a mapping with their keys.

    Raises:
        ConfigError: The server of vectors may take longer than the lookup.
        StoreError: Nothing is published at `publish_root`.
    """
    args, access = _checked(args)
    lookup = _part(args, Lookup, args.lookup_replicas, cpus=0.1).bind(access, args.recent)
    scorer = _part(args, Scorer, args.scorer_replicas, cpus=0.5).bind(access, args.max_batch_size)
    further = [
        _part(args, kind, args.scorer_replicas, cpus=0.2).bind(access)
        for kind in (Retriever, Reranker)
    ]
    gateway = _ingress(args, Gateway, cpus=0.1)
    return gateway.bind(access, args.settings, lookup, scorer, *further, args.extend)


def build_fused_app(args: GraphArgs) -> Application:
    """The same graph in one deployment, without a hop inside.

    Args:
        args: Arguments, or a mapping with their keys; the replicas are those of the gateway.

    Raises:
        ConfigError: The server of vectors may take longer than the lookup.
        StoreError: Nothing is published at `publish_root`.
    """
    args, access = _checked(args)
    gateway = _ingress(args, FusedGateway, cpus=0.5)
    return gateway.bind(
        access,
        args.settings,
        args.max_batch_size,
        args.recent,
        args.extend,
    )


def _checked(args: GraphArgs) -> tuple[GraphArgs, StoreAccess]:
    """The arguments, with what would else be told in a replica's log alone."""
    args = GraphArgs.model_validate(args)
    args.vectors.require_in_time(args)
    access = args.access
    access.wanted()
    return args, access


def _ingress(args: GraphArgs, kind: type[object], *, cpus: float) -> Deployment:
    ongoing = args.max_ongoing_requests
    return _deployment(
        args,
        kind,
        args.gateway_replicas,
        cpus,
        # Above all bounds of the gateway together, one for each kind of request, so that it
        # answers what is too much itself, and probes come through whatever hangs.
        max_ongoing_requests=4 * ongoing + OTHER_REQUESTS,
        max_queued_requests=2 * ongoing,
        backpressure_config={"retry_after_s": RETRY_AFTER_SECONDS},
    )


def _part(args: GraphArgs, kind: type[object], replicas: int, *, cpus: float) -> Deployment:
    return _deployment(
        args,
        kind,
        replicas,
        cpus,
        # Calls wait for each other more than they compute, and what waits makes batches; at
        # Serve's default of 5 they would queue in the gateway while replicas idle.
        max_ongoing_requests=max(args.max_ongoing_requests, 2 * args.max_batch_size),
        max_queued_requests=args.max_queued_requests,
    )


def _deployment(
    args: GraphArgs, kind: type[object], replicas: int, cpus: float, **limits: Any
) -> Deployment:
    scaling: dict[str, Any] = {"num_replicas": replicas}
    if args.max_replicas is not None:
        scaling = {
            "autoscaling_config": {
                "min_replicas": replicas,
                "max_replicas": args.max_replicas,
                "target_ongoing_requests": args.target_ongoing_requests,
            }
        }
    place = {} if args.node_resource is None else {args.node_resource: NODE_SHARE}
    return serve.deployment(
        **scaling,
        **limits,
        # Small claims let the graph fit beside other work on two cores.
        ray_actor_options={"num_cpus": cpus, "resources": place},
        # A new replica comes up before the old one leaves: with a single replica, an update
        # would otherwise answer 503 meanwhile.
        max_surge_percent=100,
        graceful_shutdown_wait_loop_s=0.2,
        # Requests in work, then the exposures of the last ones (`gateway.CLOSE_SECONDS`).
        graceful_shutdown_timeout_s=10.0,
        # A replica that died is replaced when its health is looked at.
        health_check_period_s=2.0,
    )(kind)
