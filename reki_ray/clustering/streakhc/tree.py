"""The tree of StreaKHC: compiled insertion over arrays.

A leaf keeps the map of its point, an inner node the sum of the maps below it as counts (t, psi).
The similarity of a point x and a set A is the cosine of map(x) and the sum of the maps in A; with
one-hot maps that is sum_i A[i, map_i(x)] / (sqrt(t) |A|), and |A|^2 follows each insertion by
2 sum_i A[i, map_i(x)] + t. Nothing is ever summed over psi, and no node keeps its members. The
sum of the points themselves gives the centre of a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, ParamSpec, TypeVar, cast

import numba
import numpy as np

_P = ParamSpec("_P")
_R = TypeVar("_R")

NONE: Final = -1

ROOT: Final = 0
LEAVES: Final = 1
OLDEST: Final = 2
NEWEST: Final = 3
FREE_NODE: Final = 4
FREE_LEAF: Final = 5
FREE_INNER: Final = 6
_FIELDS: Final = 7


def compiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile to machine code at the first call, cached on disk for later processes."""
    return cast(Callable[_P, _R], numba.njit(cache=True)(function))


class Tree(NamedTuple):
    """Arrays of a tree of at most L leaves; nodes are rows, free ones are chained.

    Attributes:
        state: (7,) int64, the fields above.
        left: (2L,) int32 first child; `NONE` for a leaf. Of a free node: the next free one.
        right: (2L,) int32 second child.
        parent: (2L,) int32; `NONE` for the root.
        points: (2L,) int64 points that the node's sum holds.
        squared: (2L,) float64 squared norm of the node's sum.
        vectors: (2L, d) float64 sum of the points themselves.
        slot: (2L,) int32 row in `maps` for a leaf, in `sums` for an inner node.
        older: (2L,) int32 the next older leaf.
        newer: (2L,) int32 the next newer leaf.
        maps: (L, t) uint16 map of each leaf.
        sums: (L, t, psi) uint32 sum of maps of each inner node.
        free_maps: (L,) int32 stack of free rows of `maps`.
        free_sums: (L,) int32 stack of free rows of `sums`.
    """

    state: np.ndarray
    left: np.ndarray
    right: np.ndarray
    parent: np.ndarray
    points: np.ndarray
    squared: np.ndarray
    vectors: np.ndarray
    slot: np.ndarray
    older: np.ndarray
    newer: np.ndarray
    maps: np.ndarray
    sums: np.ndarray
    free_maps: np.ndarray
    free_sums: np.ndarray


def empty_tree(leaves: int, t: int, psi: int, dimension: int) -> Tree:
    """A tree without points: at most `leaves` (>= 2), t subsamples of psi points, d dimensions."""
    nodes = 2 * leaves
    state = np.zeros(_FIELDS, dtype=np.int64)
    state[[ROOT, OLDEST, NEWEST]] = NONE
    state[[FREE_LEAF, FREE_INNER]] = leaves
    links = np.full((5, nodes), NONE, dtype=np.int32)
    links[0] = np.arange(1, nodes + 1)  # all nodes are free, each points to the next
    return Tree(
        state=state,
        left=links[0],
        right=links[1],
        parent=links[2],
        points=np.zeros(nodes, dtype=np.int64),
        squared=np.zeros(nodes),
        vectors=np.zeros((nodes, dimension)),
        slot=np.zeros(nodes, dtype=np.int32),
        older=links[3],
        newer=links[4],
        maps=np.zeros((leaves, t), dtype=np.uint16),
        sums=np.zeros((leaves, t, psi), dtype=np.uint32),
        free_maps=np.arange(leaves, dtype=np.int32)[::-1].copy(),
        free_sums=np.arange(leaves, dtype=np.int32)[::-1].copy(),
    )


@compiled
def insert(tree: Tree, vectors: np.ndarray, maps: np.ndarray) -> None:
    """Insert points (N, d) float32 with their maps (N, t), evicting the oldest leaf when full.

    A point with the same map as the leaf it reaches joins that leaf. An evicted leaf is
    subtracted from the sums of all nodes above it.
    """
    for row in range(len(maps)):
        vector, point = vectors[row], maps[row]
        if tree.state[ROOT] == NONE:
            tree.state[ROOT] = _new_leaf(tree, vector, point, NONE)
            continue
        leaf = _descend_and_add(tree, vector, point)
        shared = _overlap(tree, leaf, point)
        if shared == len(point):
            tree.points[leaf] += 1
            tree.vectors[leaf] += vector
            tree.squared[leaf] = len(point) * float(tree.points[leaf]) ** 2
            continue
        if tree.state[LEAVES] == len(tree.maps):
            oldest = tree.state[OLDEST]
            if oldest == leaf:  # keep the leaf to split
                oldest = tree.newer[leaf]
            _evict(tree, oldest)
        _split(tree, leaf, vector, point, shared)


@compiled
def _overlap(tree: Tree, node: int, point: np.ndarray) -> int:
    """Dot product of a point's map and the node's sum; for a leaf, its number of matches."""
    matches = 0
    if tree.left[node] == NONE:
        own = tree.maps[tree.slot[node]]
        for sample in range(len(point)):
            if own[sample] == point[sample]:
                matches += 1
        return matches
    sums = tree.sums[tree.slot[node]]
    for sample in range(len(point)):
        matches += sums[sample, point[sample]]
    return matches


@compiled
def _cosine(tree: Tree, node: int, point: np.ndarray) -> float:
    """Similarity without the common factor 1 / sqrt(t)."""
    dot = _overlap(tree, node, point)
    if tree.left[node] == NONE:
        dot *= tree.points[node]
    return float(dot / np.sqrt(tree.squared[node]))


@compiled
def _descend_and_add(tree: Tree, vector: np.ndarray, point: np.ndarray) -> int:
    """Find the leaf of a point, adding the point to all nodes above."""
    node = tree.state[ROOT]
    while tree.left[node] != NONE:
        sums = tree.sums[tree.slot[node]]
        dot = 0
        for sample in range(len(point)):
            dot += sums[sample, point[sample]]
            sums[sample, point[sample]] += 1
        tree.squared[node] += 2 * dot + len(point)
        tree.points[node] += 1
        tree.vectors[node] += vector
        first, second = tree.left[node], tree.right[node]
        is_nearer = _cosine(tree, second, point) > _cosine(tree, first, point)
        node = second if is_nearer else first
    return int(node)


@compiled
def _split(tree: Tree, leaf: int, vector: np.ndarray, point: np.ndarray, shared: int) -> None:
    """Replace a leaf by an inner node above it and a new leaf for a point."""
    inner = _take_node(tree)
    above = tree.parent[leaf]
    _replace_child(tree, above, leaf, inner)
    tree.parent[leaf] = inner
    tree.left[inner], tree.right[inner] = leaf, _new_leaf(tree, vector, point, inner)
    tree.state[FREE_INNER] -= 1
    tree.slot[inner] = tree.free_sums[tree.state[FREE_INNER]]
    sums, own = tree.sums[tree.slot[inner]], tree.maps[tree.slot[leaf]]
    weight = tree.points[leaf]
    sums[:] = 0
    for sample in range(len(point)):
        sums[sample, own[sample]] += weight
        sums[sample, point[sample]] += 1
    tree.points[inner] = weight + 1
    tree.vectors[inner] = tree.vectors[leaf] + vector
    tree.squared[inner] = tree.squared[leaf] + len(point) + 2.0 * weight * shared


@compiled
def _evict(tree: Tree, leaf: int) -> None:
    """Remove a leaf that is not the root, and replace its parent by its sibling."""
    inner = tree.parent[leaf]
    own, weight = tree.maps[tree.slot[leaf]], tree.points[leaf]
    node = tree.parent[inner]
    while node != NONE:
        sums = tree.sums[tree.slot[node]]
        dot = 0
        for sample in range(len(own)):
            dot += sums[sample, own[sample]]
            sums[sample, own[sample]] -= weight
        tree.squared[node] += float(weight) * (float(weight) * len(own) - 2.0 * dot)
        tree.points[node] -= weight
        tree.vectors[node] -= tree.vectors[leaf]
        node = tree.parent[node]
    sibling = tree.right[inner] if tree.left[inner] == leaf else tree.left[inner]
    _replace_child(tree, tree.parent[inner], inner, sibling)
    before, after = tree.older[leaf], tree.newer[leaf]
    if before == NONE:
        tree.state[OLDEST] = after
    else:
        tree.newer[before] = after
    if after == NONE:
        tree.state[NEWEST] = before
    else:
        tree.older[after] = before
    tree.free_maps[tree.state[FREE_LEAF]] = tree.slot[leaf]
    tree.free_sums[tree.state[FREE_INNER]] = tree.slot[inner]
    tree.state[FREE_LEAF] += 1
    tree.state[FREE_INNER] += 1
    tree.state[LEAVES] -= 1
    _give_node(tree, leaf)
    _give_node(tree, inner)


@compiled
def _new_leaf(tree: Tree, vector: np.ndarray, point: np.ndarray, above: int) -> int:
    leaf = _take_node(tree)
    tree.left[leaf], tree.right[leaf], tree.parent[leaf] = NONE, NONE, above
    tree.points[leaf], tree.squared[leaf] = 1, len(point)
    tree.vectors[leaf] = vector
    tree.state[FREE_LEAF] -= 1
    tree.slot[leaf] = tree.free_maps[tree.state[FREE_LEAF]]
    tree.maps[tree.slot[leaf]] = point
    newest = tree.state[NEWEST]
    tree.older[leaf], tree.newer[leaf] = newest, NONE
    if newest == NONE:
        tree.state[OLDEST] = leaf
    else:
        tree.newer[newest] = leaf
    tree.state[NEWEST] = leaf
    tree.state[LEAVES] += 1
    return leaf


@compiled
def _replace_child(tree: Tree, above: int, old: int, new: int) -> None:
    tree.parent[new] = above
    if above == NONE:
        tree.state[ROOT] = new
    elif tree.left[above] == old:
        tree.left[above] = new
    else:
        tree.right[above] = new


@compiled
def _take_node(tree: Tree) -> int:
    node = tree.state[FREE_NODE]
    tree.state[FREE_NODE] = tree.left[node]
    return int(node)


@compiled
def _give_node(tree: Tree, node: int) -> None:
    tree.left[node] = tree.state[FREE_NODE]
    tree.state[FREE_NODE] = node
