"""What users liked before each sample, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reki_ray.core.workspace import Workspace
from reki_ray.schema import Split
from reki_ray.training.batches import WorkerShard
from reki_ray.training.dataset import Dataset, Ids, Ints, Samples
from reki_ray.training.sample_files import SampleFiles, in_units, unpack


@dataclass(frozen=True)
class Positives:
    """N positive samples.

    Args:
        users: Place of the user in `Dataset.user_ids` (N,).
        items: Place of the item in `Dataset.item_ids` (N,).
        positions: Row of the interaction among the user's (N,).
    """

    users: Ints
    items: Ints
    positions: Ints

    def __len__(self) -> int:
        return len(self.users)

    def take(self, indices: Ints) -> Positives:
        """The samples at these places (n,)."""
        return Positives(self.users[indices], self.items[indices], self.positions[indices])


def held_positives(dataset: Dataset, split: Split) -> Positives:
    """Positive samples of a split that is held."""
    return _positive(dataset.samples[split])


def streamed_positives(workspace: Workspace, dataset: Dataset, most: int, seed: int) -> Positives:
    """Positive training samples out of files that are too large to be held.

    Row groups are taken in random order until there are enough.

    Args:
        workspace: Holds the files.
        dataset: Ids of users and items.
        most: Enough.

    Raises:
        DataError: There are no samples, a file is damaged, or an id is unknown.
    """
    files = SampleFiles.find(workspace)
    ids = Ids(pa.array(dataset.user_ids, pa.string()), pa.array(dataset.item_ids, pa.string()))
    share = WorkerShard(batch_size=1, seed=seed, epoch=0, rank=0, world=1)
    parts: list[Positives] = []
    for unit in in_units(files.pieces(share)):
        parts.append(_positive(unpack(files.read(unit, ids))))
        if sum(map(len, parts)) >= most:
            break
    return Positives(
        np.concatenate([part.users for part in parts]),
        np.concatenate([part.items for part in parts]),
        np.concatenate([part.positions for part in parts]),
    )


def _positive(samples: Samples) -> Positives:
    rows = np.flatnonzero(samples.labels > 0)
    return Positives(samples.users[rows], samples.items[rows], samples.positions[rows])


class Likes:
    """The latest liked interactions before each interaction of a user.

    Args:
        dataset: All interactions.
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

    def before(self, samples: Positives) -> tuple[Ints, npt.NDArray[np.float32]]:
        """Items liked before B samples, oldest first (B, L), and 1 where there is one."""
        starts = self._offsets[samples.users]
        ends = self._before[starts + samples.positions][:, None]
        there = ends - self._back >= self._before[starts][:, None]
        rows = np.where(there, ends - self._back, len(self._items) - 1)
        return self._items[rows], there.astype(np.float32)
