"""The reranker of the service gives what training computed, and touches a stretch at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reki_ray.config import HeinConfig, RerankConfig, TrainConfig
from reki_ray.config.rerank import RERANKERS
from reki_ray.core.workspace import Workspace
from reki_ray.errors import StoreError
from reki_ray.models.artifact import RerankBundle
from reki_ray.models.candidate_scorer import CatalogueInputs, HistoryEvent, UserInput
from reki_ray.models.list_scorer import ListScorer
from reki_ray.training.arms import read_representations
from reki_ray.training.batches import BatchBuilder, encode_dataset
from reki_ray.training.dataset import Dataset, Samples, read_dataset
from reki_ray.training.loop import predict
from reki_ray.training.objectives import LISTS
from reki_ray.training.rerank_lists import NOTHING, build_lists
from reki_ray.training.runs import Run
from reki_ray.training.worker import TrainingData, new_bundle
from tests.support import trained_workspace

SIZE = 6
CONFIG = TrainConfig(
    history=6,
    rerankers=RERANKERS,
    rerank=RerankConfig(list_size=SIZE),
    hein=HeinConfig(enrich_items=True),
)


def make(
    reranker: str, arm: str, workspace: Workspace, dataset: Dataset
) -> tuple[RerankBundle, Samples, BatchBuilder]:
    run = Run(reranker, arm, 0, reranks=True)  # type: ignore[arg-type]
    found = read_representations(workspace, run.arm, dataset.user_ids, dataset.item_ids)
    data = TrainingData.of(dataset, {run.arm: found}, CONFIG)
    bundle = new_bundle(run, CONFIG, data)
    lists = build_lists(dataset, "test", CONFIG.rerank)
    builder = BatchBuilder(
        encode_dataset(dataset, bundle.features),
        lists,
        bundle.history,
        found,
        enriched=bundle.model.enriches,
    )
    bundle.model.train()
    for _ in range(20):  # running statistics as after training
        bundle.model(builder.build(np.arange(len(builder))))
    bundle.model.eval()
    return bundle, lists, builder


def make_scorer(bundle: RerankBundle, workspace: Workspace, dataset: Dataset) -> ListScorer:
    found = read_representations(workspace, bundle.arm, dataset.user_ids, dataset.item_ids)  # type: ignore[arg-type]
    h_items = fallback = None
    if found is not None:
        h_items = bundle.augment_items(found.items.gather(np.arange(len(dataset.item_ids))))
        fallback = h_items.mean(axis=0)
    inputs = CatalogueInputs(bundle, dataset.item_ids, dataset.item_attributes, h_items, fallback)
    return ListScorer(bundle, inputs)


def user_of(
    bundle: RerankBundle, workspace: Workspace, dataset: Dataset, user: int, before: int
) -> UserInput:
    found = read_representations(workspace, bundle.arm, dataset.user_ids, dataset.item_ids)  # type: ignore[arg-type]
    start = dataset.offsets[user]
    events = [
        HistoryEvent(
            dataset.item_ids[dataset.past_items[k]],
            float(dataset.past_ratings[k]),
            int(dataset.past_times[k]),
        )
        for k in range(start, start + before)
    ]
    h_user = None
    if found is not None:
        h_user = bundle.augment_users(found.users.gather(np.array([user])))[0]
    return UserInput(dataset.user_attributes[user], events, h_user)


@pytest.mark.parametrize(
    ("reranker", "arm"), [*((name, "reki_c") for name in RERANKERS), ("prm", "fair_base")]
)
def test_orders_are_those_of_the_training_path(
    reranker: str, arm: str, filled: Workspace, dataset: Dataset
) -> None:
    bundle, lists, builder = make(reranker, arm, filled, dataset)
    scorer = make_scorer(bundle, filled, dataset)
    offline = predict(bundle.model, builder, objective=LISTS)
    for k in range(len(lists)):
        user = user_of(bundle, filled, dataset, int(lists.users[k]), int(lists.positions[k]))
        # Test users have no training sample: their initial order is that of all samples.
        items = [dataset.item_ids[item] for item in lists.items[k] if item != NOTHING]
        expected = offline[k, : len(items)]
        np.testing.assert_allclose(scorer.score(user, items), expected, atol=1e-6)
        assert scorer.order(user, items) == np.argsort(-expected, kind="stable").tolist()


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[ListScorer, UserInput]:
    """A reranker whose scores depend on places, and a user."""
    workspace = Workspace(tmp_path_factory.mktemp("lists"))
    trained_workspace.fill(workspace)
    dataset = read_dataset(workspace)
    bundle, _, _ = make("prm", "reki_c", workspace, dataset)
    user = user_of(bundle, workspace, dataset, 28, 9)
    return make_scorer(bundle, workspace, dataset), user


ITEMS = st.lists(
    st.sampled_from([*trained_workspace.item_ids(), "unknown", "new"]), max_size=3 * SIZE + 2
)


@given(items=ITEMS)
@settings(max_examples=50, deadline=None)
def test_an_order_has_every_place_once_and_keeps_stretches_apart(
    scored: tuple[ListScorer, UserInput], items: list[str]
) -> None:
    scorer, user = scored
    order = scorer.order(user, items)
    for start in range(0, len(items), SIZE):
        stretch = list(range(start, min(start + SIZE, len(items))))
        assert sorted(order[start : start + SIZE]) == stretch


def test_a_stretch_is_put_in_order_as_if_it_stood_alone(
    scored: tuple[ListScorer, UserInput],
) -> None:
    scorer, user = scored
    items = trained_workspace.item_ids()[: 3 * SIZE - 2]
    apart = [scorer.score(user, items[k : k + SIZE]) for k in range(0, len(items), SIZE)]
    np.testing.assert_allclose(scorer.score(user, items), np.concatenate(apart), atol=1e-6)


def test_distinctly_popular_items_come_out_alike_however_they_come_in(
    scored: tuple[ListScorer, UserInput],
) -> None:
    scorer, user = scored
    features = scorer.bundle.features
    by_count = dict(zip(features.item_counts, features.items, strict=True))
    items = list(by_count.values())[:SIZE]
    assert len(items) > 3
    names = [items[place] for place in scorer.order(user, items)]
    backward = items[::-1]
    assert [backward[place] for place in scorer.order(user, backward)] == names


def test_a_vector_of_another_model_is_refused(scored: tuple[ListScorer, UserInput]) -> None:
    scorer, user = scored
    with pytest.raises(StoreError, match="augmented vector"):
        scorer.order(UserInput(user.attributes, user.history, np.ones(3, np.float32)), ["m01"])
