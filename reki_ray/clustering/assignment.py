"""Total assignment: every row ends in exactly one cluster of a minimum size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reki_ray.clustering.base import NOISE
from reki_ray.core.vectors import normalise

_CHUNK_BYTES = 256 * 2**20
"""Bound of the matrix of cosines in memory."""
_HALVING_STEPS = 8


@dataclass(frozen=True)
class Assignment:
    """The cluster of every row.

    Attributes:
        labels: (N,) int64 in [0, K).
        centres: (K, d) float32, rows of unit length: the mean direction of all members.
        similarities: (N,) float32, cosine of each row to its centre.
    """

    labels: np.ndarray
    centres: np.ndarray
    similarities: np.ndarray


def assign_all(vectors: np.ndarray, labels: np.ndarray, min_size: int) -> Assignment:
    """Move noise and the members of small clusters to the nearest centre.

    Args:
        vectors: (N, d) with N >= 1, rows of unit length.
        labels: (N,) of a `Clusterer`; if all are noise, all rows become one cluster.
        min_size: Smallest cluster; smaller ones are dissolved, the smallest first. With fewer
            rows than that, one cluster of all rows remains.
    """
    if (labels == NOISE).all():
        labels = np.zeros_like(labels)
    members = labels != NOISE
    complete = labels.astype(np.int64, copy=True)
    complete[members] = np.unique(labels[members], return_inverse=True)[1]
    centres = _centres(vectors, complete, int(complete.max()) + 1)
    complete[~members] = nearest(vectors[~members], centres)[0]
    complete = _dissolve_small(vectors, complete, centres, min_size)
    _, complete = np.unique(complete, return_inverse=True)
    return assignment_of(vectors, complete, int(complete.max()) + 1)


def nearest(vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest of K >= 1 centres (K, d) to each row (N, d), all of unit length.

    Returns:
        Indices (N,) int64, the lowest on a tie, and cosines (N,) float32.
    """
    indices = np.empty(len(vectors), dtype=np.int64)
    cosines = np.empty(len(vectors), dtype=np.float32)
    chunk = max(1, _CHUNK_BYTES // (4 * len(centres)))
    for start in range(0, len(vectors), chunk):
        rows = slice(start, start + chunk)
        scores = vectors[rows] @ centres.T  # (chunk, K)
        indices[rows] = scores.argmax(axis=1)
        cosines[rows] = scores.max(axis=1)
    return indices, cosines


def split_until_close(
    vectors: np.ndarray, assignment: Assignment, min_similarity: float
) -> Assignment:
    """Halve clusters until every row has this cosine (below 1) to its centre.

    A split cluster may be of any size. `vectors` are the (N, d) unit rows of the assignment.
    """
    labels = assignment.labels.copy()
    count = len(assignment.centres)
    too_wide = np.unique(labels[assignment.similarities < min_similarity]).tolist()
    while too_wide:
        label = too_wide.pop()
        rows = np.flatnonzero(labels == label)
        upper = _halve(vectors[rows])
        if 2 * upper.sum() > len(rows):  # the larger half keeps the label
            upper = ~upper
        labels[rows[upper]] = count
        for half, members in ((label, rows[~upper]), (count, rows[upper])):
            centre = normalise(vectors[members].mean(axis=0, keepdims=True))[0]
            if (vectors[members] @ centre).min() < min_similarity and len(members) > 1:
                too_wide.append(half)
        count += 1
    return assignment_of(vectors, labels, count)


def _halve(vectors: np.ndarray) -> np.ndarray:
    """Two-means from a pair of distant rows: (N,) bool, both values occur."""
    first = int((vectors @ vectors.mean(axis=0)).argmin())
    second = int((vectors @ vectors[first]).argmin())
    centres = vectors[[first, second]]
    upper = np.zeros(len(vectors), dtype=bool)
    for _ in range(_HALVING_STEPS):
        closer = vectors @ centres[1] > vectors @ centres[0]
        if not closer.any() or closer.all():  # the rows differ by rounding only
            closer = np.arange(len(vectors)) >= len(vectors) // 2
        if (closer == upper).all():
            break
        upper = closer
        centres = normalise(np.stack([vectors[~upper].mean(axis=0), vectors[upper].mean(axis=0)]))
    return upper


def name_clusters(ids: Sequence[str], labels: np.ndarray, prefix: str) -> list[str]:
    """Cluster id of each row: `u0001`, `u0002`, ... by falling size, then by smallest member id.

    The names depend neither on the order of the rows nor on the label numbers.
    """
    sizes = np.bincount(labels)
    first: dict[int, str] = {}
    for key, label in zip(ids, labels.tolist(), strict=True):
        first[label] = min(key, first.get(label, key))
    ranked = sorted(first, key=lambda label: (-int(sizes[label]), first[label]))
    names = {label: f"{prefix}{rank:04d}" for rank, label in enumerate(ranked, start=1)}
    return [names[label] for label in labels.tolist()]


def assignment_of(vectors: np.ndarray, labels: np.ndarray, count: int) -> Assignment:
    """Centres and similarities of a grouping of unit rows; labels (N,) in [0, count)."""
    centres = _centres(vectors, labels, count)
    similarities = np.einsum("nd,nd->n", vectors, centres[labels]).astype(np.float32)
    return Assignment(labels, centres, similarities)


def _dissolve_small(
    vectors: np.ndarray, labels: np.ndarray, centres: np.ndarray, min_size: int
) -> np.ndarray:
    labels = labels.copy()
    alive = np.ones(len(centres), dtype=bool)
    while alive.sum() > 1:
        sizes = np.where(alive, np.bincount(labels, minlength=len(centres)), len(labels) + 1)
        smallest = int(sizes.argmin())
        if sizes[smallest] >= min_size:
            break
        alive[smallest] = False
        rows = np.flatnonzero(labels == smallest)
        labels[rows] = np.flatnonzero(alive)[nearest(vectors[rows], centres[alive])[0]]
    return labels


def _centres(vectors: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Mean direction (count, d) of the members of each label, without noise."""
    sums = np.zeros((count, vectors.shape[1]))
    members = labels != NOISE
    np.add.at(sums, labels[members], vectors[members])
    return normalise(sums)
