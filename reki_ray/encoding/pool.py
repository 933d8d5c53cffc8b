"""Encoding on the cluster: a Ray Data pool of encoder actors that outlives dead ones."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, ExecutionResources
from ray.exceptions import RayError

from actors.encoding import EncodingActor
from reki_ray.config import EncodeConfig
from reki_ray.encoding.encoders import EncoderIdentity
from reki_ray.encoding.ledger import VectorLedger
from reki_ray.encoding.planning import Unit
from reki_ray.errors import EngineError
from reki_ray.progress import Reporter, Task
from reki_ray.runtime import capacity, cause_of, last_line
from reki_ray.workspace import Workspace

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
    units: Sequence[Unit],
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
    ledger = VectorLedger(workspace, identity)
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
    units: Sequence[Unit], workspace: Workspace, identity: EncoderIdentity, config: EncodeConfig
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


def _settle(name: str, left: dict[str, Unit], task: Task) -> None:
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
