"""Clustering of one side from vectors to the finished table: what a Ray task runs.

Apart from the stage, so that a worker loads no encoder to group vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from reki_ray.clustering.assignment import assign_all, name_clusters, split_until_close
from reki_ray.clustering.protocol import NOISE, Clusterer
from reki_ray.clustering.quality import describe
from reki_ray.schema import CLUSTER_ID, CLUSTERS_SCHEMA, ID, METHOD, SIMILARITY
from reki_ray.vectors import require_finite

PLACED: Final = "+nearest"
"""Ending of `method` for an id that the algorithm left as noise and the nearest centre took."""


class Rules(NamedTuple):
    """What every cluster must keep, whatever the algorithm found.

    Attributes:
        min_size: Smallest cluster, members; below it only where `min_similarity` splits.
        min_similarity: Least cosine of a member and its centre; None asks for none.
    """

    min_size: int
    min_similarity: float | None = None


class Grouping(NamedTuple):
    """Clustering of one side: rows of `CLUSTERS_SCHEMA` and JSON-ready figures."""

    clusters: pa.Table
    figures: dict[str, Any]


def group(
    ids: Sequence[str], vectors: np.ndarray, clusterer: Clusterer, rules: Rules, prefix: str
) -> Grouping:
    """Cluster one side and place every id.

    Args:
        ids: N >= 1 distinct ids.
        vectors: (N, d), rows of unit length.
        clusterer: The algorithm.
        rules: What every cluster must keep.
        prefix: First letter of the cluster ids.

    Raises:
        DataError: A vector is not finite.
    """
    require_finite(ids, vectors, what="vectors to cluster")
    raw = clusterer.fit(vectors)
    assignment = assign_all(vectors, raw, rules.min_size)
    if rules.min_similarity is not None:
        assignment = split_until_close(vectors, assignment, rules.min_similarity)
    names = name_clusters(ids, assignment.labels, prefix)
    methods = [clusterer.method + (PLACED if label == NOISE else "") for label in raw.tolist()]
    table = pa.table(
        {ID: ids, CLUSTER_ID: names, SIMILARITY: assignment.similarities, METHOD: methods},
        schema=CLUSTERS_SCHEMA,
    )
    return Grouping(table, describe(vectors, raw, assignment))
