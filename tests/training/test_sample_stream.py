"""Training samples from their files: every one once, equal shares, an order that a seed fixes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from reki_ray import schema
from reki_ray.config import TrainConfig
from reki_ray.core.workspace import Workspace
from reki_ray.errors import DataError
from reki_ray.training.batches import WorkerShard
from reki_ray.training.dataset import Dataset, Ids, read_dataset
from reki_ray.training.sample_files import PackedSamples, SampleFiles, in_units, unpack
from reki_ray.training.sample_stream import shuffled_batches, streams
from tests.support.trained_workspace import fill

TRAIN = schema.SAMPLES["train"]


@pytest.fixture
def uneven(workspace: Workspace) -> Workspace:
    """Training samples in three files, row groups of 7, 50 and 1000 rows."""
    fill(workspace)
    rows = workspace.read_table(TRAIN)
    for part, (start, length, group) in {
        "part-00000": (0, 30, 7),
        "part-00001": (30, 201, 50),
        "part-00002": (231, len(rows) - 231, 1000),
    }.items():
        workspace.write_table(TRAIN, rows.slice(start, length), part=part, row_group_rows=group)
    return workspace


@pytest.fixture
def dataset(uneven: Workspace) -> Dataset:
    return read_dataset(uneven)


def share(epoch: int = 1, rank: int = 0, world: int = 1, batch_size: int = 16) -> WorkerShard:
    return WorkerShard(seed=3, epoch=epoch, rank=rank, world=world, batch_size=batch_size)


def read(files: SampleFiles, of: WorkerShard, dataset: Dataset) -> Iterator[PackedSamples]:
    ids = Ids(pa.array(dataset.user_ids), pa.array(dataset.item_ids))
    for unit in in_units(files.pieces(of), rows=40):
        yield files.read(unit, ids)


def sorted_rows(packed: PackedSamples) -> PackedSamples:
    rows: PackedSamples = packed[np.lexsort(packed.T)]
    return rows


def held(dataset: Dataset) -> PackedSamples:
    train = dataset.samples["train"]
    labels = train.labels.astype(np.int64)
    packed = np.stack([train.users, train.items, train.positions, labels], axis=1)
    return packed.astype(np.int32)


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_epoch_streams_the_samples_that_are_held(
    uneven: Workspace, dataset: Dataset, epoch: int
) -> None:
    files = SampleFiles.find(uneven)
    assert len(files) == len(dataset.samples["train"])
    batches = list(shuffled_batches(read(files, share(epoch), dataset), 16, 64, seed=[3, epoch, 0]))
    assert len(batches) == share().steps(len(files))
    assert {len(batch) for batch in batches[:-1]} == {16}
    np.testing.assert_array_equal(sorted_rows(np.concatenate(batches)), sorted_rows(held(dataset)))
    samples = unpack(batches[0])
    assert set(samples.labels) <= {0.0, 1.0}
    assert samples.labels.dtype == np.float32


@pytest.mark.parametrize("world", [2, 3, 7, 1000])
def test_shares_are_equally_long_and_miss_nothing(
    uneven: Workspace, dataset: Dataset, world: int
) -> None:
    files = SampleFiles.find(uneven)
    parts = [
        np.concatenate(list(read(files, share(rank=rank, world=world), dataset)))
        for rank in range(min(world, 8))
    ]
    assert {len(part) for part in parts} == {share(world=world).samples(len(files))}
    if world <= 8:
        together = np.unique(np.concatenate(parts), axis=0)
        np.testing.assert_array_equal(together, np.unique(held(dataset), axis=0))


def test_order_follows_from_seed_and_epoch(uneven: Workspace, dataset: Dataset) -> None:
    files = SampleFiles.find(uneven)

    def order(epoch: int) -> PackedSamples:
        chunks = read(files, share(epoch), dataset)
        return np.concatenate(list(shuffled_batches(chunks, 16, 64, seed=[3, epoch, 0])))

    np.testing.assert_array_equal(order(1), order(1))
    assert not np.array_equal(order(1), order(2))


def test_pool_as_large_as_the_stream_mixes_it_whole() -> None:
    stream = np.arange(4000, dtype=np.int32).repeat(4).reshape(-1, 4)
    batches = list(shuffled_batches(np.array_split(stream, 9), 100, len(stream), seed=[0]))
    means = [batch[:, 0].mean() for batch in batches]
    assert max(abs(np.array(means) - 2000)) < 600  # a sorted stream's would be 50 to 3950
    assert len(np.unique(np.concatenate(batches)[:, 0])) == 4000


def test_pool_stays_as_small_as_it_was_told() -> None:
    taken = 0

    def chunks() -> Iterator[PackedSamples]:
        nonlocal taken
        for _ in range(100):
            taken += 50
            yield np.zeros((50, 4), dtype=np.int32)

    given = 0
    for batch in shuffled_batches(chunks(), 20, 200, seed=[0]):
        given += len(batch)
        assert taken - given <= 200 + 50
    assert given == 5000


def test_unknown_id_is_named(uneven: Workspace, dataset: Dataset) -> None:
    files = SampleFiles.find(uneven)
    ids = Ids(pa.array(dataset.user_ids), pa.array(dataset.item_ids[1:]))
    with pytest.raises(DataError, match=f"item_id '{dataset.item_ids[0]}'"):
        files.read(files.everything(), ids)


def test_auto_streams_what_is_too_much_to_hold(uneven: Workspace) -> None:
    rows = len(SampleFiles.find(uneven))
    assert not streams(TrainConfig(), uneven)
    assert not streams(TrainConfig(max_held_samples=rows), uneven)
    assert streams(TrainConfig(max_held_samples=rows - 1), uneven)
    assert not streams(TrainConfig(max_held_samples=0, data="tensors"), uneven)


def test_a_split_without_training_samples_is_an_error(uneven: Workspace) -> None:
    nothing = uneven.read_table(TRAIN).slice(0, 0)
    for part in ("part-00000", "part-00001", "part-00002"):
        uneven.write_table(TRAIN, nothing, part=part)
    with pytest.raises(DataError, match="no train samples"):
        SampleFiles.find(uneven)
