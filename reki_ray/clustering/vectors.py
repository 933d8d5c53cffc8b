"""Vectors to cluster: a user's is made from the items before the history cutoff."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_matrix

from reki_ray.core.vectors import normalise
from reki_ray.schema import ITEM_ID, POSITION, RATING, USER_ID

LOWEST_RATING_WEIGHT = 0.2
"""Weight of the lowest rating relative to the highest: a disliked item was chosen too."""


@dataclass(frozen=True)
class Weighting:
    """How much an interaction counts; it halves with `half_life` newer interactions."""

    half_life: float
    rating_min: float
    rating_max: float

    def __call__(self, ages: np.ndarray, ratings: np.ndarray) -> np.ndarray:
        """Weights (E,) in (0, 1], from the number (E,) of newer visible interactions of the user.

        A NaN among the ratings (E,), an interaction without one, counts as the highest.
        """
        span = max(self.rating_max - self.rating_min, 1e-9)
        level = np.clip((ratings - self.rating_min) / span, 0.0, 1.0)
        level = np.where(np.isnan(level), 1.0, level)
        rated = LOWEST_RATING_WEIGHT + (1.0 - LOWEST_RATING_WEIGHT) * level
        weights: np.ndarray = 0.5 ** (ages / self.half_life) * rated
        return weights


def user_vectors(
    user_ids: Sequence[str],
    visible: pa.Table,
    item_ids: Sequence[str],
    item_vectors: np.ndarray,
    weighting: Weighting,
) -> np.ndarray:
    """Recency- and rating-weighted mean of item vectors, on the unit sphere.

    Args:
        user_ids: U ids, in the order of the result.
        visible: Interactions before the cutoff, from `leak_guard.before_cut`.
        item_vectors: (I, d), rows of unit length.

    Returns:
        (U, d) float32, rows of unit length. A user without a visible known item gets the mean
        direction of all other users, or of all items if no user has one.
    """
    users = _rows(visible[USER_ID], user_ids)
    items = _rows(visible[ITEM_ID], item_ids)
    known = (users >= 0) & (items >= 0)
    ratings = visible[RATING].cast(pa.float64()).fill_null(float("nan")).to_numpy()
    encoded = visible[USER_ID].combine_chunks().dictionary_encode().indices.to_numpy()
    position = visible[POSITION].to_numpy()
    newest = np.zeros(int(encoded.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(newest, encoded, position)
    weights = weighting(newest[encoded] - position, ratings)
    shape = (len(user_ids), len(item_ids))
    mixture = csr_matrix((weights[known], (users[known], items[known])), shape=shape)
    vectors = normalise(mixture @ item_vectors.astype(np.float64))
    empty = ~np.any(vectors, axis=1)
    if empty.any():
        others = item_vectors if empty.all() else vectors[~empty]
        vectors[empty] = normalise(others.mean(axis=0, dtype=np.float64, keepdims=True))
    return vectors


def with_embeddings(
    ids: Sequence[str],
    vectors: np.ndarray,
    embedded: Sequence[str],
    embeddings: np.ndarray,
    weight: float,
) -> np.ndarray:
    """Concatenate text vectors (N, d) of unit length and id embeddings (M, e) of any length.

    The weight, in (0, 1), is the share of the embeddings in a cosine.

    Returns:
        (N, d + e) float32, rows of unit length; zeros for an id without an embedding.
    """
    rows = _rows(pa.chunked_array([pa.array(ids, pa.string())]), embedded)
    own = np.zeros((len(ids), embeddings.shape[1]), dtype=np.float32)
    own[rows >= 0] = normalise(embeddings)[rows[rows >= 0]]
    parts = [np.sqrt(1 - weight) * vectors, np.sqrt(weight) * own]
    return normalise(np.concatenate(parts, axis=1))


def _rows(values: pa.ChunkedArray, ids: Sequence[str]) -> np.ndarray:
    """Index of each value in `ids`, or -1."""
    rows: np.ndarray = (
        pc.index_in(values, value_set=pa.array(ids, pa.string())).fill_null(-1).to_numpy()
    )
    return rows
