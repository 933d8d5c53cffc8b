"""A flat cut of the tree: a number of clusters of a minimum size.

A cut at the lowest child similarity makes mostly single points. Here the tree is condensed as in
HDBSCAN (Campello et al., PAKDD 2013): a child below the minimum size only falls off. The node
whose split reduces the sum of squares within clusters (in the kernel's space) most is split next.
More nodes than clusters are cut, and joined by Ward's criterion: the tree has no rotations, so
early points of the stream may divide a cluster high up in it.
"""

from __future__ import annotations

import heapq

import numpy as np

from reki_ray.clustering.streakhc.tree import NONE, ROOT, Tree
from reki_ray.config import NODES_PER_CLUSTER
from reki_ray.core.vectors import normalise


def flat_cut(tree: Tree, clusters: int, min_size: int) -> np.ndarray:
    """Centres (K, d) float32, rows of unit length, of at most so many clusters of a nonempty tree.

    Each cut node has at least `min_size` points, unless there are fewer points in all.
    """
    nodes = _cut(tree, NODES_PER_CLUSTER * clusters, min_size)
    labels = _join(tree, nodes, clusters)
    totals = np.zeros((int(labels.max()) + 1, tree.vectors.shape[1]))
    np.add.at(totals, labels, tree.vectors[nodes])
    return normalise(totals)


def _cut(tree: Tree, most: int, min_size: int) -> list[int]:
    queue: list[tuple[float, int, int]] = []  # negative gain, node of the cluster, node to split
    whole: list[int] = []

    def offer(node: int) -> None:
        split = _next_split(tree, node, min_size)
        if split == NONE:
            whole.append(node)
            return
        children = _scatter(tree, int(tree.left[split])) + _scatter(tree, int(tree.right[split]))
        heapq.heappush(queue, (children - _scatter(tree, split), node, split))

    offer(int(tree.state[ROOT]))
    while queue and len(queue) + len(whole) < most:
        _, _, split = heapq.heappop(queue)
        offer(int(tree.left[split]))
        offer(int(tree.right[split]))
    return whole + [node for _, node, _ in queue]


def _next_split(tree: Tree, node: int, min_size: int) -> int:
    """First node downwards with two children of the minimum size, or `NONE`."""
    while tree.left[node] != NONE:
        first, second = int(tree.left[node]), int(tree.right[node])
        sizes = int(tree.points[first]), int(tree.points[second])
        if min(sizes) >= min_size:
            return node
        node = first if sizes[0] >= sizes[1] else second
    return NONE


def _scatter(tree: Tree, node: int) -> float:
    """Sum of squared distances of a node's points to their mean, in units of t."""
    points = float(tree.points[node])
    return float(points - tree.squared[node] / (points * tree.maps.shape[1]))


def _join(tree: Tree, nodes: list[int], clusters: int) -> np.ndarray:
    """Labels (F,) of F nodes after joining them by Ward's criterion."""
    means = np.stack([_sum(tree, node) / np.float32(tree.points[node]) for node in nodes])
    sizes = np.array([float(tree.points[node]) for node in nodes])
    dots = means @ means.T
    squares = np.diag(dots)
    # Increase of the sum of squares when two clusters are joined.
    growth = squares[:, None] + squares[None] - 2 * dots
    growth *= sizes[:, None] * sizes / (sizes[:, None] + sizes)
    np.fill_diagonal(growth, np.inf)
    owner = np.arange(len(means))
    for _ in range(len(means) - clusters):
        first, second = np.unravel_index(growth.argmin(), growth.shape)
        _ward_update(growth, sizes, int(first), int(second))
        owner[owner == second] = first
    labels: np.ndarray = np.unique(owner, return_inverse=True)[1]
    return labels


def _ward_update(growth: np.ndarray, sizes: np.ndarray, first: int, second: int) -> None:
    """Join two clusters in place, by the Lance-Williams recurrence of Ward's criterion."""
    joined = sizes[first] + sizes[second]
    row = (sizes[first] + sizes) * growth[first] + (sizes[second] + sizes) * growth[second]
    row = (row - sizes * growth[first, second]) / (joined + sizes)
    row[[first, second]] = np.inf
    growth[first], growth[:, first] = row, row
    growth[second], growth[:, second] = np.inf, np.inf
    sizes[first] = joined


def _sum(tree: Tree, node: int) -> np.ndarray:
    """Sum of maps (t * psi,) float32 of a node."""
    slot = tree.slot[node]
    _, t, psi = tree.sums.shape
    if tree.left[node] != NONE:
        whole: np.ndarray = tree.sums[slot].reshape(-1).astype(np.float32)
        return whole
    sums = np.zeros(t * psi, dtype=np.float32)
    sums[np.arange(t) * psi + tree.maps[slot]] = tree.points[node]
    return sums
