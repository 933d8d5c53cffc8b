"""What every clustering method promises, together with the total assignment behind it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from reki_ray.clustering.base import NOISE, Clusterer
from reki_ray.clustering.clusterers import KMeansClusterer, build_clusterer, group
from reki_ray.clustering.hdbscan import ENGINES
from reki_ray.clustering.streakhc.stream import StreaKhcClusterer
from reki_ray.config import ClusterConfig, SideClusterConfig, StreaKhcConfig
from reki_ray.core.vectors import normalise
from reki_ray.errors import ConfigError, DataError
from reki_ray.schema import CLUSTER_ID, ID, SIMILARITY

METHODS = (*ENGINES, "streakhc", "kmeans")
MIN_SIZE = 4


def make(method: str, rows: int, clusters: int | None = None) -> Clusterer:
    config = ClusterConfig.model_validate(
        {
            "method": "hdbscan" if method in ENGINES else method,
            "hdbscan_engine": method if method in ENGINES else "fast_hdbscan",
            "streakhc": StreaKhcConfig(subsamples=50, subsample_points=32, max_leaves=256),
        }
    )
    return build_clusterer(
        config, SideClusterConfig(min_cluster_size=MIN_SIZE, clusters=clusters), rows
    )


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def planted(groups: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.permutation(np.repeat(np.arange(groups), size))
    centres = random.normal(size=(groups, 48))
    return normalise(centres[truth] + random.normal(scale=0.4, size=(len(truth), 48))), truth


def placed(method: str, vectors: np.ndarray, min_similarity: float | None = None) -> list[str]:
    """Cluster of each row; the ids of the rows are checked on the way."""
    ids = [f"m{row:04d}" for row in range(len(vectors))]
    clusterer = make(method, len(ids))
    table = group(
        ids, vectors, clusterer, "i", min_size=MIN_SIZE, min_similarity=min_similarity
    ).clusters
    assert table[ID].to_pylist() == ids
    assert all(-1 <= cosine <= 1 + 1e-6 for cosine in table[SIMILARITY].to_pylist())
    clusters: list[str] = table[CLUSTER_ID].to_pylist()
    return clusters


def test_labels_are_noise_or_numbers(method: str) -> None:
    vectors, _ = planted(6, 20)
    labels = make(method, len(vectors)).fit(vectors)
    assert labels.shape == (120,)
    assert labels.dtype == np.int64
    assert (labels >= NOISE).all()


def test_planted_groups_are_found(method: str) -> None:
    vectors, truth = planted(8, 30)
    labels = make(method, len(vectors), clusters=8).fit(vectors)
    kept = labels != NOISE
    assert normalized_mutual_info_score(truth[kept], labels[kept]) > 0.85


def test_equal_input_gives_equal_output(method: str) -> None:
    vectors, _ = planted(6, 20)
    first, second = (make(method, len(vectors)).fit(vectors) for _ in range(2))
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize("method", [m for m in METHODS if make(m, 1).order_independent])
def test_the_order_of_rows_does_not_matter_where_that_is_promised(method: str) -> None:
    vectors, _ = planted(6, 20)
    order = np.random.default_rng(1).permutation(len(vectors))
    algorithm = make(method, len(vectors))
    straight, shuffled = algorithm.fit(vectors), algorithm.fit(vectors[order])
    assert normalized_mutual_info_score(straight[order], shuffled) == pytest.approx(1.0)


def test_every_row_ends_in_a_cluster_of_the_minimum_size(method: str) -> None:
    vectors = normalise(np.random.default_rng(0).normal(size=(150, 24)))
    sizes = np.unique(placed(method, vectors), return_counts=True)[1]
    assert sizes.min() >= MIN_SIZE
    assert sizes.sum() == 150


def test_duplicates_are_one_cluster(method: str) -> None:
    assert len(set(placed(method, np.tile(normalise(np.ones((1, 16))), (40, 1))))) == 1


def test_groups_of_duplicates_stay_apart(method: str) -> None:
    found = placed(method, np.repeat(np.eye(3, 16, dtype=np.float32), 12, axis=0))
    assert len(set(found[:12])) == len(set(found[12:24])) == len(set(found[24:])) == 1
    assert len(set(found)) >= 2


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows_are_one_cluster(method: str, rows: int) -> None:
    assert len(set(placed(method, planted(rows, 1)[0]))) == 1


def test_a_vector_that_is_not_finite_is_refused_with_its_id(method: str) -> None:
    vectors, _ = planted(3, 10)
    vectors[17, 3] = np.nan
    with pytest.raises(DataError) as caught:
        placed(method, vectors)
    assert "m0017" in caught.value.where


@pytest.mark.parametrize("floor", [0.5, 0.9, 0.999])
def test_the_floor_of_similarity_holds_for_every_member(method: str, floor: float) -> None:
    vectors = normalise(np.random.default_rng(2).normal(size=(120, 12)))
    found = np.array(placed(method, vectors, min_similarity=floor))
    for name in np.unique(found):
        members = vectors[found == name]
        centre = normalise(members.mean(axis=0, keepdims=True))[0]
        assert (members @ centre).min() >= floor - 1e-6
    assert len(set(found)) < 120 or floor == 0.999


@pytest.mark.parametrize(("rows", "leaves"), [(2_000, 93), (2_000, 384), (8_000, 1_024)])
def test_streakhc_and_its_control_make_as_many_clusters_or_it_is_an_error(
    rows: int, leaves: int
) -> None:
    side = SideClusterConfig(min_cluster_size=MIN_SIZE)
    kmeans, streakhc = (
        ClusterConfig.model_validate({"method": method, "streakhc": {"max_leaves": leaves}})
        for method in ("kmeans", "streakhc")
    )
    wanted = rows // (4 * MIN_SIZE)
    control = build_clusterer(kmeans, side, rows)
    assert isinstance(control, KMeansClusterer)
    assert control.clusters == wanted
    if 3 * wanted <= leaves:
        own = build_clusterer(streakhc, side, rows)
        assert isinstance(own, StreaKhcClusterer)
        assert own.clusters == wanted
        return
    with pytest.raises(ConfigError, match=f"call for {wanted} clusters") as caught:
        build_clusterer(streakhc, side, rows)
    assert f"Raise it to {3 * wanted}" in caught.value.todo


def test_streakhc_finds_more_groups_than_the_tree_has_leaves_for_their_smallest_size() -> None:
    vectors, truth = planted(60, 40)
    config = StreaKhcConfig(subsamples=100, subsample_points=64, max_leaves=200)
    found = StreaKhcClusterer(60, 30, config).fit(vectors)
    assert normalized_mutual_info_score(truth, found) > 0.85
