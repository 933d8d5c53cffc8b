"""Lists of candidates for rerankers, built from the samples of a split.

A user's positive samples are split, in time order, into runs of at most `max_positives`; each run
begins a list. A negative sample of the user goes into the list during which it happened, the
latest ones if there is no room for all. The rest of the list is sampled uniformly from the items
of the split's samples that the user never interacted with, before or after: a sampled negative is
never a positive, and training lists contain no item that the split keeps cold.

The initial order is by popularity: the number of training samples of an item from users other
than the list's, ties in random order. The user's own samples would leak the label.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from reki_ray.config import RerankConfig
from reki_ray.errors import DataError
from reki_ray.schema import SPLITS, Split
from reki_ray.training.dataset import Dataset, Ints, Samples

Marks = npt.NDArray[np.bool_]

NOTHING: Final = -1
"""Item and label at padding."""


def build_lists(dataset: Dataset, split: Split, config: RerankConfig) -> Samples:
    """Lists of a split; every positive sample is in exactly one of them.

    Returns:
        N lists: users (N,), items and labels (N, K) in the initial order, `NOTHING` after the
        end of a list whose user knows nearly all items, and positions (N,) of the earliest
        real candidates: the interactions before them are the history.

    Raises:
        DataError: The split has no positive sample.
    """
    samples = dataset.samples[split]
    generator = np.random.default_rng([config.seed, SPLITS.index(split)])
    rows, lists, users = real_candidates(samples, config)
    if not len(users):
        raise DataError(
            f"there are no lists to rerank: no {split} sample is positive",
            where=f"ingest/samples/{split}",
            todo="Give more data or a lower data.positive_above, or leave train.rerankers empty.",
        )
    count = len(users)
    room = config.list_size - np.bincount(lists, minlength=count)
    pool = np.unique(samples.items)
    sampled = sample_negatives(dataset, users, pool, room, generator)
    items = np.full((count, config.list_size), NOTHING, dtype=np.int64)
    labels = np.full(items.shape, NOTHING, dtype=np.float32)
    place = _places(lists)
    items[lists, place] = samples.items[rows]
    labels[lists, place] = samples.labels[rows]
    positions = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(positions, lists, samples.positions[rows])
    lists, column = np.nonzero(sampled >= 0)
    place = config.list_size - room[lists] + column
    items[lists, place] = sampled[lists, column]
    labels[lists, place] = 0
    order = initial_order(dataset.samples["train"], users, items, generator)
    return Samples(
        users=users,
        items=np.take_along_axis(items, order, axis=1),
        positions=positions,
        labels=np.take_along_axis(labels, order, axis=1),
    )


def real_candidates(samples: Samples, config: RerankConfig) -> tuple[Ints, Ints, Ints]:
    """Candidates from the samples, positives first in each list.

    Returns:
        Rows of the samples (n,), their lists (n,), ascending, and users (N,) of the lists.
    """
    order = np.lexsort((samples.positions, samples.users))
    users, positive = samples.users[order], samples.labels[order] > 0
    own = np.cumsum(positive) - positive  # positives before, of all users
    start = np.concatenate([[True], users[1:] != users[:-1]]) if len(users) else positive
    first = np.maximum.accumulate(np.where(start, own, 0))
    liked = np.bincount(users, weights=positive, minlength=1).astype(np.int64)
    # A negative after the last positive belongs to the user's last list.
    number = np.minimum(own - first, liked[users] - 1) // config.max_positives
    lists = np.full(len(users), NOTHING, dtype=np.int64)
    has_list = liked[users] > 0
    key = users * (len(users) + 1) + number
    distinct, lists[has_list] = np.unique(key[has_list], return_inverse=True)
    kept = has_list & (positive | ~_liked_too_or_repeated(samples, order, lists, positive))
    # Positives first, then the latest negatives: the surplus comes last.
    ranked = np.lexsort((-samples.positions[order], ~positive, lists))
    ranked = ranked[kept[ranked]]
    ranked = ranked[_places(lists[ranked]) < config.list_size]
    return order[ranked], lists[ranked], distinct // (len(users) + 1)


def _liked_too_or_repeated(samples: Samples, order: Ints, lists: Ints, positive: Marks) -> Marks:
    """Mark negatives whose item is positive in another sample of the user, and repeated ones."""
    items = samples.items[order]
    size = int(items.max(initial=0)) + 1
    of_user = samples.users[order] * size + items
    liked = np.isin(of_user, of_user[positive])
    _, first = np.unique(np.where(positive, -1, lists * size + items), return_index=True)
    repeated = np.ones(len(items), dtype=bool)
    repeated[first] = False
    marks: Marks = liked | repeated
    return marks


def sample_negatives(
    dataset: Dataset, users: Ints, pool: Ints, room: Ints, generator: np.random.Generator
) -> Ints:
    """Items that the user of a list never interacted with, each once per list.

    Args:
        users: User of every list (N,).
        pool: Items to choose from, ascending (P,).
        room: Free places of each list (N,).

    Returns:
        Items (N, largest room), `NOTHING` after the end of a row; a list whose user knows nearly
        the whole pool gets fewer than its room.
    """
    width, size = int(room.max(initial=0)), len(pool)
    people = np.repeat(np.arange(len(dataset.user_ids)), dataset.activity)
    place = np.searchsorted(pool, dataset.past_items)
    known = place < size
    known[known] = pool[place[known]] == dataset.past_items[known]
    met = np.unique(people[known] * size + place[known]) if size else people[:0]
    of_user, met_place = np.divmod(met, max(size, 1))
    before = np.searchsorted(of_user, np.arange(len(dataset.user_ids) + 1))
    free = size - np.diff(before)
    ranks = distinct_draws(free[users], np.minimum(room, free[users]), width, generator)
    # The rank-th unmet item of a user comes after as many met ones as have at most rank unmet
    # items before them: one search over all users gives their number.
    unmet_before = met_place - (np.arange(len(met)) - before[of_user])
    behind = np.searchsorted(
        of_user * (size + 1) + unmet_before, users[:, None] * (size + 1) + ranks, side="right"
    )
    drawn = ranks >= 0
    negatives = np.full(ranks.shape, NOTHING, dtype=np.int64)
    places = ranks + behind - before[users][:, None]
    negatives[drawn] = pool[places[drawn]]
    return negatives


def distinct_draws(free: Ints, wanted: Ints, width: int, generator: np.random.Generator) -> Ints:
    """Distinct random integers (N, width) per row, uniform over sets, `NOTHING` after the last.

    Args:
        free: Row n draws from 0 to free[n] - 1, (N,).
        wanted: Number of draws, at most free[n], (N,).
    """
    beyond = np.iinfo(np.int64).max
    drawn = np.full((len(free), width), beyond, dtype=np.int64)  # ascending in each row
    for column in range(width):
        draw = generator.integers(0, np.maximum(free - column, 1))
        for earlier in range(column):  # the draw-th of the numbers that are left
            draw += draw >= drawn[:, earlier]
        drawn[:, column] = np.where(column < wanted, draw, beyond)
        drawn[:, : column + 1].sort(axis=1)
    return np.where(drawn == beyond, NOTHING, drawn)


def initial_order(train: Samples, users: Ints, items: Ints, generator: np.random.Generator) -> Ints:
    """Descending order (N, K) of popularity among other users; ties are random, padding last.

    Of users (N,) and candidates (N, K), `NOTHING` at padding, by the training samples.
    """
    size = int(max(train.items.max(initial=0), items.max(initial=0))) + 1
    counts = np.bincount(train.items, minlength=size)
    pairs, own = np.unique(train.users * size + train.items, return_counts=True)
    wanted = users[:, None] * size + items
    by_user = np.zeros_like(wanted)
    if len(pairs):
        place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
        by_user = np.where(pairs[place] == wanted, own[place], 0)
    popularity = np.where(items == NOTHING, NOTHING, counts[items] - by_user)
    order: Ints = np.lexsort((generator.random(items.shape), -popularity))
    return order


def _places(lists: Ints) -> Ints:
    """Index of every entry within its list, for ascending lists."""
    starts = np.flatnonzero(np.concatenate([[True], lists[1:] != lists[:-1]]))[: len(lists)]
    return np.arange(len(lists)) - np.repeat(starts, np.diff(np.append(starts, len(lists))))
