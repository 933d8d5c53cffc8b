"""Encoding on the cluster: a Ray Data pool of encoder actors that outlives dead ones."""

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
from reki_ray.core.progress import Reporter, Task
from reki_ray.core.ray_cluster import capacity, cause_of, last_line, ray_session
from reki_ray.core.stage import StageResult
from reki_ray.core.workspace import Workspace
from reki_ray.encoding.encoders import EncoderIdentity, identify
from reki_ray.encoding.planner import EncodeUnit, TextPlan, plan_texts, read_rows
from reki_ray.encoding.tables import metadata_of, write_tables
from reki_ray.encoding.vector_cache import VectorCache
from reki_ray.errors import DataError, EngineError
from reki_ray.schema import REPRESENTATIONS, SIDES, TEXT_REPRESENTATIONS, Side


@dataclass(frozen=True)
class EncodedSide:
    """Encoded source texts of one side.

    Attributes:
        ids: N ids, in the order of their table.
        vectors: (N, d) float32, rows of unit length.
        encoder: Which encoder they are from, as `vectors_table` keeps it.
    """

    ids: list[str]
    vectors: np.ndarray
    encoder: dict[str, str]


def run(config: RekiConfig, workspace: Workspace, reporter: Reporter) -> StageResult:
    """Write `REPRESENTATIONS` and `TEXT_REPRESENTATIONS` of both sides."""
    for table in (schema.CLUSTERS["users"], schema.CLUSTERS["items"], schema.KNOWLEDGE):
        workspace.read_table(table, columns=[])  # a missing table is told before Ray starts
    identity = identify(config.encode, say=reporter.say)
    ledger = VectorCache(workspace, identity)
    tables = [*REPRESENTATIONS.values(), *TEXT_REPRESENTATIONS.values()]
    with (
        ray_session(config.ray),
        plan_texts(config, workspace, ledger.index(), SIDES, reporter, with_knowledge=True) as plan,
    ):
        for side in SIDES:
            _require_some(side, plan, workspace)
        encode_units(
            plan.units, workspace, identity, config.encode, reporter, "encode: encoding texts"
        )
        index = ledger.index()
        # The ledger lies in the same folder and stays.
        with workspace.replacing("encode", tables) as scratch:
            write_tables(plan, index, identity, workspace, scratch, reporter)
    total = sum(sum(plan.sources(side).values()) for side in SIDES)
    return StageResult(
        rows_in=total,
        rows_out=total,
        details=_details(plan, identity, ledger.dimension(index)),
    )


def encode_source_texts(
    config: RekiConfig, workspace: Workspace, side: Side, reporter: Reporter, label: str
) -> EncodedSide:
    """Encode the source texts of one side, on the Ray cluster that is initialised.

    They go into the same ledger as those of stage encode: each text is encoded once a workspace.

    Args:
        config: The run.
        workspace: Holds the tables of stage ingest; gets the ledger.
        side: Users or items; at least one id.
        reporter: Shows progress.
        label: What is being encoded, as `cluster: encoding items`.

    Raises:
        DataError: A table or the ledger is damaged, or a text is blank.
        EngineError: The model cannot be loaded, or the cluster is too small.
    """
    identity = identify(config.encode, say=reporter.say)
    ledger = VectorCache(workspace, identity)
    with plan_texts(
        config, workspace, ledger.index(), [side], reporter, with_knowledge=False
    ) as plan:
        encode_units(plan.units, workspace, identity, config.encode, reporter, label)
        rows = [read_rows(workspace, shard) for shard in plan.shards]
    hashes = np.concatenate([one.texts for one in rows])
    return EncodedSide(
        ids=[key for one in rows for key in one.ids],
        vectors=ledger.vectors(ledger.index(), hashes),
        encoder=metadata_of(identity),
    )


def _details(plan: TextPlan, identity: EncoderIdentity, dimension: int) -> dict[str, object]:
    return {
        **metadata_of(identity),
        "dimension": dimension,
        "texts": plan.total,
        "texts_encoded": plan.new,
        "texts_found": plan.total - plan.new,
        "sources": {side: plan.sources(side) for side in SIDES},
    }


def _require_some(side: Side, plan: TextPlan, workspace: Workspace) -> None:
    sources = plan.sources(side)
    total = sum(sources.values())
    if sources.get("fallback", 0) == total:
        raise DataError(
            f"there is no knowledge about any of the {total} {side}",
            where=workspace.path(schema.KNOWLEDGE.path),
            todo="Read the reasons in extract/dead, correct the engine, run `reki extract` again.",
        )


_ACTOR_CPUS = 1

_UNITS_A_PASS = 4096

"""Units a pass: Ray Data keeps something in memory for each of them."""

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
    """Encode work units into the ledger, on the Ray cluster that is initialised.

    An actor that dies ends the pass, and a new one takes what is left.

    Args:
        units: Work units whose texts the ledger lacks.
        workspace: Holds the files of the texts; gets the ledger.
        identity: Identity of the encoder.
        config: Model, batch size, number of actors and of restarts.
        reporter: Shows progress.
        label: What is being encoded, as `encode: encoding texts`.

    Raises:
        DataError: A text cannot be encoded.
        EngineError: The model cannot be loaded, the cluster is too small, the workspace cannot
            be written, or actors die again and again without finishing a unit.
    """
    if not units:
        return
    _require_resources(config)
    ledger = VectorCache(workspace, identity)
    left = {unit.name: unit for unit in units}
    failures = 0
    total = sum(len(unit.rows) for unit in units)
    with reporter.task(label, total=total, unit="texts") as task:
        while left:
            before = len(left)
            reason = ""
            try:
                some = list(left.values())[:_UNITS_A_PASS]
                for name in _run_pass(some, workspace, identity, config):
                    _settle(name, left, task)
            except RayError as error:
                if (known := cause_of(error)) is not None:
                    raise known from error
                reason = last_line(error)
            if reason:
                # Units that were kept and whose actor died before it could say so.
                for name in ledger.units() & left.keys():
                    _settle(name, left, task)
                # The error's traceback holds the pass, and that its actors: their CPUs are needed.
                gc.collect()
            progress = len(left) < before
            if progress and not reason:
                continue
            failures = 1 if progress else failures + 1
            if failures > config.restarts:
                raise _exhausted(reason, config, failures, len(left))
            reporter.say(f"{label}: encoder actors failed, {len(left)} units left, restarting")


def _run_pass(
    units: Sequence[EncodeUnit],
    workspace: Workspace,
    identity: EncoderIdentity,
    config: EncodeConfig,
) -> Iterator[str]:
    """Names of units as they are kept, in any order."""
    # One block a unit: otherwise a small table is one block, and one actor does all the work.
    blocks = [
        pa.Table.from_pylist(
            [{"name": u.name, "path": u.path, "row_group": u.row_group, "rows": u.rows}],
            schema=_UNIT,
        )
        for u in units
    ]
    dataset = ray.data.from_arrow(blocks)
    # Ray Data waits for ever where its actors take every CPU: one is left for its tasks.
    dataset.context.execution_options.exclude_resources = ExecutionResources(cpu=1)
    # Otherwise Ray Data puts its own error in the place of an actor's, and ours is lost.
    dataset.context.raise_original_map_exception = True
    encoded = dataset.map_batches(
        EncodingActor,
        fn_constructor_args=(config, identity, workspace.location),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=config.min_replicas, max_size=config.max_replicas),
        num_cpus=_ACTOR_CPUS,
        num_gpus=_gpus(config),
        # Ray's own restarts need the arguments that Ray Data keeps in the object store, which may
        # be gone by then (https://github.com/ray-project/ray/issues/53727).
        max_restarts=0,
    )
    kept: Iterable[Any] = encoded.iter_batches(batch_size=None, batch_format="pyarrow")
    for batch in kept:
        yield from batch["name"].to_pylist()


def _settle(name: str, left: dict[str, EncodeUnit], task: Task) -> None:
    unit = left.pop(name)
    task.advance(len(unit.rows), texts=len(unit.rows))


def _gpus(config: EncodeConfig) -> int:
    """GPUs of one actor."""
    if config.device == "cpu":
        return 0
    kwargs = config.engine_kwargs
    return int(kwargs.get("tensor_parallel_size", 1) * kwargs.get("pipeline_parallel_size", 1))


def _require_resources(config: EncodeConfig) -> None:
    """The actors that must be there, and one CPU more for Ray Data's own tasks.

    Raises:
        EngineError: The cluster is too small.
    """
    there = capacity()
    needed = {
        "CPU": config.min_replicas * _ACTOR_CPUS + 1,
        "GPU": config.min_replicas * _gpus(config),
    }
    for kind, amount in needed.items():
        if there.get(kind, 0) < amount:
            raise EngineError(
                f"encoding needs {amount} {kind}s, the cluster has {there.get(kind, 0):g}",
                where=f"encode.min_replicas = {config.min_replicas}, device {config.device}",
                todo="Lower encode.min_replicas, or add nodes to the cluster.",
            )


def _exhausted(reason: str, config: EncodeConfig, failures: int, left: int) -> EngineError:
    return EngineError(
        f"the encoder actors failed {failures} times in a row: "
        f"{reason or 'they ended without a word'}",
        where=f"encode.model = {config.model}, {left} units left",
        todo="Check that every node can load this model; lower encode.batch_size if memory ran "
        "out. What was finished is kept: run again.",
    )
