"""Stage cluster: every user and every item into exactly one cluster."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import ray

from reki_ray import schema
from reki_ray.clustering.grouping import Grouping, group
from reki_ray.clustering.hdbscan import build_clusterer
from reki_ray.clustering.representations import Weighting, user_vectors
from reki_ray.config import RekiConfig
from reki_ray.encoding.pool import encode_texts
from reki_ray.encoding.texts import item_texts
from reki_ray.errors import DataError
from reki_ray.histories import before_cut
from reki_ray.pipeline import StageResult
from reki_ray.progress import Reporter
from reki_ray.runtime import ray_session
from reki_ray.schema import SIDES, Side
from reki_ray.vectors import require_finite, vectors_table
from reki_ray.workspace import Workspace

_PREFIX: Final[dict[Side, str]] = {"users": "u", "items": "i"}


class _Side(NamedTuple):
    ids: list[str]
    vectors: np.ndarray


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Write `CLUSTERS` and `CLUSTER_VECTORS` of both sides."""
    with ray_session(config.ray):
        sides = _represent(config, workspace, reporter)
        groupings = _group(config, sides, reporter)
    with workspace.replacing("cluster") as scratch:
        for side in SIDES:
            ids, vectors = sides[side]
            scratch.write_table(schema.CLUSTERS[side], groupings[side].clusters)
            table = vectors_table(ids, vectors, ["individual"] * len(ids))
            scratch.write_table(schema.CLUSTER_VECTORS[side], table)
    return StageResult(
        rows_in=sum(len(sides[side].ids) for side in SIDES),
        rows_out=sum(groupings[side].clusters.num_rows for side in SIDES),
        details={side: groupings[side].figures for side in SIDES},
    )


def _represent(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> dict[Side, _Side]:
    items = workspace.read_table(schema.ITEMS)
    user_ids = workspace.read_table(schema.USERS, columns=[schema.USER_ID])[
        schema.USER_ID
    ].to_pylist()
    item_ids = items[schema.ITEM_ID].to_pylist()
    if not item_ids or not user_ids:
        raise DataError(
            f"there are {len(user_ids)} users and {len(item_ids)} items, nothing to cluster",
            where=workspace.path("ingest"),
            todo="Check the data source and its quarantine.",
        )
    texts = item_texts(items, config.prompts)
    encoded = encode_texts(item_ids, texts, config.encode, reporter, "cluster: encoding items")
    require_finite(item_ids, encoded, what="item vectors")
    visible = before_cut(
        workspace.read_table(schema.INTERACTIONS), workspace.read_table(schema.CUTS)
    )
    weighting = Weighting(config.cluster.half_life, config.data.rating_min, config.data.rating_max)
    users = user_vectors(user_ids, visible, item_ids, encoded, weighting)
    return {"users": _Side(user_ids, users), "items": _Side(item_ids, encoded)}


def _group(
    config: RekiConfig, sides: dict[Side, _Side], reporter: Reporter
) -> dict[Side, Grouping]:
    """Both sides at once, each a Ray task."""
    remote = ray.remote(num_cpus=1)(group)
    sizes = {"users": config.cluster.users, "items": config.cluster.items}
    pending = {}
    for side, (ids, vectors) in sides.items():
        clusterer = build_clusterer(config.cluster, sizes[side])
        smallest = sizes[side].min_cluster_size
        pending[remote.remote(ids, vectors, clusterer, smallest, _PREFIX[side])] = side
    done: dict[Side, Grouping] = {}
    with reporter.task("cluster: grouping", total=len(pending), unit="sides") as task:
        while len(done) < len(pending):
            open_tasks = [ref for ref, side in pending.items() if side not in done]
            for ref in ray.wait(open_tasks, timeout=5.0)[0]:
                done[pending[ref]] = ray.get(ref)
                task.advance()
    return done
