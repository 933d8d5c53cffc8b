"""Density clustering of more rows than one run can hold: cut, cluster, join.

Rows are cut at medians into even parts, as in a k-d tree, and each part is clustered separately.
Clusters on both sides of a cut are joined if as many links as a cluster has members cross the cut
and are no longer than the links within.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from reki_ray.clustering.base import NOISE

MapParts = Callable[[Callable[[np.ndarray], np.ndarray], list[np.ndarray]], Iterable[np.ndarray]]
"""Applies a function to parts, in order; the stage distributes them over the cluster."""

_NEIGHBOURS: Final = 8
_SAMPLE: Final = 10_000
_NEAR: Final = 0.9
"""Quantile of the distance to the nearest neighbours within which a row is near a cut."""


def fit_parts(
    points: np.ndarray,
    fit: Callable[[np.ndarray], np.ndarray],
    *,
    part_rows: int,
    min_size: int,
    map_parts: MapParts,
) -> np.ndarray:
    """Cluster points (N, k) part by part: (N,) int64 labels, `NOISE` included."""
    parts, gaps = cut_at_medians(points, part_rows)
    labels = np.full(len(points), NOISE, dtype=np.int64)
    part_of = np.empty(len(points), dtype=np.int32)
    count = 0
    labels_of_parts = map_parts(fit, [points[rows] for rows in parts])
    for number, (rows, own) in enumerate(zip(parts, labels_of_parts, strict=True)):
        labels[rows] = np.where(own == NOISE, NOISE, own + count)
        part_of[rows] = number
        count += int(own.max(initial=NOISE)) + 1
    return _join_across_cuts(points, labels, part_of, gaps, min_size)


def cut_at_medians(points: np.ndarray, part_rows: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Halve points (N, k) along the axis of largest variance until parts are small enough.

    Returns the rows of each part, and (N,) the distance of each row to its nearest cut.
    """
    gaps = np.full(len(points), np.inf, dtype=np.float32)

    def cut(rows: np.ndarray) -> Iterator[np.ndarray]:
        if len(rows) <= part_rows:
            yield rows
            return
        axis = int(points[rows].var(axis=0).argmax())
        values = points[rows, axis]
        border = np.median(values)
        gaps[rows] = np.minimum(gaps[rows], np.abs(values - border))
        lower = values < border
        if lower.all() or not lower.any():  # duplicates: any cut is as good as another
            lower = np.arange(len(rows)) < len(rows) // 2
        yield from cut(rows[lower])
        yield from cut(rows[~lower])

    return list(cut(np.arange(len(points)))), gaps


def _join_across_cuts(
    points: np.ndarray, labels: np.ndarray, part_of: np.ndarray, gaps: np.ndarray, min_size: int
) -> np.ndarray:
    # Within this distance most rows of a sample have their nearest neighbours.
    sample = np.random.default_rng(0).permutation(len(points))[:_SAMPLE]
    usual, _ = KDTree(points).query(points[sample], k=_NEIGHBOURS + 1)
    reach = float(np.quantile(usual[:, -1], _NEAR))
    near = np.flatnonzero((labels != NOISE) & (gaps <= reach))
    if len(near) <= _NEIGHBOURS:
        return labels
    distances, neighbours = KDTree(points[near]).query(points[near], k=_NEIGHBOURS + 1)
    own = np.repeat(near, _NEIGHBOURS)
    other = near[neighbours[:, 1:].ravel()]
    lengths = distances[:, 1:].ravel()
    count = int(labels.max()) + 1
    inner = labels[own] == labels[other]
    keys = labels[own[inner]]
    sums = np.bincount(keys, weights=lengths[inner], minlength=count)
    longest = sums / np.maximum(np.bincount(keys, minlength=count), 1)
    crossing = (part_of[own] != part_of[other]) & (
        lengths <= np.maximum(longest[labels[own]], longest[labels[other]])
    )
    pairs = labels[own[crossing]], labels[other[crossing]]
    links = coo_matrix((np.ones(len(pairs[0])), pairs), shape=(count, count)).tocsr()
    links = links + links.T  # a link counts from both its ends
    links.data = (links.data >= 2 * min_size).astype(np.int8)
    links.eliminate_zeros()
    _, joined = connected_components(links, directed=False)
    return np.where(labels == NOISE, NOISE, joined[np.maximum(labels, 0)]).astype(np.int64)
