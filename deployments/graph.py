"""The graph: composed of deployments, or fused into one.

serve run deployments.graph:build_app publish_root=runs/movielens-100k/publish
serve run deployments.graph:build_fused_app publish_root=runs/movielens-100k/publish

Composed, each part scales and fails by itself; fused, a request makes no call to another process.
Both consist of the same classes and return the same scores.
"""

from __future__ import annotations

from typing import Any, Final

from ray import serve
from ray.serve import Application, Deployment

from deployments.gateway import FusedGateway, Gateway
from deployments.graph_args import GraphArgs
from deployments.parts.item_lists import Reranker, Retriever
from deployments.parts.lookup import Lookup
from deployments.parts.scorer import Scorer

RETRY_AFTER_SECONDS: Final = 1.0
NODE_SHARE: Final = 0.001
"""Amount of `node_resource` per replica: it selects nodes and limits nothing."""
OTHER_REQUESTS: Final = 32
"""Probes and operators' requests that a gateway takes beside those of callers."""


def build_app(args: GraphArgs) -> Application:
    """Compose the graph of a gateway that calls lookup, retriever, scorer and reranker.

    Raises:
        ConfigError: The vector server's timeout exceeds that of the lookup.
        StoreError: Nothing is published at `publish_root`.
    """
    args = _checked(args)
    scorers = args.scorer_replicas
    return _ingress(args, Gateway, cpus=0.1).bind(
        args,
        _part(args, Lookup, args.lookup_replicas, cpus=0.1).bind(args, args.online),
        _part(args, Scorer, scorers, cpus=0.5).bind(args, args.max_batch_size),
        *(_part(args, kind, scorers, cpus=0.2).bind(args) for kind in (Retriever, Reranker)),
    )


def build_fused_app(args: GraphArgs) -> Application:
    """Build the same graph as a single deployment with the gateway's number of replicas."""
    args = _checked(args)
    return _ingress(args, FusedGateway, cpus=0.5).bind(args)


def _checked(args: GraphArgs) -> GraphArgs:
    """Validate arguments and report here what would otherwise only be in a replica's log."""
    args = GraphArgs.model_validate(args).resolved()
    args.vectors.require_in_time(args)
    args.wanted()
    return args


def _ingress(args: GraphArgs, kind: type[object], *, cpus: float) -> Deployment:
    ongoing = args.max_ongoing_requests
    return _deployment(
        args,
        kind,
        args.gateway_replicas,
        cpus,
        # Above the sum of the gateway's own bounds per kind of request, so that the gateway itself
        # answers overload, and probes always come through.
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
        # Waiting calls form batches; at Serve's default of 5 they would queue in the gateway while
        # replicas idle.
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
    resources = {} if args.node_resource is None else {args.node_resource: NODE_SHARE}
    return serve.deployment(
        **scaling,
        **limits,
        # Small claims let the graph share two cores with other work.
        ray_actor_options={"num_cpus": cpus, "resources": resources},
        # Start a new replica before the old one stops: with a single replica, an update would
        # otherwise answer 503 meanwhile.
        max_surge_percent=100,
        graceful_shutdown_wait_loop_s=0.2,
        # Ongoing requests, then the last exposures (`gateway.CLOSE_SECONDS`).
        graceful_shutdown_timeout_s=10.0,
        # A health check replaces a dead replica.
        health_check_period_s=2.0,
    )(kind)
