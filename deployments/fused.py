"""Deployment `FusedGateway`: the whole graph in one replica, from the same classes, no hop."""

from __future__ import annotations

from ray import serve

from deployments.api import GatewaySettings
from deployments.backend import LocalBackend
from deployments.gateway import Extend, HttpReplica, no_extensions
from deployments.lookup import Lookup, OpenRecent
from deployments.reranker import Reranker
from deployments.retriever import Retriever
from deployments.scorer import Scorer
from deployments.versions import StoreAccess


@serve.ingress()
class FusedGateway(HttpReplica):
    """Serves the HTTP interface over parts of its own.

    Args:
        access: Where versions are.
        settings: Limits.
        max_batch_size: Most requests per forward pass.
        recent: Opens recent interactions; None leaves them out.
        extend: Makes what the graph has beyond versions; called once, in the replica.

    Raises:
        StoreError: Neither CURRENT nor an older version opens.
    """

    def __init__(
        self,
        access: StoreAccess,
        settings: GatewaySettings,
        max_batch_size: int,
        recent: OpenRecent | None = None,
        extend: Extend = no_extensions,
    ) -> None:
        backend = LocalBackend(
            Lookup(access, recent),
            Scorer(access, max_batch_size),
            Retriever(access),
            Reranker(access),
        )
        super().__init__(backend, access, settings, extend)
