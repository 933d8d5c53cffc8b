from __future__ import annotations

import hdbscan
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, homogeneity_score, normalized_mutual_info_score

from reki_ray.clustering.assignment import assign_all
from reki_ray.clustering.base import NOISE, Clusterer
from reki_ray.clustering.clusterers import PLACED, group
from reki_ray.clustering.hdbscan import ENGINES, HdbscanClusterer, Selection, fit_points
from reki_ray.clustering.partition import cut_at_medians
from reki_ray.clustering.pca import Projection
from reki_ray.config import ClusterConfig, SideClusterConfig
from reki_ray.core.vectors import normalise
from reki_ray.errors import ConfigError
from reki_ray.schema import CLUSTER_ID, ID, METHOD

SIDE = SideClusterConfig(min_cluster_size=5)


def clusterer(dimensions: int = 8) -> Clusterer:
    return HdbscanClusterer(ClusterConfig(dimensions=dimensions), SIDE)


def planted(groups: int, size: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (N, 64) around random directions, and the group of each."""
    generator = np.random.default_rng(seed)
    truth = np.repeat(np.arange(groups), size)
    centres = normalise(generator.normal(size=(groups, 64)))
    noise = generator.normal(scale=spread / 8, size=(len(truth), 64))  # norm = spread
    return normalise(centres[truth] + noise), truth


@pytest.mark.parametrize("groups", [4, 12, 20])
def test_planted_groups_are_found_again(groups: int) -> None:
    vectors, truth = planted(groups, size=30, spread=0.5)
    algorithm = HdbscanClusterer(ClusterConfig(selection="eom"), SIDE)
    found = assign_all(vectors, algorithm.fit(vectors), SIDE.min_cluster_size)
    assert normalized_mutual_info_score(truth, found.labels) > 0.95


@pytest.mark.parametrize("groups", [4, 12, 20])
def test_leaves_divide_planted_groups_but_do_not_mix_them(groups: int) -> None:
    vectors, truth = planted(groups, size=30, spread=0.5)
    found = assign_all(vectors, clusterer().fit(vectors), SIDE.min_cluster_size)
    assert homogeneity_score(truth, found.labels) > 0.95


@pytest.mark.parametrize("selection", ["leaf", "eom"])
@pytest.mark.parametrize("engine", ENGINES)
def test_labels_are_those_of_the_reference_implementation(
    selection: Selection, engine: str
) -> None:
    vectors, _ = planted(12, size=40, spread=0.6)
    points = Projection.fitted(vectors, 8)(vectors)
    reference = hdbscan.HDBSCAN(
        min_cluster_size=5, min_samples=1, cluster_selection_method=selection
    ).fit_predict(points.astype(np.float64))
    labels = fit_points(points, SIDE, selection, engine)
    assert labels.max() > 5
    assert adjusted_rand_score(reference, labels) == pytest.approx(1.0)


@pytest.mark.parametrize("sizes", [{"min_samples": 4}, {"max_cluster_size": 25}])
def test_both_engines_give_the_same_labels(sizes: dict[str, int]) -> None:
    vectors, _ = planted(12, size=40, spread=0.6)
    points = Projection.fitted(vectors, 8)(vectors)
    side = SideClusterConfig.model_validate({"min_cluster_size": 5, **sizes})
    fast, reference = (fit_points(points, side, "eom", engine) for engine in ENGINES)
    assert fast.max() > 5
    assert adjusted_rand_score(reference, fast) == pytest.approx(1.0)


def test_more_than_thirty_dimensions_need_the_reference_implementation() -> None:
    vectors, truth = planted(4, size=30, spread=0.3)
    with pytest.raises(ConfigError, match="at most 30 dimensions") as caught:
        clusterer(dimensions=40).fit(vectors)
    assert "hdbscan_engine" in caught.value.todo
    config = ClusterConfig(dimensions=40, hdbscan_engine="hdbscan", selection="eom")
    labels = HdbscanClusterer(config, SIDE).fit(vectors)
    assert homogeneity_score(truth[labels >= 0], labels[labels >= 0]) > 0.95


def test_the_engine_enters_the_identity_only_if_it_is_not_the_default() -> None:
    assert "hdbscan_engine" not in ClusterConfig().identity()
    assert ClusterConfig(hdbscan_engine="hdbscan").identity()["hdbscan_engine"] == "hdbscan"


def test_the_order_of_rows_does_not_matter() -> None:
    vectors, _ = planted(6, size=20, spread=0.6)
    order = np.random.default_rng(1).permutation(len(vectors))
    straight = clusterer().fit(vectors)
    shuffled = clusterer().fit(vectors[order])
    assert normalized_mutual_info_score(straight[order], shuffled) == pytest.approx(1.0)


def test_the_same_rows_give_the_same_labels() -> None:
    vectors, _ = planted(6, size=20, spread=0.8)
    assert clusterer().fit(vectors).tolist() == clusterer().fit(vectors).tolist()


def test_duplicates_alone_are_one_cluster() -> None:
    assert clusterer().fit(np.tile(normalise(np.ones((1, 16))), (30, 1))).tolist() == [0] * 30


def test_groups_of_duplicates_stay_apart() -> None:
    vectors = np.repeat(np.eye(3, 16, dtype=np.float32), 10, axis=0)
    found = assign_all(vectors, clusterer().fit(vectors), SIDE.min_cluster_size)
    found_groups = normalized_mutual_info_score(np.repeat(np.arange(3), 10), found.labels)
    assert found_groups == pytest.approx(1.0)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_too_few_rows_for_a_cluster_are_noise(rows: int) -> None:
    vectors, _ = planted(rows, size=1, spread=0.1)
    assert clusterer().fit(vectors).tolist() == [NOISE] * rows


def test_fewer_rows_than_dimensions_are_clustered() -> None:
    vectors, _ = planted(2, size=6, spread=0.3)
    labels = clusterer(dimensions=50).fit(vectors)
    assert labels.shape == (12,)


def test_a_shapeless_cloud_still_ends_in_clusters_and_says_what_was_noise() -> None:
    vectors = normalise(np.random.default_rng(0).normal(size=(120, 32)))
    ids = [f"m{row:03d}" for row in range(120)]
    grouping = group(ids, vectors, clusterer(), "i", min_size=SIDE.min_cluster_size)
    methods = grouping.clusters[METHOD].to_pylist()
    assert grouping.clusters[ID].to_pylist() == ids
    assert all(name.startswith("i") for name in grouping.clusters[CLUSTER_ID].to_pylist())
    placed = sum(method.endswith(PLACED) for method in methods) / 120
    assert grouping.figures["noise_share"] == pytest.approx(placed, abs=1e-4)
    assert grouping.figures["sizes"]["min"] >= SIDE.min_cluster_size
    assert sum(grouping.figures["size_list"]) == 120


def test_clusters_are_found_again_across_the_cuts_of_many_rows() -> None:
    vectors, truth = planted(12, size=400, spread=0.3)
    whole = HdbscanClusterer(ClusterConfig(selection="eom", part_rows=10_000), SIDE)
    parted = HdbscanClusterer(ClusterConfig(selection="eom", part_rows=1000), SIDE)
    straight, cut = (
        assign_all(vectors, one.fit(vectors), SIDE.min_cluster_size).labels
        for one in (whole, parted)
    )
    assert normalized_mutual_info_score(truth, straight) > 0.95
    assert normalized_mutual_info_score(truth, cut) > 0.95
    assert len(np.unique(cut)) <= 2 * len(np.unique(straight))


def test_parts_are_even_and_hold_every_row_once() -> None:
    points = np.random.default_rng(0).normal(size=(10_000, 3))
    parts, gaps = cut_at_medians(points, part_rows=700)
    sizes = [len(rows) for rows in parts]
    assert max(sizes) <= 700
    assert min(sizes) >= 600
    assert sorted(np.concatenate(parts).tolist()) == list(range(10_000))
    assert (gaps >= 0).all()
