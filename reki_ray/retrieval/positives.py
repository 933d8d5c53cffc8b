"""What users liked before each sample, as arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reki_ray.core.workspace import Workspace
from reki_ray.schema import Split
from reki_ray.training.batches import WorkerShard
from reki_ray.training.dataset import Dataset, Ids, Ints, Samples
from reki_ray.training.sample_files import (
    LABEL_COLUMN,
    PackedSamples,
    SampleFiles,
    in_units,
    unpack,
)


def held_positives(dataset: Dataset, split: Split) -> Samples:
    """Positive samples of a split that is held."""
    samples = dataset.samples[split]
    return samples.take(np.flatnonzero(samples.labels > 0))


def streamed_positives(workspace: Workspace, dataset: Dataset, most: int, seed: int) -> Samples:
    """Positive training samples out of files that are too large to be held.

    Row groups are taken in random order until there are `most`.

    Raises:
        DataError: There are no samples, a file is damaged, or an id is unknown.
    """
    files = SampleFiles.find(workspace)
    ids = Ids(pa.array(dataset.user_ids, pa.string()), pa.array(dataset.item_ids, pa.string()))
    share = WorkerShard(batch_size=1, seed=seed, epoch=0, rank=0, world=1)
    parts: list[PackedSamples] = []
    for unit in in_units(files.pieces(share)):
        packed = files.read(unit, ids)
        parts.append(packed[packed[:, LABEL_COLUMN] > 0])
        if sum(map(len, parts)) >= most:
            break
    return unpack(np.concatenate(parts))


class Likes:
    """The latest liked interactions before each interaction of a user.

    Args:
        positive_above: Ratings above it are liked, and interactions without one.
        length: Largest number L of liked interactions.
    """

    def __init__(self, dataset: Dataset, positive_above: float, length: int) -> None:
        ratings = dataset.past_ratings
        liked = (ratings > positive_above) | np.isnan(ratings)
        # One after the last, for padding to point to.
        self._items = np.append(dataset.past_items[liked], 0)
        self._before = np.concatenate([[0], np.cumsum(liked)])  # (T + 1,)
        self._offsets = dataset.offsets
        self._back = np.arange(length, 0, -1)

    def before(self, samples: Samples) -> tuple[Ints, npt.NDArray[np.float32]]:
        """Items liked before B samples, oldest first (B, L), and 1 where there is one."""
        starts = self._offsets[samples.users]
        ends = self._before[starts + samples.positions][:, None]
        there = ends - self._back >= self._before[starts][:, None]
        rows = np.where(there, ends - self._back, len(self._items) - 1)
        return self._items[rows], there.astype(np.float32)
