"""Tables of vectors, gathered from the cache by Ray tasks: one part of a table per shard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import ray

from reki_ray import schema
from reki_ray.core.content_store import ContentIndex
from reki_ray.core.progress import Reporter
from reki_ray.core.ray_cluster import bounded
from reki_ray.core.vectors import factors_table, normalise, vectors_table
from reki_ray.core.workspace import Workspace
from reki_ray.encoding.encoders import EncoderIdentity
from reki_ray.encoding.planner import PlannedShard, ShardTexts, TextPlan, read_rows
from reki_ray.encoding.vector_cache import VectorCache
from reki_ray.schema import SIDES, Side, Source


@dataclass(frozen=True)
class _GatherTask:
    """What all gathering tasks share."""

    location: str
    scratch: str
    identity: EncoderIdentity

    @property
    def cache(self) -> VectorCache:
        return VectorCache(Workspace(self.location), self.identity)


def write_tables(
    plan: TextPlan,
    index: ContentIndex,
    identity: EncoderIdentity,
    workspace: Workspace,
    scratch: Workspace,
    reporter: Reporter,
) -> None:
    """Write `REPRESENTATIONS` and `TEXT_REPRESENTATIONS` of both sides.

    Args:
        plan: Texts of all ids, with knowledge about at least one id of each side.
        index: Index of the vector cache, which holds them all.
        scratch: Gets the tables.

    Raises:
        DataError: A file of the cache is damaged.
    """
    task = ray.put(_GatherTask(workspace.location, scratch.location, identity))
    shared = ray.put(index)
    fallbacks = {side: _fallback(task, shared, plan, side) for side in SIDES}
    with reporter.task("encode: writing tables", total=len(plan.shards), unit="parts") as progress:
        calls = (
            (_write_shard, (task, shared, shard, number, fallbacks[side]))
            for side in SIDES
            for number, shard in enumerate(plan.of(side))
        )
        for _ in bounded(calls):
            progress.advance()


def _fallback(
    task: ray.ObjectRef[_GatherTask],
    index: ray.ObjectRef[ContentIndex],
    plan: TextPlan,
    side: Side,
) -> np.ndarray | None:
    """Mean direction (K, d) of a side's known ids by factor; None if all ids are known."""
    if not plan.sources(side).get("fallback"):
        return None
    calls = (
        (_sum_shard, (task, index, shard, number))
        for number, shard in enumerate(plan.of(side))
        if shard.sources.total() > shard.sources["fallback"]
    )
    # In the order of the shards: a sum of floats depends on the order.
    sums = dict(bounded(calls))
    return normalise(sum(sums[number] for number in sorted(sums)))


@ray.remote
def _sum_shard(
    task: _GatherTask, index: ContentIndex, shard: PlannedShard, number: int
) -> tuple[int, np.ndarray]:
    """Sum (K, d) float64 of the vectors of a shard's known ids, at least one."""
    rows = read_rows(Workspace(task.location), shard)
    return number, _knowledge(task, index, rows).sum(axis=0, dtype=np.float64)


def _knowledge(task: _GatherTask, index: ContentIndex, rows: ShardTexts) -> np.ndarray:
    """Vectors (N, K, d) of a shard's ids, zeros for unknown factors; blends second answers in."""
    known = task.cache.vectors(index, rows.knowledge[rows.known])
    weights = rows.weights[rows.known, None]
    blended = weights[:, 0] < 1
    if blended.any():
        seconds = task.cache.vectors(index, rows.seconds[rows.known][blended])
        mixture = weights[blended] * known[blended] + (1 - weights[blended]) * seconds
        known[blended] = normalise(mixture)
    vectors = np.zeros((*rows.known.shape, known.shape[1]), dtype=np.float32)
    vectors[rows.known] = known
    return vectors


@ray.remote
def _write_shard(
    task: _GatherTask,
    index: ContentIndex,
    shard: PlannedShard,
    number: int,
    fallback: np.ndarray | None,
) -> None:
    """Write a shard's part of both tables."""
    rows = read_rows(Workspace(task.location), shard)
    if not rows.ids:
        return
    scratch, encoder = Workspace(task.scratch), task.identity.metadata
    part = f"part-{number:05d}"
    texts = task.cache.vectors(index, rows.texts)  # (N, d)
    own: list[Source] = ["individual"] * len(rows.ids)
    table = vectors_table(rows.ids, texts, own, encoder)
    scratch.write_table(schema.TEXT_REPRESENTATIONS[shard.side], table, part=part)
    knowledge = np.zeros((*rows.known.shape, texts.shape[1]), dtype=np.float32)
    if rows.known.any():
        knowledge = _knowledge(task, index, rows)
    if fallback is not None:
        knowledge[~rows.known.any(axis=1)] = fallback
    table = factors_table(rows.ids, shard.factors, knowledge, rows.sources, encoder)
    scratch.write_table(schema.REPRESENTATIONS[shard.side], table, part=part)
