"""Training samples streamed by Ray Data: into the workers, and into a summary for the driver.

Every worker runs a small pipeline over its share of an epoch, so that the order of an epoch
depends on seed and epoch alone, also after a restart. One pipeline for all workers would give
them different numbers of rows, or drop rows, in a different order each time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
from ray.data import ExecutionOptions, ExecutionResources

from reki_ray.config import RekiConfig, TrainConfig
from reki_ray.core.ray_cluster import ray_session
from reki_ray.core.workspace import Workspace
from reki_ray.errors import DataError
from reki_ray.training.batches import BatchBuilder, Prepared, WorkerShard
from reki_ray.training.dataset import Dataset, Ids, TrainSummary, read_dataset
from reki_ray.training.sample_files import (
    TABLE,
    PackedSamples,
    Pieces,
    SampleFiles,
    in_units,
    unpack,
)

_ROWS: Final = "rows"
_AHEAD_BYTES: Final = 64 * 2**20
"""Object store that a pipeline may fill with samples not taken yet."""

_ERROR: Final = "error"

Columns = dict[str, npt.NDArray[Any]]
Process = Callable[[PackedSamples], Columns]


@dataclass(frozen=True)
class SampleStream:
    """Source of training samples that are not held in memory.

    Args:
        ids: Reference to `Ids`, in a list so that Ray passes it on unresolved.
    """

    files: SampleFiles
    ids: list[ray.ObjectRef[Ids]]


class StreamedSamples:
    """Training samples of one run, streamed in every epoch; `buffer` of them are shuffled."""

    def __init__(self, stream: SampleStream, builder: BatchBuilder, buffer: int) -> None:
        self._stream = stream
        self._builder = builder
        self._buffer = buffer

    def __len__(self) -> int:
        return len(self._stream.files)

    def epoch(self, share: WorkerShard) -> Iterator[Prepared]:
        """Batches of a share in random order."""
        pieces = self._stream.files.pieces(share)
        chunks = (part[_ROWS] for part in _pipeline(self._stream, pieces, _as_column))
        seed = [share.seed, share.epoch, share.rank]
        for batch in shuffled_batches(chunks, share.batch_size, self._buffer, seed):
            yield self._builder.prepare(unpack(batch))


def streams(config: TrainConfig, workspace: Workspace) -> bool:
    """Whether the training samples of a workspace are streamed under this configuration.

    Raises:
        DataError: There are none, or a file is damaged.
    """
    if config.data == "auto" and workspace.has_table(TABLE):
        too_many = len(SampleFiles.find(workspace)) > config.max_held_samples
        return too_many and not config.rerankers  # lists are made of held samples
    return config.data == "stream"


def load_dataset(config: RekiConfig, workspace: Workspace) -> Dataset:
    """Read the data set as `train.data` says: training samples held, or summarised from a stream.

    Raises:
        DataError: See `read_dataset`.
        EngineError: The samples are streamed, and Ray cannot be started.
    """
    if not streams(config.train, workspace):
        return read_dataset(workspace)
    with ray_session(config.ray):
        return read_dataset(workspace, summarise=partial(summarise, workspace))


def open_stream(workspace: Workspace, user_ids: list[str], item_ids: list[str]) -> SampleStream:
    """Stream of a workspace's training samples; needs a running Ray.

    Raises:
        DataError: There are no samples, or a file is damaged.
    """
    ids = Ids(pa.array(user_ids, pa.string()), pa.array(item_ids, pa.string()))
    return SampleStream(SampleFiles.find(workspace), [ray.put(ids)])


def summarise(workspace: Workspace, user_ids: list[str], item_ids: list[str]) -> TrainSummary:
    """Summary of a workspace's training samples from one pass over them, see `Summarise`.

    Raises:
        DataError: There are no samples, a file is damaged, or an id is unknown.
    """
    stream = open_stream(workspace, user_ids, item_ids)
    users, last = np.zeros((2, len(user_ids)), dtype=np.int64)
    items = np.zeros(len(item_ids), dtype=np.int64)
    digest = np.zeros(1, dtype=np.uint64)
    for part in _pipeline(stream, stream.files.everything(), _counts):
        place, value = part["place"], part["value"]
        # Places are distinct within a part and a kind, so that plain indexing adds them up.
        for kind, target in enumerate((users, items)):
            chosen = part["kind"] == kind
            target[place[chosen]] += value[chosen]
        chosen = part["kind"] == _LAST
        last[place[chosen]] = np.maximum(last[place[chosen]], value[chosen])
        digest += value[part["kind"] == _DIGEST].view(np.uint64).sum(dtype=np.uint64)
    return TrainSummary(
        samples=len(stream.files), items=items, users=users, last=last, digest=f"{digest[0]:016x}"
    )


def _pipeline(stream: SampleStream, pieces: Pieces, process: Process) -> Iterator[Columns]:
    """Results of `process` for the samples of each unit of pieces, in their order."""
    units = in_units(pieces)
    read = partial(_read_unit, stream.files, stream.ids, [ray.put(units)], process)
    data: ray.data.Dataset = ray.data.range(len(units), override_num_blocks=len(units)).map_batches(
        read, batch_size=None, batch_format="numpy"
    )
    data.context.execution_options = ExecutionOptions(
        preserve_order=True, resource_limits=ExecutionResources(object_store_memory=_AHEAD_BYTES)
    )
    for part in data.iter_batches(batch_size=None, batch_format="numpy"):
        if _ERROR in part:
            raise DataError(**json.loads(str(part[_ERROR][0])))
        yield part


def _read_unit(
    files: SampleFiles,
    ids: list[ray.ObjectRef[Ids]],
    units: list[ray.ObjectRef[list[Pieces]]],
    process: Process,
    batch: Columns,
) -> Columns:
    """Task of a unit: read, map ids to places, process; an error that the user can act on is data.

    Of one that is raised here Ray Data keeps the text of its traceback alone.
    """
    known, pieces = ray.get(ids[0]), ray.get(units[0])
    try:
        return process(np.concatenate([files.read(pieces[unit], known) for unit in batch["id"]]))
    except DataError as error:
        content = {"what": error.what, "where": error.where, "todo": error.todo}
        return {_ERROR: np.array([json.dumps(content)])}


def _as_column(packed: PackedSamples) -> Columns:
    return {_ROWS: packed}


_LAST, _DIGEST = 2, 3


def _counts(packed: PackedSamples) -> Columns:
    """Samples of each user (kind 0) and item (1), last position of each user (2), digest (3)."""
    users, of_user, samples = np.unique(packed[:, 0], return_inverse=True, return_counts=True)
    last = np.zeros(len(users), dtype=np.int64)
    np.maximum.at(last, of_user, packed[:, 2])
    items, of_item = np.unique(packed[:, 1], return_counts=True)
    zero = np.zeros(1, dtype=np.int64)
    places: list[npt.NDArray[np.integer]] = [users, items, users, zero]
    values: list[npt.NDArray[np.integer]] = [samples, of_item, last, _digest(packed)]
    kinds = np.repeat(np.arange(len(places)), [len(part) for part in places])
    return {"kind": kinds, "place": np.concatenate(places), "value": np.concatenate(values)}


def _digest(packed: PackedSamples) -> npt.NDArray[np.int64]:
    """Sum of a hash of every sample (1,), independent of order and chunks."""
    mixed = np.zeros(len(packed), dtype=np.uint64)
    for column in packed.T:
        # One round of splitmix64 (Steele et al., OOPSLA 2014) per column.
        mixed += column.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    total: npt.NDArray[np.uint64] = mixed.sum(keepdims=True, dtype=np.uint64)
    return total.view(np.int64)


def shuffled_batches(
    chunks: Iterable[PackedSamples], batch_size: int, buffer: int, seed: list[int]
) -> Iterator[PackedSamples]:
    """Batches (batch_size, 4) of a stream, each drawn at random from a pool; the last is smaller.

    Every sample comes exactly once, and a seed gives the same batches of the same chunks. A pool
    as large as the stream shuffles it fully.

    Args:
        chunks: The stream, (n, 4) each.
        buffer: Samples that the pool holds at least when a batch is drawn, until the stream ends.
    """
    random = np.random.default_rng(seed)
    pool = np.empty((0, 4), dtype=np.int32)
    count = 0
    least = max(buffer, batch_size)
    for chunk in chunks:
        pool = _append(pool, count, chunk)
        count += len(chunk)
        while count >= least:
            yield _draw(pool, count, batch_size, random)
            count -= batch_size
    while count:
        size = min(batch_size, count)
        yield _draw(pool, count, size, random)
        count -= size


def _append(pool: PackedSamples, count: int, chunk: PackedSamples) -> PackedSamples:
    """The pool with a chunk after its first `count` rows; it grows only if needed."""
    needed = count + len(chunk)
    if needed > len(pool):
        larger = np.empty((needed, 4), dtype=np.int32)
        larger[:count] = pool[:count]
        pool = larger
    pool[count:needed] = chunk
    return pool


def _draw(pool: PackedSamples, count: int, size: int, random: np.random.Generator) -> PackedSamples:
    """Take `size` of the first `count` rows out; rows of the end fill the gaps."""
    drawn = random.choice(count, size, replace=False)
    batch = pool[drawn]
    left = count - size
    moving = np.ones(size, dtype=bool)  # the last `size` rows, without those drawn
    moving[drawn[drawn >= left] - left] = False
    pool[drawn[drawn < left]] = pool[left:count][moving]
    return batch
