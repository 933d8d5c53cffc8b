"""Clustering of one side from vectors to the finished table: what a Ray task runs.

Apart from the stage, so that a worker loads no encoder to group vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from reki_ray.clustering.assignment import assign_all, name_clusters
from reki_ray.clustering.protocol import NOISE, Clusterer
from reki_ray.clustering.quality import describe
from reki_ray.schema import CLUSTER_ID, CLUSTERS_SCHEMA, ID, METHOD, SIMILARITY

PLACED: Final = "+nearest"
"""Ending of `method` for an id that the algorithm left as noise and the nearest centre took."""


class Grouping(NamedTuple):
    """Clustering of one side: rows of `CLUSTERS_SCHEMA` and JSON-ready figures."""

    clusters: pa.Table
    figures: dict[str, Any]


def group(
    ids: Sequence[str], vectors: np.ndarray, clusterer: Clusterer, smallest: int, prefix: str
) -> Grouping:
    """Cluster one side and place every id.

    Args:
        ids: N >= 1 distinct ids.
        vectors: (N, d), rows of unit length.
        clusterer: The algorithm.
        smallest: Smallest cluster, members.
        prefix: First letter of the cluster ids.
    """
    raw = clusterer.fit(vectors)
    assignment = assign_all(vectors, raw, smallest)
    names = name_clusters(ids, assignment.labels, prefix)
    methods = [clusterer.method + (PLACED if label == NOISE else "") for label in raw.tolist()]
    table = pa.table(
        {ID: ids, CLUSTER_ID: names, SIMILARITY: assignment.similarities, METHOD: methods},
        schema=CLUSTERS_SCHEMA,
    )
    return Grouping(table, describe(vectors, raw, assignment))
