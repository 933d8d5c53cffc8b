"""Stage cluster: every user and every item into exactly one cluster."""

from __future__ import annotations

from typing import Final

import ray

from reki_ray import schema
from reki_ray.clustering.build import build_clusterer
from reki_ray.clustering.grouping import Grouping, Rules, group
from reki_ray.clustering.representations import Weighting, user_vectors
from reki_ray.config import RekiConfig
from reki_ray.encoding.stage import EncodedSide, encode_source_texts
from reki_ray.errors import DataError
from reki_ray.histories import before_cut
from reki_ray.pipeline import StageResult
from reki_ray.progress import Reporter
from reki_ray.runtime import ray_session
from reki_ray.schema import SIDES, Side
from reki_ray.vectors import vectors_table
from reki_ray.workspace import Workspace

_PREFIX: Final[dict[Side, str]] = {"users": "u", "items": "i"}


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Write `CLUSTERS` and `CLUSTER_VECTORS` of both sides."""
    with ray_session(config.ray):
        sides = _represent(config, workspace, reporter)
        groupings = _group(config, sides, reporter)
    with workspace.replacing("cluster") as scratch:
        for side in SIDES:
            ids, vectors, encoder = sides[side].ids, sides[side].vectors, sides[side].encoder
            scratch.write_table(schema.CLUSTERS[side], groupings[side].clusters)
            table = vectors_table(ids, vectors, ["individual"] * len(ids), encoder)
            scratch.write_table(schema.CLUSTER_VECTORS[side], table)
    return StageResult(
        rows_in=sum(len(sides[side].ids) for side in SIDES),
        rows_out=sum(groupings[side].clusters.num_rows for side in SIDES),
        details={side: groupings[side].figures for side in SIDES},
    )


def _represent(
    config: RekiConfig, workspace: Workspace, reporter: Reporter
) -> dict[Side, EncodedSide]:
    user_ids, item_ids = (
        workspace.read_table(table, columns=[key])[key].to_pylist()
        for table, key in ((schema.USERS, schema.USER_ID), (schema.ITEMS, schema.ITEM_ID))
    )
    if not item_ids or not user_ids:
        raise DataError(
            f"there are {len(user_ids)} users and {len(item_ids)} items, nothing to cluster",
            where=workspace.path("ingest"),
            todo="Check the data source and its quarantine.",
        )
    items = encode_source_texts(config, workspace, "items", reporter, "cluster: encoding items")
    visible = before_cut(
        workspace.read_table(schema.INTERACTIONS), workspace.read_table(schema.CUTS)
    )
    weighting = Weighting(config.cluster.half_life, config.data.rating_min, config.data.rating_max)
    users = user_vectors(user_ids, visible, items.ids, items.vectors, weighting)
    return {"users": EncodedSide(user_ids, users, items.encoder), "items": items}


def _group(
    config: RekiConfig, sides: dict[Side, EncodedSide], reporter: Reporter
) -> dict[Side, Grouping]:
    """Both sides at once, each a Ray task."""
    remote = ray.remote(num_cpus=1)(group)
    sizes = {"users": config.cluster.users, "items": config.cluster.items}
    pending = {}
    for side, encoded in sides.items():
        clusterer = build_clusterer(config.cluster, sizes[side], len(encoded.ids))
        rules = Rules(sizes[side].min_cluster_size, config.cluster.min_similarity)
        reference = remote.remote(encoded.ids, encoded.vectors, clusterer, rules, _PREFIX[side])
        pending[reference] = side
    done: dict[Side, Grouping] = {}
    with reporter.task("cluster: grouping", total=len(pending), unit="sides") as task:
        while len(done) < len(pending):
            open_tasks = [ref for ref, side in pending.items() if side not in done]
            for ref in ray.wait(open_tasks, timeout=5.0)[0]:
                done[pending[ref]] = ray.get(ref)
                task.advance()
    return done
