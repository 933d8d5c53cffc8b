"""The ingested tables as arrays: histories stored once per user, and samples that point to them."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reki_ray.core.workspace import Workspace
from reki_ray.errors import ConfigError, DataError
from reki_ray.models.features import Attributes, FeatureSpace, describe_amounts
from reki_ray.schema import (
    ATTRIBUTES,
    INTERACTIONS,
    ITEM_ID,
    ITEMS,
    LABEL,
    POSITION,
    RATING,
    SAMPLES,
    SPLITS,
    TIMESTAMP,
    USER_ID,
    USERS,
    Split,
)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """N samples of one split, or N lists of candidates (`training.lists`).

    Args:
        users: Index of the user in `Dataset.user_ids`, (N,).
        items: Index of the item in `Dataset.item_ids`, (N,); of lists (N, K), -1 at padding.
        positions: Row of the interaction among the user's, (N,); of lists the earliest one.
        labels: 0 or 1, (N,); of lists (N, K), -1 at padding.
    """

    users: Ints
    items: Ints
    positions: Ints
    labels: Floats

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Ints) -> Samples:
        """The samples at these places (n,)."""
        return Samples(
            self.users[indices], self.items[indices], self.positions[indices], self.labels[indices]
        )


@dataclass(frozen=True)
class Ids:
    """Ids of users (U,) and items (I,) in the order of their tables: a place is a row of these."""

    users: pa.Array
    items: pa.Array

    def places(self, rows: pa.Table, column: str, where: str) -> Ints:
        """Place of the id in a column of every row (N,); each distinct id is looked up once.

        Raises:
            DataError: An id is missing from its table.
        """
        ids = self.users if column == USER_ID else self.items
        encoded = rows.column(column).combine_chunks()
        if isinstance(encoded, pa.ChunkedArray):  # an empty table has no chunk to combine
            encoded = pa.concat_arrays(encoded.chunks)
        if not isinstance(encoded, pa.DictionaryArray):
            encoded = encoded.dictionary_encode()
        distinct = encoded.dictionary.cast(ids.type)
        places = pc.index_in(distinct, value_set=ids)
        if places.null_count:
            missing = distinct.filter(places.is_null())[0].as_py()
            raise DataError(
                f"{column} {missing!r} is missing from its table",
                where=where,
                todo="Run `reki ingest --force ingest` to write the tables again.",
            )
        place_of_row: Ints = places.to_numpy().astype(np.int64)[encoded.indices.to_numpy()]
        return place_of_row


@dataclass(frozen=True)
class TrainSummary:
    """Counts of the training samples that vocabularies and comparisons need.

    Args:
        items: Samples of every item (I,).
        users: Samples of every user (U,).
        last: Largest position of a sample of every user, 0 without samples, (U,).
        digest: Equal for equal samples.
    """

    samples: int
    items: Ints
    users: Ints
    last: Ints
    digest: str

    @classmethod
    def of(cls, samples: Samples, users: int, items: int) -> TrainSummary:
        """Summary of held samples, for these numbers of users and items."""
        last = np.zeros(users, dtype=np.int64)
        np.maximum.at(last, samples.users, samples.positions)
        digest = hashlib.sha256()
        for array in (samples.users, samples.items, samples.positions, samples.labels):
            digest.update(np.ascontiguousarray(array).data)
        return cls(
            samples=len(samples),
            items=np.bincount(samples.items, minlength=items),
            users=np.bincount(samples.users, minlength=users),
            last=last,
            digest=digest.hexdigest(),
        )


Summarise = Callable[[list[str], list[str]], TrainSummary]
"""Summarises training samples that are not held, from the ids of users and items."""


@dataclass(frozen=True)
class Dataset:
    """Data of training and evaluation, before any vocabulary.

    Args:
        user_ids: Users (U).
        item_ids: Items (I).
        offsets: Interactions of user u are offsets[u] to offsets[u + 1] of the next two, (U + 1,).
        past_items: Index of the item in `item_ids`, in time order per user, (T,).
        past_ratings: Ratings, NaN if missing, (T,).
        past_times: Seconds since the epoch (T,).
        samples: Samples of the splits; training samples only if they are held.
        streamed: Summary of the training samples if they are not.
    """

    user_ids: list[str]
    user_attributes: list[Attributes | None]
    item_ids: list[str]
    item_attributes: list[Attributes | None]
    offsets: Ints
    past_items: Ints
    past_ratings: Floats
    past_times: Ints
    samples: dict[Split, Samples]
    streamed: TrainSummary | None = None

    @cached_property
    def train(self) -> TrainSummary:
        """Summary of the training samples, held or streamed."""
        if self.streamed is not None:
            return self.streamed
        return TrainSummary.of(self.samples["train"], len(self.user_ids), len(self.item_ids))

    @property
    def sample_count(self) -> int:
        """Samples of all splits."""
        held = sum(len(part) for part in self.samples.values())
        return held + (self.streamed.samples if self.streamed else 0)

    @property
    def activity(self) -> Ints:
        """Number of interactions of every user (U,)."""
        return np.diff(self.offsets)

    def train_features(self, buckets: Mapping[str, int] | None = None) -> FeatureSpace:
        """Vocabularies of the training samples, and of the ratings before them.

        Only items of training samples get their own row: an item that only occurs in histories,
        as items held out of training do, is unknown to the model, as a new item will be. A user's
        interactions after the last training sample are left out, as are users without training
        samples.

        Args:
            buckets: Number of quantile buckets of each attribute that is a number.

        Raises:
            ConfigError: No user and no item has an attribute of that name.
        """
        self._require_attributes(buckets or {})
        train = self.train
        place = np.arange(len(self.past_items)) - np.repeat(self.offsets[:-1], self.activity)
        before = place < np.repeat(train.last, self.activity)
        item_rows, user_rows = np.flatnonzero(train.items), np.flatnonzero(train.users)
        items = {self.item_ids[item]: self.item_attributes[item] for item in item_rows}
        users = [self.user_attributes[user] for user in user_rows]
        for name in buckets or {}:
            _warn_of_words(name, chain(items.values(), users))
        return FeatureSpace.build(
            items=items,
            users=users,
            ratings=self.past_ratings[before],
            counts={self.item_ids[item]: int(train.items[item]) for item in item_rows},
            buckets=buckets,
        )

    def _require_attributes(self, names: Iterable[str]) -> None:
        records = chain(self.user_attributes, self.item_attributes)
        known = set[str]().union(*(record or () for record in records))
        missing = sorted(set(names) - known)
        if missing:
            raise ConfigError(
                f"there is no attribute {missing[0]!r} to put in buckets",
                where="train.buckets",
                todo=f"Name one of {', '.join(sorted(known)) or 'none, the data have none'}.",
            )

    def digest(self) -> str:
        """SHA-256 over all inputs of training and validation."""
        digest = hashlib.sha256()
        for texts in (self.user_ids, self.item_ids):
            digest.update("\0".join(texts).encode())
        for records in (self.user_attributes, self.item_attributes):
            digest.update(repr(records).encode())
        # Streamed samples come in another order than held ones, which gives another model.
        digest.update(f"{self.train.digest} {self.streamed is None}".encode())
        valid = self.samples["valid"]
        arrays = [self.offsets, self.past_items, self.past_ratings, self.past_times]
        for array in (*arrays, valid.users, valid.items, valid.positions, valid.labels):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def _warn_of_words(name: str, records: Iterable[Attributes | None]) -> None:
    """Warn of values that are not numbers: they get no bucket."""
    values = Counter(text for record in records for text in (record or {}).get(name, ()))
    if odd := describe_amounts(values):
        _logger.warning("train.buckets.%s: values of training items and users: %s", name, odd)


def read_dataset(
    workspace: Workspace, splits: Sequence[Split] = SPLITS, summarise: Summarise | None = None
) -> Dataset:
    """Read the ingested tables.

    Args:
        summarise: Summarises the training samples; None reads and holds them.

    Raises:
        DataError: A table is missing or damaged, contains an unknown id, or has no training or no
            validation samples.
    """
    users = workspace.read_table(USERS, columns=[USER_ID, ATTRIBUTES])
    items = workspace.read_table(ITEMS, columns=[ITEM_ID, ATTRIBUTES])
    past = workspace.read_table(INTERACTIONS, columns=[USER_ID, ITEM_ID, RATING, TIMESTAMP])
    user_ids, item_ids = users.column(USER_ID).to_pylist(), items.column(ITEM_ID).to_pylist()
    ids = Ids(users.column(USER_ID).combine_chunks(), items.column(ITEM_ID).combine_chunks())
    where = workspace.path(INTERACTIONS.path)
    past_users = ids.places(past, USER_ID, where)
    # Users are in the order of their table, interactions in that of the ids' text.
    order = np.argsort(past_users, kind="stable")
    counts = np.bincount(past_users, minlength=len(user_ids))
    ratings = past.column(RATING).to_numpy()
    held = [split for split in splits if split != "train" or summarise is None]
    return Dataset(
        user_ids=user_ids,
        user_attributes=_attributes(users),
        item_ids=item_ids,
        item_attributes=_attributes(items),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        past_items=ids.places(past, ITEM_ID, where)[order],
        past_ratings=ratings.astype(np.float32)[order],
        past_times=past.column(TIMESTAMP).to_numpy().astype(np.int64)[order],
        samples={split: _read_samples(workspace, split, ids) for split in held},
        streamed=summarise(user_ids, item_ids) if summarise else None,
    )


def _read_samples(workspace: Workspace, split: Split, ids: Ids) -> Samples:
    table = SAMPLES[split]
    data = workspace.read_table(table, columns=[USER_ID, ITEM_ID, POSITION, LABEL])
    where = workspace.path(table.path)
    if not len(data) and split != "test":
        raise no_samples(split, where)
    return Samples(
        users=ids.places(data, USER_ID, where),
        items=ids.places(data, ITEM_ID, where),
        positions=data.column(POSITION).to_numpy().astype(np.int64),
        labels=data.column(LABEL).to_numpy().astype(np.float32),
    )


def no_samples(split: Split, where: str) -> DataError:
    """Error for a split without samples."""
    return DataError(
        f"there are no {split} samples",
        where=where,
        todo="Give more data, or a larger share of it in split.ratios.",
    )


def _attributes(data: pa.Table) -> list[Attributes | None]:
    records: Sequence[list[tuple[str, list[str]]] | None] = data.column(ATTRIBUTES).to_pylist()
    return [None if record is None else dict(record) for record in records]
