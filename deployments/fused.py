"""Deployment `FusedGateway`: the whole graph in one replica, from the same classes, no hop."""

from __future__ import annotations

from collections.abc import Callable

from ray import serve

from deployments.api import GatewaySettings
from deployments.backend import LocalBackend, RerankerLike, RetrieverLike
from deployments.gateway import Extend, HttpReplica, no_extensions
from deployments.lookup import Lookup, OpenRecent
from deployments.scorer import Scorer
from deployments.versions import StoreAccess


@serve.ingress()
class FusedGateway(HttpReplica):
    """Serves the HTTP interface over lookup and scorer of its own.

    Args:
        access: Where versions are.
        settings: Limits.
        max_batch_size: Most requests a forward.
        retriever: Makes a retriever; None for a graph without.
        reranker: Makes a reranker; None for a graph without.
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
        retriever: Callable[[StoreAccess], RetrieverLike] | None = None,
        reranker: Callable[[StoreAccess], RerankerLike] | None = None,
        recent: OpenRecent | None = None,
        extend: Extend = no_extensions,
    ) -> None:
        backend = LocalBackend(
            Lookup(access, recent),
            Scorer(access, max_batch_size),
            None if retriever is None else retriever(access),
            None if reranker is None else reranker(access),
        )
        super().__init__(backend, access, settings, extend)
