"""The ingested tables as arrays: histories stored once a user, samples that point into them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reki_ray.errors import ConfigError, DataError
from reki_ray.models.fields import Attributes, FeatureSpace
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
from reki_ray.workspace import Workspace

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Samples:
    """N samples of one split, or N lists of candidates (`training.lists`).

    Args:
        users: Place of the user in `Dataset.user_ids`, (N,).
        items: Place of the item in `Dataset.item_ids`, (N,); of lists (N, K), -1 at padding.
        positions: Row of the interaction among the user's, (N,); of lists the earliest one.
        labels: 0 or 1, (N,); of lists (N, K), -1 at padding.
    """

    users: Ints
    items: Ints
    positions: Ints
    labels: Floats

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """All that training and evaluation read, before any vocabulary.

    Args:
        user_ids: Users (U).
        user_attributes: Their profiles.
        item_ids: Items (I).
        item_attributes: Their attributes.
        offsets: Interactions of user u are offsets[u] to offsets[u + 1] of the next two, (U + 1,).
        past_items: Place of the item in `item_ids`, in time order a user, (T,).
        past_ratings: Ratings, NaN where there is none, (T,).
        past_times: Seconds since the epoch (T,).
        samples: Samples of the three splits.
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

    @property
    def activity(self) -> Ints:
        """Number of interactions of every user (U,)."""
        return np.diff(self.offsets)

    def train_features(self, buckets: Mapping[str, int] | None = None) -> FeatureSpace:
        """Vocabularies of the training samples, and of the ratings that lie before them.

        An item gets a row of its own as a training sample alone: one that only histories show,
        as those held out of training do, meets the model as a new item will. A user's
        interactions after the last training sample stay out, as do all users without training
        samples.

        Args:
            buckets: Number of quantile buckets of each attribute that is a number.

        Raises:
            ConfigError: No user and no item has an attribute of that name.
        """
        self._require_attributes(buckets or {})
        train = self.samples["train"]
        last = np.zeros(len(self.user_ids), dtype=np.int64)
        np.maximum.at(last, train.users, train.positions)
        place = np.arange(len(self.past_items)) - np.repeat(self.offsets[:-1], self.activity)
        before = place < np.repeat(last, self.activity)
        items, counts = np.unique(train.items, return_counts=True)
        return FeatureSpace.build(
            items={self.item_ids[item]: self.item_attributes[item] for item in items},
            users=[self.user_attributes[user] for user in np.unique(train.users)],
            ratings=self.past_ratings[before],
            counts={self.item_ids[i]: int(n) for i, n in zip(items, counts, strict=True)},
            buckets=buckets,
        )

    def _require_attributes(self, names: Iterable[str]) -> None:
        records = chain(self.user_attributes, self.item_attributes)
        found = set[str]().union(*(record or () for record in records))
        missing = sorted(set(names) - found)
        if missing:
            raise ConfigError(
                f"there is no attribute {missing[0]!r} to put in buckets",
                where="train.buckets",
                todo=f"Name one of {', '.join(sorted(found)) or 'none, the data have none'}.",
            )

    def digest(self) -> str:
        """SHA-256 over everything that training and validation depend on."""
        digest = hashlib.sha256()
        for texts in (self.user_ids, self.item_ids):
            digest.update("\0".join(texts).encode())
        for records in (self.user_attributes, self.item_attributes):
            digest.update(repr(records).encode())
        arrays = [self.offsets, self.past_items, self.past_ratings, self.past_times]
        for split in ("train", "valid"):
            part = self.samples[split]
            arrays += [part.users, part.items, part.positions, part.labels]
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def read_dataset(workspace: Workspace, splits: Sequence[Split] = SPLITS) -> Dataset:
    """Arrays of the ingested tables.

    Args:
        workspace: The run's tables.
        splits: Whose samples are read; the others' files are not opened.

    Raises:
        DataError: A table is missing or damaged, names an unknown id, or has no training or no
            validation samples.
    """
    users = workspace.read_table(USERS, columns=[USER_ID, ATTRIBUTES])
    items = workspace.read_table(ITEMS, columns=[ITEM_ID, ATTRIBUTES])
    past = workspace.read_table(INTERACTIONS, columns=[USER_ID, ITEM_ID, RATING, TIMESTAMP])
    user_ids, item_ids = users.column(USER_ID).to_pylist(), items.column(ITEM_ID).to_pylist()
    user_places = {user: place for place, user in enumerate(user_ids)}
    item_places = {item: place for place, item in enumerate(item_ids)}
    where = workspace.path(INTERACTIONS.path)
    past_users = _places(past, USER_ID, user_places, where)
    # Users stand in the order of their table, interactions in that of their ids' text.
    order = np.argsort(past_users, kind="stable")
    counts = np.bincount(past_users, minlength=len(user_ids))
    ratings = past.column(RATING).to_numpy()
    return Dataset(
        user_ids=user_ids,
        user_attributes=_attributes(users),
        item_ids=item_ids,
        item_attributes=_attributes(items),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        past_items=_places(past, ITEM_ID, item_places, where)[order],
        past_ratings=ratings.astype(np.float32)[order],
        past_times=past.column(TIMESTAMP).to_numpy().astype(np.int64)[order],
        samples={s: _read_samples(workspace, s, user_places, item_places) for s in splits},
    )


def _read_samples(
    workspace: Workspace, split: Split, users: Mapping[str, int], items: Mapping[str, int]
) -> Samples:
    table = SAMPLES[split]
    data = workspace.read_table(table, columns=[USER_ID, ITEM_ID, POSITION, LABEL])
    where = workspace.path(table.path)
    if not len(data) and split != "test":
        raise DataError(
            f"there are no {split} samples",
            where=where,
            todo="Give more data, or a larger share of it in split.ratios.",
        )
    return Samples(
        users=_places(data, USER_ID, users, where),
        items=_places(data, ITEM_ID, items, where),
        positions=data.column(POSITION).to_numpy().astype(np.int64),
        labels=data.column(LABEL).to_numpy().astype(np.float32),
    )


def _places(data: pa.Table, column: str, places: Mapping[str, int], where: str) -> Ints:
    """Place of every row's id; the dictionary encoding looks each distinct id up once."""
    encoded = data.column(column).combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    try:
        distinct = [places[key] for key in encoded.dictionary.to_pylist()]
    except KeyError as error:
        raise DataError(
            f"{column} {error} stands in no row of its table",
            where=where,
            todo="Run `reki ingest --force ingest` to write the tables anew.",
        ) from error
    indices: Ints = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return np.array(distinct, dtype=np.int64)[indices] if len(indices) else indices


def _attributes(data: pa.Table) -> list[Attributes | None]:
    records: Sequence[list[tuple[str, list[str]]] | None] = data.column(ATTRIBUTES).to_pylist()
    return [None if record is None else dict(record) for record in records]
