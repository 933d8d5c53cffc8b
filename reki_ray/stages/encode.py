"""Stage encode: a Ray Data pool of encoder actors that survives the death of actors."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, ExecutionResources
from ray.exceptions import RayError

from actors.encoder import EncodingActor
from reki_ray import schema
from reki_ray.config import EncodeConfig, RekiConfig
from reki_ray.core.downloads import model_reference
from reki_ray.core.progress import Reporter, Task
from reki_ray.core.ray_cluster import capacity, cause_of, last_line, ray_session
from reki_ray.core.stage import StageResult
from reki_ray.core.workspace import Workspace
from reki_ray.encoding.encoders import EncoderIdentity, identify
from reki_ray.encoding.planner import EncodeUnit, plan_texts, read_rows
from reki_ray.encoding.tables import write_tables
from reki_ray.encoding.vector_cache import VectorCache
from reki_ray.errors import DataError, EngineError
from reki_ray.schema import REPRESENTATIONS, SIDES, TEXT_REPRESENTATIONS, Side


@dataclass(frozen=True)
class EncodedSide:
    """Encoded source texts of one side.

    Attributes:
        ids: N ids, in the order of their table.
        vectors: (N, d) float32, rows of unit length.
        encoder: Encoder of the vectors, see `vectors_table`.
    """

    ids: list[str]
    vectors: np.ndarray
    encoder: dict[str, str]


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Write `REPRESENTATIONS` and `TEXT_REPRESENTATIONS` of both sides."""
    for table in (*schema.CLUSTERS.values(), schema.KNOWLEDGE):
        workspace.read_table(table, columns=[])  # reports a missing table before Ray starts
    identity = identify(config.encode, say=reporter.say)
    cache = VectorCache(workspace, identity)
    tables = [*REPRESENTATIONS.values(), *TEXT_REPRESENTATIONS.values()]
    with (
        ray_session(config.ray),
        plan_texts(config, workspace, cache.index(), SIDES, reporter, with_knowledge=True) as plan,
    ):
        for side in SIDES:
            sources = plan.sources(side)
            count = sum(sources.values())
            if sources.get("fallback", 0) == count:
                raise DataError(
                    f"there is no knowledge about any of the {count} {side}",
                    where=workspace.path(schema.KNOWLEDGE.path),
                    todo="Read the reasons in extract/dead, fix the engine, run `reki extract` "
                    "again.",
                )
        encode_units(
            plan.units, workspace, identity, config.encode, reporter, "encode: encoding texts"
        )
        index = cache.index()
        # Only the tables: the cache is in the same folder and stays.
        with workspace.replacing("encode", tables) as scratch:
            write_tables(plan, index, identity, workspace, scratch, reporter)
    total = sum(sum(plan.sources(side).values()) for side in SIDES)
    return StageResult(
        rows_in=total,
        rows_out=total,
        details={
            **identity.metadata,
            "dimension": cache.dimension(index),
            "texts": plan.total,
            "texts_encoded": plan.new,
            "texts_found": plan.total - plan.new,
            "sources": {side: plan.sources(side) for side in SIDES},
        },
    )


def encode_source_texts(
    config: RekiConfig, workspace: Workspace, side: Side, reporter: Reporter, label: str
) -> EncodedSide:
    """Encode the source texts of one side, on the initialised Ray cluster.

    They share the vector cache of stage encode: each text is encoded once per workspace.

    Args:
        side: With at least one id.
        label: What is being encoded, such as `cluster: encoding items`.

    Raises:
        DataError: A table or the cache is damaged, or a text is blank.
        EngineError: The model cannot be loaded, or the cluster is too small.
    """
    identity = identify(config.encode, say=reporter.say)
    cache = VectorCache(workspace, identity)
    with plan_texts(
        config, workspace, cache.index(), [side], reporter, with_knowledge=False
    ) as plan:
        encode_units(plan.units, workspace, identity, config.encode, reporter, label)
        shards = [read_rows(workspace, shard) for shard in plan.shards]
    hashes = np.concatenate([shard.texts for shard in shards])
    return EncodedSide(
        ids=[key for shard in shards for key in shard.ids],
        vectors=cache.vectors(cache.index(), hashes),
        encoder=identity.metadata,
    )


_ACTOR_CPUS = 1
_UNITS_PER_PASS = 4096
"""Ray Data keeps something in memory for each unit of a pass."""
_UNIT: Final = pa.schema(
    [
        ("name", pa.string()),
        ("path", pa.string()),
        ("row_group", pa.int32()),
        ("rows", pa.list_(pa.int32())),
    ]
)


def encode_units(
    units: Sequence[EncodeUnit],
    workspace: Workspace,
    identity: EncoderIdentity,
    config: EncodeConfig,
    reporter: Reporter,
    label: str,
) -> None:
    """Encode work units into the vector cache, on the initialised Ray cluster.

    The death of an actor ends the pass; the next one takes the remaining units.

    Raises:
        DataError: A text cannot be encoded.
        EngineError: The model cannot be loaded, the cluster is too small, the workspace cannot
            be written, or actors die repeatedly without finishing a unit.
    """
    if not units:
        return
    _require_resources(config)
    cache = VectorCache(workspace, identity)
    left = {unit.name: unit for unit in units}
    failures = 0
    total = sum(len(unit.rows) for unit in units)
    with reporter.task(label, total=total, unit="texts") as task:
        while left:
            before = len(left)
            reason = ""
            try:
                units = list(left.values())[:_UNITS_PER_PASS]
                for name in _run_pass(units, workspace, identity, config):
                    _finish(name, left, task)
            except RayError as error:
                if (known := cause_of(error)) is not None:
                    raise known from error
                reason = last_line(error)
            if reason:
                # Units that were saved by an actor that died before it reported them.
                for name in cache.units() & left.keys():
                    _finish(name, left, task)
                # The error's traceback holds the pass and its actors, whose CPUs are needed.
                gc.collect()
            progress = len(left) < before
            if progress and not reason:
                continue
            failures = 1 if progress else failures + 1
            if failures > config.restarts:
                raise EngineError(
                    f"the encoder actors failed {failures} times in a row: "
                    f"{reason or 'they ended without an error'}",
                    where=f"encode.model = {config.model}, {len(left)} units left",
                    todo="Check that every node can load this model; lower encode.batch_size if "
                    "memory ran out. Finished units are saved: run again.",
                )
            reporter.say(f"{label}: encoder actors failed, {len(left)} units left, restarting")


def _run_pass(
    units: Sequence[EncodeUnit],
    workspace: Workspace,
    identity: EncoderIdentity,
    config: EncodeConfig,
) -> Iterator[str]:
    """Yield the names of units as they are saved, in any order."""
    portable = config.model_copy(update={"model": model_reference(config.model)})
    # One block per unit: otherwise a small table is one block, and one actor does all the work.
    dataset = ray.data.from_arrow(
        [pa.Table.from_pylist([vars(unit)], schema=_UNIT) for unit in units]
    )
    # Ray Data waits forever if its actors take every CPU: one is left for its tasks.
    dataset.context.execution_options.exclude_resources = ExecutionResources(cpu=1)
    # Otherwise Ray Data replaces an actor's error with its own.
    dataset.context.raise_original_map_exception = True
    encoded = dataset.map_batches(
        EncodingActor,
        fn_constructor_args=(portable, identity, workspace.location),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=config.min_replicas, max_size=config.max_replicas),
        num_cpus=_ACTOR_CPUS,
        num_gpus=_gpus(config),
        # Ray's own restarts need the arguments that Ray Data keeps in the object store, which may
        # be gone by then (https://github.com/ray-project/ray/issues/53727).
        max_restarts=0,
    )
    saved: Iterable[Any] = encoded.iter_batches(batch_size=None, batch_format="pyarrow")
    for batch in saved:
        yield from batch["name"].to_pylist()


def _finish(name: str, left: dict[str, EncodeUnit], task: Task) -> None:
    unit = left.pop(name)
    task.advance(len(unit.rows), texts=len(unit.rows))


def _gpus(config: EncodeConfig) -> int:
    """Number of GPUs of one actor."""
    if config.device == "cpu":
        return 0
    kwargs = config.engine_kwargs
    return int(kwargs.get("tensor_parallel_size", 1) * kwargs.get("pipeline_parallel_size", 1))


def _require_resources(config: EncodeConfig) -> None:
    """Refuse a cluster without room for the smallest pool and a CPU for Ray Data's own tasks."""
    available = capacity()
    needed = {
        "CPU": config.min_replicas * _ACTOR_CPUS + 1,
        "GPU": config.min_replicas * _gpus(config),
    }
    for kind, amount in needed.items():
        if available.get(kind, 0) < amount:
            raise EngineError(
                f"encoding needs {amount} {kind}s, the cluster has {available.get(kind, 0):g}",
                where=f"encode.min_replicas = {config.min_replicas}, device {config.device}",
                todo="Lower encode.min_replicas, or add nodes to the cluster.",
            )
