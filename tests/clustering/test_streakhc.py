"""StreaKHC: the kernel against its definition, the tree against sums made anew, the stream."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import normalized_mutual_info_score

from reki_ray.clustering.assignment import nearest
from reki_ray.clustering.streakhc.stream import IsolationKernel, StreaKHC
from reki_ray.clustering.streakhc.tree import LEAVES, NONE, ROOT, Tree
from reki_ray.core.vectors import normalise

T, PSI, DIMENSION = 20, 16, 8


def points(count: int, seed: int = 0) -> np.ndarray:
    return normalise(np.random.default_rng(seed).normal(size=(count, DIMENSION)))


def stream(max_leaves: int = 64, seed: int = 0) -> StreaKHC:
    return StreaKHC(IsolationKernel.drawn(points(200), T, PSI, seed), max_leaves)


def leaves_below(tree: Tree, node: int) -> list[int]:
    if tree.left[node] == NONE:
        return [node]
    return leaves_below(tree, tree.left[node]) + leaves_below(tree, tree.right[node])


def test_a_map_names_the_nearest_sample_of_each_subsample() -> None:
    kernel, rows = IsolationKernel.drawn(points(100), T, PSI, seed=3), points(30, seed=1)
    distances = np.linalg.norm(rows[:, None, None] - kernel.samples[None], axis=3)
    assert (kernel.maps(rows) == distances.argmin(axis=2)).all()


def test_a_kernel_of_few_points_takes_them_all() -> None:
    assert IsolationKernel.drawn(points(5), T, PSI, seed=0).samples.shape == (T, 5, DIMENSION)


@pytest.mark.parametrize("max_leaves", [64, 17, 2])
def test_sums_norms_and_totals_are_those_of_the_points_below(max_leaves: int) -> None:
    """Also after leaves were evicted, some of them with several points."""
    one, rows = stream(max_leaves=max_leaves), points(60, seed=2)
    rows[1::7] = rows[::7][: len(rows[1::7])]
    one.insert(rows)
    tree = one._tree
    inner = [node for node in range(len(tree.left)) if tree.points[node] and tree.left[node] >= 0]
    reached = [node for node in inner if node in _reachable(tree)]
    assert len(reached) == tree.state[LEAVES] - 1
    for node in reached:
        below = leaves_below(tree, node)
        expected = np.zeros((T, PSI))
        for leaf in below:
            expected[np.arange(T), tree.maps[tree.slot[leaf]]] += tree.points[leaf]
        assert (tree.sums[tree.slot[node]] == expected).all()
        assert tree.squared[node] == pytest.approx((expected**2).sum())
        assert tree.points[node] == tree.points[below].sum()
        np.testing.assert_allclose(tree.vectors[node], tree.vectors[below].sum(axis=0), atol=1e-5)
    if max_leaves > len(rows):
        np.testing.assert_allclose(tree.vectors[tree.state[ROOT]], rows.sum(axis=0), atol=1e-4)


def _reachable(tree: Tree) -> set[int]:
    todo, found = [int(tree.state[ROOT])], set()
    while todo:
        node = todo.pop()
        found.add(node)
        if tree.left[node] != NONE:
            todo += [int(tree.left[node]), int(tree.right[node])]
    return found


def test_a_long_stream_keeps_its_newest_leaves_in_the_same_memory() -> None:
    one = stream(max_leaves=16)
    size = sum(array.nbytes for array in one._tree)
    for seed in range(20):
        one.insert(points(50, seed=seed))
        assert one._tree.state[LEAVES] <= 16
        assert len(_reachable(one._tree)) == 2 * one._tree.state[LEAVES] - 1
    assert one.points == 16  # all others are forgotten
    assert sum(array.nbytes for array in one._tree) == size


def test_the_same_points_join_their_leaf() -> None:
    one = stream(max_leaves=8)
    one.insert(np.tile(points(1, seed=9), (50, 1)))
    assert (one.points, one._tree.state[LEAVES]) == (50, 1)
    assert one.cut(clusters=5, min_size=2).shape == (1, DIMENSION)


def test_a_stream_of_two_leaves_goes_on() -> None:
    one = stream(max_leaves=2)
    one.insert(points(100, seed=4))
    assert one._tree.state[LEAVES] == 2
    assert len(_reachable(one._tree)) == 3


def test_in_one_piece_or_many_the_tree_is_the_same() -> None:
    rows = points(80, seed=5)
    whole, pieces = stream(max_leaves=24), stream(max_leaves=24)
    whole.insert(rows)
    pieces.insert(rows[:30])
    pieces.insert(rows[30:])
    for name, array in whole._tree._asdict().items():
        np.testing.assert_allclose(
            array, pieces._tree._asdict()[name], rtol=1e-6, atol=1e-9, err_msg=name
        )


def test_fifty_groups_are_found_as_well_as_by_k_means() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 50, 4000)
    rows = normalise(random.normal(size=(50, 64))[truth] + random.normal(size=(4000, 64)))
    one = StreaKHC(IsolationKernel.drawn(rows[:1000], 200, 256, seed=0), max_leaves=1024)
    one.insert(rows)
    found = normalized_mutual_info_score(truth, nearest(rows, one.cut(50, min_size=10))[0])
    control = MiniBatchKMeans(50, n_init=3, random_state=0).fit_predict(rows)
    assert found > 0.93
    assert found > normalized_mutual_info_score(truth, control) - 0.01


def test_a_stream_forgets_what_it_no_longer_sees() -> None:
    """A stream that turns to other points has no cluster where it was before."""
    random = np.random.default_rng(0)
    before, after = np.eye(DIMENSION)[:2]
    one = StreaKHC(IsolationKernel.drawn(points(200), T, PSI, seed=0), max_leaves=32)
    for centre in (before, after):
        one.insert(normalise(centre + 0.05 * random.normal(size=(500, DIMENSION))))
    centres = one.cut(clusters=3, min_size=1)
    assert (centres @ after > 0.9).all()
