"""Samples to batches by array lookups alone: no Python code runs per sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reki_ray.models.base_model import History, KnowledgeVectors, ModelBatch
from reki_ray.models.features import NO_TIME, PADDING, FeatureSpace, Rows, encode_gaps
from reki_ray.schema import Side
from reki_ray.training.arms import Representations
from reki_ray.training.dataset import Dataset, Ints, Samples


@dataclass(frozen=True)
class EncodedDataset:
    """A data set in the rows of one model's vocabularies.

    Items are shifted by one against `Dataset`: item 0 is padding.

    Args:
        item_ids: Rows of the item ids (I + 1,).
        item_attributes: Rows (I + 1, width) by attribute.
        user_attributes: Rows (U, width) by attribute.
        past_items: Items in time order a user, 1 to I, (T,).
        past_ratings: Rows of the ratings (T,).
        past_times: Seconds since the epoch (T,).
    """

    item_ids: Rows
    item_attributes: dict[str, Rows]
    user_attributes: dict[str, Rows]
    offsets: Ints
    past_items: Rows
    past_ratings: Rows
    past_times: Ints


def encode_dataset(dataset: Dataset, features: FeatureSpace) -> EncodedDataset:
    """Arrays of a data set in a model's vocabularies."""
    encoded = features.encode_items(["", *dataset.item_ids], [None, *dataset.item_attributes])
    encoded.ids[0] = PADDING
    return EncodedDataset(
        item_ids=encoded.ids,
        item_attributes=encoded.attributes,
        user_attributes=features.encode_users(dataset.user_attributes),
        offsets=dataset.offsets,
        past_items=(dataset.past_items + 1).astype(np.int32),
        past_ratings=features.encode_ratings(dataset.past_ratings),
        past_times=dataset.past_times,
    )


class Prepared(NamedTuple):
    """B samples and their labels (B,)."""

    batch: ModelBatch
    labels: Tensor


@dataclass(frozen=True)
class WorkerShard:
    """One worker's part of an epoch.

    Args:
        epoch: Number of the epoch, from 1.
        batch_size: Samples per batch of this worker.
    """

    seed: int
    epoch: int
    rank: int
    world: int
    batch_size: int

    def samples(self, total: int) -> int:
        """This worker's samples of `total`; every worker has equally many."""
        return -(-total // self.world)

    def steps(self, total: int) -> int:
        """Number of this worker's batches; all but the last are full."""
        return -(-self.samples(total) // self.batch_size)


class TrainSamples(Protocol):
    """Training samples, held or streamed."""

    def __len__(self) -> int:
        """Samples of an epoch, over all workers."""
        ...

    def epoch(self, share: WorkerShard) -> Iterator[Prepared]:
        """Batches of a share in random order, `share.steps(len(self))` of them."""
        ...


class BatchBuilder:
    """Builds batches of samples for one run.

    Args:
        samples: Held samples of the split; streamed ones are passed to `of`.
        history: Number L of past interactions.
        representations: As the run sees them; None without knowledge.
        enriched: Whether the model reads the representations of past items.
    """

    def __init__(
        self,
        data: EncodedDataset,
        samples: Samples,
        history: int,
        representations: Representations | None,
        *,
        enriched: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self._data = data
        self._samples = samples
        self._back = np.arange(history, 0, -1)  # distance to the sample, oldest first
        self._representations = representations
        self._enriched = enriched
        self._device = device or torch.device("cpu")

    def __len__(self) -> int:
        return len(self._samples)

    def labels(self, indices: Ints) -> Tensor:
        """Labels (B,) of the held samples, or (B, K) of the lists, at these places."""
        return self._tensor(self._samples.labels[indices])

    def build(self, indices: Ints) -> ModelBatch:
        """Batch of the held samples, or of the lists, at these places (B,)."""
        return self.of(self._samples.take(indices))

    def epoch(self, share: WorkerShard) -> Iterator[Prepared]:
        """Batches of a share in random order."""
        order = shuffled(len(self), share.seed, share.epoch, share.rank, share.world)
        for start in range(0, len(order), share.batch_size):
            yield self.prepare(self._samples.take(order[start : start + share.batch_size]))

    def prepare(self, samples: Samples) -> Prepared:
        """Batch and labels of B samples, or of B lists."""
        return Prepared(self.of(samples), self._tensor(samples.labels))

    def of(self, samples: Samples) -> ModelBatch:
        """Batch of B samples, or of B lists."""
        data = self._data
        users, user_index = distinct(samples.users, len(data.offsets))
        targets = samples.items + 1  # (B,), of lists (B, K)
        history, ratings, gaps = self._history(samples)  # (B, L)
        table = np.concatenate([[0], targets.reshape(-1), history.reshape(-1)])
        items, item_index = distinct(table, len(data.item_ids))
        end = targets.size + 1
        return ModelBatch(
            item_ids=self._tensor(data.item_ids[items]),
            item_attributes=self._rows(data.item_attributes, items),
            targets=self._tensor(item_index[1:end].reshape(targets.shape)),
            history=History(
                self._tensor(item_index[end:].reshape(history.shape)),
                self._tensor(ratings),
                self._tensor(gaps),
            ),
            user_attributes=self._rows(data.user_attributes, users),
            distinct_users=len(users),
            users=self._tensor(user_index),
            user_knowledge=self._knowledge("users", samples.users),
            item_knowledge=self._item_knowledge(items, item_index[1:end]),
        )

    def _history(self, samples: Samples) -> tuple[Rows, Rows, Rows]:
        positions = samples.positions[:, None]
        starts = self._data.offsets[samples.users][:, None]
        real = self._back <= positions  # (B, L)
        rows = np.where(real, starts + positions - self._back, 0)
        items = np.where(real, self._data.past_items[rows], PADDING)
        ratings = np.where(real, self._data.past_ratings[rows], PADDING)
        times = np.where(real, self._data.past_times[rows], NO_TIME)
        return items, ratings, encode_gaps(times)

    def _rows(self, fields: dict[str, Rows], entries: Ints) -> dict[str, Tensor]:
        return {name: self._tensor(rows[entries]) for name, rows in fields.items()}

    def _knowledge(self, side: Side, ids: Ints) -> KnowledgeVectors | None:
        if self._representations is None:
            return None
        vectors = getattr(self._representations, side)
        rows, index = distinct(vectors.rows[ids], len(vectors.vectors))
        return KnowledgeVectors(self._tensor(vectors.vectors[rows]), self._tensor(index))

    def _item_knowledge(self, items: Ints, targets: Ints) -> KnowledgeVectors | None:
        """Representations of the items (R,), of past ones only if the model enriches them.

        Otherwise a past item gets the first representation, which is never read, and padding that
        of the first item.
        """
        if self._representations is None:
            return None
        if self._enriched:
            return self._knowledge("items", np.maximum(items - 1, 0))
        knowledge = self._knowledge("items", np.maximum(items[targets] - 1, 0))
        assert knowledge is not None
        index = torch.zeros(len(items), dtype=torch.int64, device=self._device)
        index[self._tensor(targets)] = knowledge.index
        return KnowledgeVectors(knowledge.vectors, index)

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def distinct(values: npt.NDArray[np.integer], size: int) -> tuple[Ints, Ints]:
    """Distinct values in ascending order, and the place of every value among them.

    As `np.unique`, but without sorting, for integers in [0, size) of any shape.
    """
    marks = np.zeros(size, dtype=bool)
    marks[values] = True
    unique = np.flatnonzero(marks)
    places = np.zeros(size, dtype=np.int64)
    places[unique] = np.arange(len(unique))
    return unique, places[values]


def shuffled(samples: int, seed: int, epoch: int, rank: int, world: int) -> Ints:
    """One rank's samples of one epoch, in random order.

    Every rank takes equally many steps: if the number of ranks does not divide the number of
    samples, the first few of the order are repeated.
    """
    return dealt(np.random.default_rng([seed, epoch]).permutation(samples), rank, world)


def dealt(order: Ints, rank: int, world: int) -> Ints:
    """Every `world`-th sample from the rank on; the first ones again where they do not go round."""
    return np.resize(order, len(order) + -len(order) % world)[rank::world]
