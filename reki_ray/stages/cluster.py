"""Stage cluster: every user and every item into exactly one cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
import ray.data

from reki_ray import schema
from reki_ray.clustering.clusterers import Grouping, build_clusterer, group
from reki_ray.clustering.vectors import Weighting, user_vectors, with_embeddings
from reki_ray.config import RekiConfig, SideClusterConfig
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import ray_session
from reki_ray.core.stage import StageResult
from reki_ray.core.vectors import vectors_table
from reki_ray.core.workspace import Workspace
from reki_ray.data.leak_guard import before_cut
from reki_ray.errors import DataError
from reki_ray.schema import SIDES, Side, Source
from reki_ray.stages.encode import EncodedSide, encode_source_texts

_NUMBER, _POINTS, _LABELS = "number", "points", "labels"
_PREFIX: Final[dict[Side, str]] = {"users": "u", "items": "i"}


def identify_inputs(config: RekiConfig) -> object:
    """Fingerprint of the model of `cluster.id_embeddings`; None without one."""
    if config.cluster.id_embeddings is None:
        return None
    from reki_ray.models import artifact  # imports torch

    return artifact.fingerprint(config.cluster.id_embeddings.model)


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Write `CLUSTERS` and `CLUSTER_VECTORS` of both sides."""
    with ray_session(config.ray):
        sides = represent(config, workspace, reporter)
        groupings = _group(config, sides, reporter)
    with workspace.replacing("cluster") as scratch:
        for side in SIDES:
            write_clusters(scratch, side, sides[side], groupings[side].clusters)
    return StageResult(
        rows_in=sum(len(sides[side].ids) for side in SIDES),
        rows_out=sum(groupings[side].clusters.num_rows for side in SIDES),
        details={side: groupings[side].figures for side in SIDES},
    )


def represent(
    config: RekiConfig, workspace: Workspace, reporter: Reporter
) -> dict[Side, EncodedSide]:
    """Vectors to cluster of both sides, from the tables of stage ingest; Ray is initialised.

    Raises:
        DataError: A table is missing or damaged, or a side is empty.
        EngineError: The encoder cannot be loaded.
        StoreError: The model of `cluster.id_embeddings` cannot be read.
    """
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
    if (extra := config.cluster.id_embeddings) is not None:
        from reki_ray.models import artifact  # imports torch

        ids, embeddings = artifact.load(extra.model).item_embeddings()
        vectors = with_embeddings(items.ids, items.vectors, ids, embeddings, extra.weight)
        items = replace(items, vectors=vectors)
    users = user_vectors(user_ids, visible, items.ids, items.vectors, weighting)
    return {"users": EncodedSide(user_ids, users, items.encoder), "items": items}


def write_clusters(
    scratch: Workspace, side: Side, encoded: EncodedSide, clusters: pa.Table
) -> None:
    """Write `CLUSTERS` and `CLUSTER_VECTORS` of one side."""
    scratch.write_table(schema.CLUSTERS[side], clusters)
    own: list[Source] = ["individual"] * len(encoded.ids)
    table = vectors_table(encoded.ids, encoded.vectors, own, encoded.encoder)
    scratch.write_table(schema.CLUSTER_VECTORS[side], table)


def _group(
    config: RekiConfig, sides: dict[Side, EncodedSide], reporter: Reporter
) -> dict[Side, Grouping]:
    """Group both sides: small ones in parallel tasks; large ones from here, part by part."""
    as_task: Any = ray.remote(num_cpus=1)  # its stubs lack keyword arguments
    remote = as_task(group)
    pending: dict[ray.ObjectRef[Grouping], Side] = {}
    done: dict[Side, Grouping] = {}
    with reporter.task("cluster: grouping", total=len(sides), unit="sides") as task:
        for side, encoded in sides.items():
            ids, vectors = encoded.ids, encoded.vectors
            sizes: SideClusterConfig = getattr(config.cluster, side)
            clusterer = build_clusterer(config.cluster, sizes, len(ids), map_on_cluster)
            limits: dict[str, Any] = {
                "min_size": sizes.min_cluster_size,
                "min_similarity": config.cluster.min_similarity,
            }
            if len(ids) <= config.cluster.part_rows:
                reference = remote.remote(ids, vectors, clusterer, _PREFIX[side], **limits)
                pending[reference] = side
            else:
                done[side] = group(ids, vectors, clusterer, _PREFIX[side], **limits)
                task.advance()
        while len(done) < len(sides):
            waiting = [reference for reference, side in pending.items() if side not in done]
            for reference in ray.wait(waiting, timeout=5.0)[0]:
                done[pending[reference]] = ray.get(reference)
                task.advance()
    return done


def map_on_cluster(
    function: Callable[[np.ndarray], np.ndarray], parts: list[np.ndarray]
) -> list[np.ndarray]:
    """`MapParts` by Ray Data, one block per part."""

    def of_row(row: dict[str, Any]) -> dict[str, Any]:
        return {_NUMBER: row[_NUMBER], _LABELS: function(row[_POINTS])}

    rows = [{_NUMBER: number, _POINTS: part} for number, part in enumerate(parts)]
    labels = ray.data.from_items(rows, override_num_blocks=len(rows)).map(of_row, num_cpus=1)
    labels_of = {row[_NUMBER]: row[_LABELS] for row in labels.iter_rows()}
    return [labels_of[number] for number in range(len(parts))]
